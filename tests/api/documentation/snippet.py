"""Runs the Python of docs/realtime.md: python snippet.py REPOSITORY"""

import json
import os
import pathlib
import re
import sys
import time
import urllib.request

URL, TOKEN, USER, ROOM = (os.environ[name] for name in ("URL", "TOKEN", "USER_ID", "ROOM"))

page = (pathlib.Path(sys.argv[1]) / "docs/realtime.md").read_text()
(code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def request(path, body=None):
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{URL}/api/chat/{path}", data, headers)) as answer:
        return json.load(answer)


def say(content):
    request("message", {"room": ROOM, "sender": USER, "content": content})


def eventually(claim, holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {claim}"
        time.sleep(0.02)


shown, histories, answers = [], [], []


def history(room):
    histories.append(room)
    return request(f"messages/{room}")


def show(message):
    shown.append(message["content"])


scope = {"url": URL, "room": ROOM, "token": lambda: TOKEN, "show": show, "history": history}
say("before")
exec(compile(code, "docs/realtime.md", "exec"), scope)
eventually("the history", lambda: shown == ["before"])
say("live")
eventually("live", lambda: shown == ["before", "live"])
eventually("the position", lambda: scope["since"] is not None)

joined = scope["joined"]


def recorded(answer):
    answers.append(answer)
    joined(answer)


scope["joined"] = recorded
print("restart", flush=True)
assert sys.stdin.readline() == "restarted\n"
say("missed")
eventually("missed", lambda: "missed" in shown)
eventually("the answer to the join", lambda: answers)
assert shown == ["before", "live", "missed"], shown
assert answers[0]["recovered"] is True, answers
assert histories == [ROOM], "what was missed came from the server"

# A resync: the history has what was missed.
client = scope["client"]
client.call("leaveRoom", ROOM)
say("unheard")
assert client.call("joinRoom", {"room": ROOM, "since": "1.1"})["recovered"] is False
eventually("unheard", lambda: shown[-1] == "unheard")
assert shown == ["before", "live", "missed", "unheard"], shown
client.disconnect()
print("done", flush=True)
