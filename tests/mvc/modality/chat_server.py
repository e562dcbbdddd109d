"""An endpoint that speaks as much of the OpenAI protocol as rewriting needs, on this machine, and answers as told."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the server answers.

    Attributes:
        body: JSON, or bytes as they are.
        pause: seconds before it.
    """

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pause: float = 0.0


@dataclass(frozen=True)
class Asked:
    """A request as it came: its body, its Authorization header, its path, and when."""

    body: dict[str, Any]
    authorization: str | None
    path: str
    when: float

    @property
    def message(self) -> str:
        """What the user says in it."""
        return str(self.body["messages"][0]["content"])

    @property
    def text(self) -> str:
        """The sentence that is to be rewritten."""
        return self.message.rpartition("Sentence: ")[2]

    @property
    def count(self) -> int:
        """How many sentences are wanted."""
        return int(re.findall(r"Write (\d+) sentence", self.message)[0])


def said(content: str | None, finish_reason: str = "stop") -> Reply:
    """A usual answer."""
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": content}}
    return Reply({"id": "1", "object": "chat.completion", "created": 1, "model": "toy-2026", "choices": [choice]})


def fault(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI words it."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def rewritten(asked: Asked) -> Reply:
    """As many sentences as are wanted, each with the text in it."""
    return said("\n".join(f"{asked.text}, in words {place}." for place in range(asked.count)))


Answer = Callable[[Asked], Reply]


class Chat(ThreadingHTTPServer):
    """The endpoint.

    Attributes:
        asked: all requests in the order in which they came.
        script: the first replies; then `answer` says them.
        most: how many requests were under way at once.
    """

    request_queue_size = 64

    def __init__(self, answer: Answer, script: list[Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.answer, self.script, self.asked, self.most = answer, script, list[Asked](), 0
        self.under_way, self.lock, self.closing = 0, threading.Lock(), threading.Event()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are no fault here."""


@contextmanager
def serving(*script: Reply, answer: Answer = rewritten) -> Iterator[Chat]:
    """An endpoint that answers until the end of the block.

    Args:
        *script: the first replies in their order.
        answer: says what comes after them.
    """
    with Chat(answer, list(script)) as chat:
        thread = threading.Thread(target=chat.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield chat
        finally:
            chat.closing.set()
            chat.shutdown()
            thread.join()


class _Request(BaseHTTPRequestHandler):
    server: Chat
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        chat = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = Asked(body, self.headers.get("Authorization"), self.path, time.monotonic())
        with chat.lock:
            chat.asked.append(asked)
            chat.under_way += 1
            chat.most = max(chat.most, chat.under_way)
            scripted = chat.script.pop(0) if chat.script else None
        reply = scripted or chat.answer(asked)
        chat.closing.wait(reply.pause)
        with chat.lock:
            chat.under_way -= 1
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
