"""An OpenAI-compatible server on loopback whose judge is a function of what it is asked, and which fails as told."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = str | None
"""`500`, `503`, `429`, `rubbish`, `empty`, `drop`, `slow`, `hang`, or a status with which it refuses, such as `400`."""


def drawn(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def no_fault(body: dict[str, Any], attempt: int) -> Fault:
    return None


def tenth(body: dict[str, Any], attempt: int) -> Fault:
    """A tenth of all calls fails, in every way; some others are slow."""
    number = drawn(f"{attempt}{body['messages']}") % 60
    failing = ("500", "503", "429", "rubbish", "empty", "drop")
    return failing[number] if number < len(failing) else "slow" if number < 20 else None


class JudgeServer:
    """As a context. `fault(body, attempt)` says what becomes of a call; attempts of the same body count from 0."""

    def __init__(self, fault: Callable[[dict[str, Any], int], Fault] = no_fault, *, says: str | None = None) -> None:
        self.fault, self.says = fault, says
        self.model = "big-0613"
        self.attempts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # a client that has been killed

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["content-length"])))
        text = json.dumps(body)
        with self._lock:
            attempt = self.attempts[text]
            self.attempts[text] += 1
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self._respond(request, body, text, self.fault(body, attempt))
        finally:
            with self._lock:
                self.at_once -= 1

    def _respond(self, request: BaseHTTPRequestHandler, body: dict[str, Any], text: str, fault: Fault) -> None:
        if fault in ("slow", "hang"):
            time.sleep(0.03 if fault == "slow" else 3)
        if fault not in (None, "slow", "hang"):
            self.faults[fault] += 1
        if fault == "drop":
            request.close_connection = True
            request.connection.close()
        elif fault == "rubbish":
            _send(request, 200, b"<html>The gateway is on holiday.</html>", "text/html")
        elif fault == "empty":
            _send(request, 200, b'{"choices": []}')
        elif fault is not None and fault.isdigit():
            told = {"error": {"message": f"no: {request.headers.get('authorization')}", "code": "some_code"}}
            more = {"Retry-After": "0.05"} if fault == "429" else {}
            _send(request, int(fault), json.dumps(told).encode(), **more)
        else:
            self.answered[text] += 1
            _send(request, 200, json.dumps(self.completion(body)).encode())

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        number = drawn(str(body["messages"]))
        if body.get("logprobs"):
            share = (number % 997 + 1) / 1000
            tokens = [("m", math.log(share)), ("M", math.log(1 - share)), ("x", -9.0)]
            words = max(tokens, key=lambda token: token[1])[0]
            top = [{"token": token, "logprob": logp, "bytes": None} for token, logp in tokens]
            logprobs = {"content": [{"token": words, "logprob": 0.0, "bytes": None, "top_logprobs": top}]}
        else:
            words, logprobs = ["[[A]]", "Well. [[B]]", "[[C]]", "who knows", "Rating: [[7]]"][number % 5], None
        words = self.says or words
        choice = {"index": 0, "message": {"role": "assistant", "content": words}, "logprobs": logprobs}
        usage = {"prompt_tokens": len(str(body["messages"])) // 4, "completion_tokens": len(words)}
        return {"id": "1", "object": "chat.completion", "model": self.model, "choices": [choice], "usage": usage}


def _send(
    request: BaseHTTPRequestHandler, status: int, content: bytes, kind: str = "application/json", **headers: str
) -> None:
    request.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(content)
