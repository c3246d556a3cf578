"""python-socketio's life in short, on both transports, with each choice of recovery."""

import os
import sys
import time

import engineio
import socketio

# The client refuses longer answers to a poll, although it is the server that knows how much waits;
# its manual advises so for bursts.
engineio.payload.Payload.max_decode_packets = 500

URL, TOKEN, ROOM = (os.environ[name] for name in ("URL", "TOKEN", "ROOM"))


def eventually(claim, holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {claim}"
        time.sleep(0.01)


def live(transports, recovery):
    stranger = socketio.Client(reconnection=False)
    try:
        stranger.connect(URL, transports=transports, wait_timeout=10)
    except socketio.exceptions.ConnectionError:
        pass
    else:
        raise AssertionError("let in without a token")

    received, positions = [], []
    client = socketio.Client(reconnection_delay=0.1, reconnection_delay_max=0.4)

    if recovery is True:

        @client.on("receiveMessage")
        def receive(message, offset):
            received.append(message["content"])
            positions.append(offset)

    else:

        @client.on("receiveMessage")
        def receive_one(message):
            received.append(message["content"])

        @client.on("position")
        def position(offset):
            positions.append(offset)

    auth = {"token": TOKEN} if recovery is None else {"token": TOKEN, "recovery": recovery}
    client.connect(URL, auth=auth, transports=transports, wait_timeout=10)
    joined = client.call("joinRoom", ROOM, timeout=30)
    assert joined["recovered"] is False, joined
    sent = client.call("sendMessage", {"room": ROOM, "content": "ünï 🔑"}, timeout=30)
    assert sent["message"]["content"] == "ünï 🔑", sent
    burst = [f"burst {index}" for index in range(200)]
    for content in burst:
        client.emit("sendMessage", {"room": ROOM, "content": content})
    eventually("the burst", lambda: len(received) > len(burst))
    # Each message has a thread of its own in this client, so what comes together may be told in any
    # order.
    assert sorted(received) == sorted(["ünï 🔑", *burst])
    # What comes behind the last message is there before the answer to this.
    client.call("leaveRoom", "0123456789abcdef01234567", timeout=30)
    if recovery is False:
        assert not positions, positions
    else:
        eventually("a position", lambda: positions)

    print("restart", flush=True)
    assert sys.stdin.readline() == "restarted\n"
    eventually("the reconnection", lambda: client.connected and client.get_sid() is not None)
    rejoin = {"room": ROOM, "since": positions[-1]} if positions else {"room": ROOM}
    deadline = time.monotonic() + 30
    while True:
        try:
            joined = client.call("joinRoom", rejoin, timeout=5)
            break
        except socketio.exceptions.SocketIOError:
            # The connection was still the old one.
            assert time.monotonic() < deadline
            time.sleep(0.1)
    if positions:
        assert joined == {"room": ROOM, "position": rejoin["since"], "recovered": True}, joined
    else:
        assert joined["recovered"] is False, joined
    client.call("sendMessage", {"room": ROOM, "content": "afterwards"}, timeout=30)
    eventually("the message after the restart", lambda: received[-1] == "afterwards")
    client.disconnect()


for transports in (["polling", "websocket"], ["polling"], ["websocket"]):
    live(transports, None)
for recovery in (True, False):
    live(["polling", "websocket"], recovery)
print("done", flush=True)
