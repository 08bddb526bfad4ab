"""A local `/v1/chat/completions` that says what a script says, bad manners included; and a script for StreamWorld."""

import contextlib
import http.server
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamchat_hf.data.streamworld import DIGITS, TICK
from streamchat_hf.data.streamworld_dialogue import NOW, QUIET, TELL, WATCH, questions


@dataclass
class Reply:
    """How the endpoint behaves once.

    Attributes:
        text: the message's content.
        status: of HTTP; from 400 on the text is the body.
        headers: more of them.
        delay: seconds before anything is sent.
        drop: closes the connection instead of answering; "late" sends half of the answer first.
        message: what the message holds instead of the content.
        body: the whole body, instead of a chat completion.
    """

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool | str = False
    message: dict[str, Any] | None = None
    body: bytes | None = None

    def encode(self) -> bytes:
        if self.body is not None or self.status >= 400:
            return self.body or self.text.encode()
        message = self.message or {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return json.dumps({"id": "1", "created": 0, "model": "scripted", "choices": [choice]}).encode()


@dataclass
class Request:
    """What was asked, when, and with which headers (lower case)."""

    messages: list[dict[str, str]]
    body: dict[str, Any]
    headers: dict[str, str]
    time: float


class ScriptedEndpoint:
    """The server, in a thread of its own.

    Args:
        script: gets the messages, and how often they have come before; returns a text or a `Reply`.
    """

    def __init__(self, script: Callable[[list[dict[str, str]], int], str | Reply]):
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._now = 0
        self._before: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.script = script
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                endpoint.serve(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "ScriptedEndpoint":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        key = json.dumps(body["messages"])
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            self.requests.append(Request(body["messages"], body, headers, time.monotonic()))
            before = self._before[key]
            self._before[key] += 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            reply = self.script(body["messages"], before)
            reply = Reply(reply) if isinstance(reply, str) else reply
            time.sleep(reply.delay)
        finally:
            with self._lock:  # before the client has its answer, or it could ask again first
                self._now -= 1
        # The client may have lost patience.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send(handler, reply)

    def _send(self, handler: http.server.BaseHTTPRequestHandler, reply: Reply) -> None:
        content = reply.encode()
        if reply.drop is not True:
            handler.send_response(reply.status)
            for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(content[: len(content) // 2] if reply.drop else content)
        if reply.drop:
            handler.connection.shutdown(socket.SHUT_RDWR)


def asked_captions(messages: list[dict[str, str]]) -> list[tuple[float, float, str]]:
    """The captions that a conversation of `streamchat data synthesize` asks about."""
    lines = re.findall(r"^\[(\S+) - (\S+)\] (.+)$", messages[-1]["content"], re.MULTILINE)
    return [(float(start), float(end), text) for start, end, text in lines]


def streamworld_script(messages: list[dict[str, str]], before: int = 0) -> str:
    """What a good language model makes of StreamWorld's captions, which are all that it sees.

    Two words a second, each true at its own time: one attribute told again and again, or a description and then
    "now" with what has changed.
    """
    captions = asked_captions(messages)
    start, end = captions[0][0], captions[-1][1]
    states = [_state(captions, start + i * TICK) for i in range(int((end - start) / TICK))]
    slots = sorted(set().union(*states)) or ["colour"]
    rng = random.Random(messages[-1]["content"])
    if all(states) and len(states) >= 6 and rng.random() < 0.5:
        question, words = rng.choice(questions(WATCH)), _watch(states)
    else:
        slot = rng.choice(slots)
        question, words = rng.choice(questions(TELL, slot)), [state.get(slot, "nothing") for state in states]
    answer = {"instruction": question.text, "answer": " ".join(words), "start": start}
    return json.dumps({**answer, "end": start + (len(words) - 1) * TICK})


def _state(captions: list[tuple[float, float, str]], time: float) -> dict[str, str]:
    words = next(text for start, end, text in captions if start <= time < end).split()
    if words == ["nothing"]:
        return {}
    if words[-1] == "ones":
        return {"count": words[0], "colour": words[1]}
    return {"colour": words[1], "digit" if words[2] in DIGITS else "shape": words[2], "motion": words[4]}


def _watch(states: list[dict[str, str]]) -> list[str]:
    """Describe, then report what differs from what was said last."""
    counted = "count" in states[0]
    first = (
        ["count", "colour", "ones"]
        if counted
        else ["a", "colour", *({"shape", "digit"} & set(states[0])), ",", "motion"]
    )
    said: dict[str, str] = {}
    words: list[str] = []
    changed = None
    for state in states:
        if len(words) < len(first):
            slot = first[len(words)]
            said |= {slot: state[slot]} if slot in state else {}
            words.append(state.get(slot, slot))
        elif changed is not None:
            said[changed] = state[changed]
            words.append(state[changed])
            changed = None
        else:
            changed = next((slot for slot, value in state.items() if said[slot] != value), None)
            words.append(NOW if changed else QUIET)
    return words
