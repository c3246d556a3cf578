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


def request(path, body=None, method=None):
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(f"{URL}/api/chat/{path}", data, headers, method=method)
    with urllib.request.urlopen(asked) as answer:
        return json.load(answer)


def say(content):
    return request("message", {"room": ROOM, "sender": USER, "content": content})["message"]["_id"]


def eventually(claim, holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {claim}"
        time.sleep(0.02)


shown, removed, histories, answers = [], [], [], []


def history(room):
    histories.append(room)
    return request(f"messages/{room}?deleted=true")


def show(message):
    shown.append(message["content"])


scope = {"url": URL, "room": ROOM, "token": lambda: TOKEN, "show": show, "history": history}
scope["remove"] = removed.append
say("before")
exec(compile(code, "docs/realtime.md", "exec"), scope)
eventually("the history", lambda: shown == ["before"])
live = say("live")
eventually("live", lambda: shown == ["before", "live"])
gone = say("gone")
request(f"message/{gone}", None, "DELETE")
eventually("the deletion", lambda: removed == [gone])
del shown[2:]
eventually("the position", lambda: scope["since"] is not None)

joined = scope["joined"]


def recorded(answer):
    answers.append(answer)
    joined(answer)


scope["joined"] = recorded
print("restart", flush=True)
assert sys.stdin.readline() == "restarted\n"
say("missed")
request(f"message/{live}", {"content": "edited"}, "PATCH")
eventually("missed", lambda: "edited" in shown)
eventually("the answer to the join", lambda: answers)
assert shown == ["before", "live", "missed", "edited"], shown
assert answers[0]["recovered"] is True, answers
assert histories == [ROOM], "what was missed came from the server"

# A resync: the history has what was missed.
client = scope["client"]
client.call("leaveRoom", ROOM)
say("unheard")
request(f"message/{live}", None, "DELETE")
assert client.call("joinRoom", {"room": ROOM, "since": "1.1"})["recovered"] is False
eventually("unheard", lambda: shown[-1] == "unheard" and len(removed) == 3)
assert shown == ["before", "live", "missed", "edited", "unheard"], shown
assert sorted(removed) == [live, gone, gone], removed
client.disconnect()
print("done", flush=True)
