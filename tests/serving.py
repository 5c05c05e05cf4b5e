"""A real HTTP server that speaks OpenAI's protocol and can be told to fail: in a thread, or as a process of its own.

    with Serving(Parrot()) as server:
        server.fail("429", "cut")          # the next two requests, one after the other
        ... server.url ...
        server.answered                    # bodies of all requests that were answered, as the server saw them

As a process: ``python tests/serving.py PORT`` serves a ``Parrot``; ``/log`` gives what it answered, ``/fail/500`` adds
a fault.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

REFUSALS = ("400", "401", "404", "429", "500", "503", "quota")
BEFORE = (*REFUSALS, "slow", "drop", "late")  # faults that are not answered, so nobody pays


class Parrot:
    """No model at all: it answers with what it was told, and says so fast."""

    name = "parrot"

    def write(self, prompt: Any, body: dict[str, Any]) -> list[dict[str, Any]]:
        said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        ends = len(said.split()) <= body.get("max_tokens", 100)
        texts = [f"{said} again" + f" {n}" * bool(n) for n in range(body.get("n", 1))]
        return [{"text": text, "finish_reason": "stop" if ends else "length"} for text in texts]


class Serving(ThreadingHTTPServer):
    """``model.write(prompt, body)`` gives choices with ``text``, ``finish_reason`` and perhaps ``logprobs``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, model: Any, port: int = 0, pace: float = 0.0, models: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.pace, self.models = model, pace, models or (model.name,)
        self.lock, self.faults = Lock(), deque[str]()
        self.answered: list[dict[str, Any]] = []
        self.asked = self.under_way = self.most = 0
        self.times: list[float] = []
        self.keys: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def fail(self, *faults: str) -> None:
        self.faults.extend(faults)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are no news."""

    def __enter__(self) -> Serving:
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    disable_nagle_algorithm = True
    server: Serving

    def log_message(self, *words: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/fail/"):
            self.server.fail(self.path.split("/")[-1])
            return self.reply({})
        if self.path == "/log":
            return self.reply({"answered": self.server.answered, "asked": self.server.asked})
        return self.reply({"object": "list", "data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked += 1
            server.under_way += 1
            server.most = max(server.most, server.under_way)
            server.times.append(time.monotonic())
            server.keys.append(self.headers.get("Authorization", ""))
            fault = server.faults.popleft() if server.faults else ""
        try:
            time.sleep(server.pace)
            self.answer(body, fault)
        finally:
            with server.lock:
                server.under_way -= 1

    def answer(self, body: dict[str, Any], fault: str) -> None:
        kind, _, value = fault.partition(":")
        if kind in REFUSALS:
            return self.refuse(kind, value)
        if kind in ("slow", "drop"):
            time.sleep(float(value or 0))
            self.close_connection = True
            return None
        reply = self.spoken(body, kind)
        with self.server.lock:
            self.server.answered.append(body)
        if kind == "late":
            time.sleep(float(value))
        raw = json.dumps(reply).encode()
        if kind == "broken":
            raw = raw[:-7]
        if kind == "html":
            raw = b"<html>502 Bad Gateway</html>"
        return self.send(200, raw, cut=kind == "cut")

    def refuse(self, kind: str, value: str) -> None:
        headers = (
            {"Retry-After": formatdate(time.time() + 1, usegmt=True) if value == "date" else value} if value else {}
        )
        error = {"message": f"no, {kind}", "code": "insufficient_quota" if kind == "quota" else None}
        self.send(429 if kind == "quota" else int(kind), json.dumps({"error": error}).encode(), headers)

    def spoken(self, body: dict[str, Any], fault: str) -> dict[str, Any]:
        """The reply as a dictionary, with the lies that ``fault`` tells."""
        chat = self.path.endswith("/chat/completions")
        choices = self.server.model.write(body["messages"] if chat else body["prompt"], body)
        for index, choice in enumerate(choices):
            choice["index"] = index
            if chat:
                choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        if fault == "choices":
            choices = [*choices, *choices]
        lie = {"nan": math.nan, "positive": 2.0, "text": "likely"}.get(fault)
        for choice in choices:
            said = choice.get("logprobs")
            if fault == "unsaid":
                choice["logprobs"] = None
            elif said and lie is not None and chat:
                said["content"][0]["logprob"] = lie
            elif said and lie is not None:
                said["token_logprobs"][-1] = lie
            elif said and fault == "short":
                said["tokens"].pop()
        read = sum(len(str(message).split()) for message in body.get("messages", [body.get("prompt")]))
        wrote = sum(len(str(choice).split()) for choice in choices)
        usage = {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
        if fault == "error":
            return {"error": {"message": "upstream is tired"}}
        return {"id": "1", "model": body["model"], "choices": choices, "usage": None if fault == "unpriced" else usage}

    def reply(self, value: dict[str, Any]) -> None:
        self.send(200, json.dumps(value).encode())

    def send(self, status: int, raw: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw[: len(raw) // 2] if cut else raw)
        self.close_connection = cut


if __name__ == "__main__":
    server = Serving(Parrot(), int(sys.argv[1]), pace=float(sys.argv[2]))
    print(server.url, flush=True)
    server.serve_forever()
