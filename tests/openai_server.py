"""A real HTTP server on loopback that speaks chat completions and completions, streamed or whole, and can misbehave."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Model = Callable[[dict[str, Any]], "tuple[str, int, int]"]
Fault = Callable[[int, dict[str, Any]], "dict[str, Any] | None"]


def toy(body: dict[str, Any]) -> tuple[str, int, int]:
    """A deterministic model: describes by the first quoted tokens of the measurements, rates by counting letters."""
    prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    if "prompt" in body:
        text = " yes" if "Fits:" in prompt[-8:] else " letters"
    elif "<items>" in prompt:
        listed = re.search(r"<items>(.*)</items>", prompt, re.S).group(1)
        text = json.dumps({"ratings": [len(line) % 11 for line in listed.strip().splitlines()]})
    else:
        found = re.findall(r'"text": "([^"\\]*)"', prompt)[:3]
        words = ", ".join(f'"{w}"' for w in found) or "nothing"
        said = {"title": f"toy {len(prompt) % 97}", "description": f"Active at {words}.", "confidence": 0.5}
        text = json.dumps(said)
    return text, len(prompt) // 4, len(text) // 4


class OpenAIServer:
    """Serves ``model`` until closed; ``fault(number, body)`` may spoil an answer, see ``_spoil``."""

    def __init__(self, model: Model = toy) -> None:
        self.model = model
        self.fault: Fault = lambda n, body: None
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.answered = 0
        self.busiest = 0
        self._busy = 0
        self._lock = threading.Lock()
        self._release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.times.append(time.monotonic())
                    outer._busy += 1
                    outer.busiest = max(outer.busiest, outer._busy)
                try:
                    outer._answer(self, number, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client gave up waiting
                finally:
                    with outer._lock:
                        outer._busy -= 1

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self._thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def __enter__(self) -> OpenAIServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._release.set()
        self.http.shutdown()
        self.http.server_close()
        self._thread.join(timeout=10)

    def _answer(self, handler: BaseHTTPRequestHandler, number: int, body: dict[str, Any]) -> None:
        fault = self.fault(number, body) or {}
        if "hang" in fault:
            self._release.wait(fault["hang"])
        if "status" in fault:
            data = json.dumps({"error": {"message": f"planted {fault['status']}"}}).encode()
            self._send(handler, fault["status"], data, fault.get("headers", {}))
            return
        if "raw" in fault:
            self._send(handler, 200, fault["raw"], {})
            return
        text, prompt, completion = self.model(body)
        text = fault.get("text", text)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        chat = "messages" in body
        if body.get("stream"):
            self._stream(handler, text, usage, chat, cut="half" in fault)
        else:
            choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            answer = {
                **_head(chat, False),
                "choices": [{"index": 0, "finish_reason": "stop", **choice}],
                "usage": usage,
            }
            data = json.dumps(answer).encode()
            if "half" in fault:
                handler.send_response(200)
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                handler.wfile.write(data[: len(data) // 2])
                handler.close_connection = True
                return
            self._send(handler, 200, data, {})
        with self._lock:
            self.answered += 1

    def _send(self, handler: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def _stream(self, handler: BaseHTTPRequestHandler, text: str, usage: Any, chat: bool, cut: bool) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
        for n, piece in enumerate(pieces):
            if cut and n >= len(pieces) // 2:
                return  # the connection ends where the text does not
            choice = {"delta": {"content": piece}} if chat else {"text": piece}
            self._event(handler, {**_head(chat, True), "choices": [{"index": 0, "finish_reason": None, **choice}]})
        last = {"delta": {}} if chat else {"text": ""}
        self._event(handler, {**_head(chat, True), "choices": [{"index": 0, "finish_reason": "stop", **last}]})
        self._event(handler, {**_head(chat, True), "choices": [], "usage": usage})
        handler.wfile.write(b"data: [DONE]\n\n")

    @staticmethod
    def _event(handler: BaseHTTPRequestHandler, value: Any) -> None:
        handler.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        handler.wfile.flush()


def _head(chat: bool, stream: bool) -> dict[str, Any]:
    name = ("chat.completion.chunk" if stream else "chat.completion") if chat else "text_completion"
    return {"id": "c", "object": name, "created": 0, "model": "served"}
