"""A chat endpoint that misbehaves as it is told, request by request."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def answer(text: str | None, finish: str = "stop") -> dict[str, Any]:
    """A well-formed reply."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


Script = list[Any] | Callable[[bytes, int], Any]


class FaultServer(ThreadingHTTPServer):
    """Serves ``script`` by ordinal, then "real" forever; or what ``script(body, how often it came before)`` says.

    Entries: a text; an integer status; ``(429, seconds)``; a dict sent as it is; ``!reset``, ``!hang``, ``!broken``.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script, latency: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.latency, self.lock = script, latency, threading.Lock()
        self.bodies: list[bytes] = []
        self.keys: set[str] = set()
        self.running = self.most = 0
        self.released = threading.Event()
        self.arrived = threading.Event()  # never set: a wait on it is a poll

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that gave up are part of the play."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the client died while it was sending
            self.close_connection = True
            return
        server = self.server
        with server.lock:
            number, before = len(server.bodies), server.bodies.count(body) if callable(server.script) else 0
            server.bodies.append(body)
            server.keys.add(self.headers.get("Authorization", ""))
            server.running += 1
            server.most = max(server.most, server.running)
        try:
            time.sleep(server.latency)
            script = server.script
            self._play(script(body, before) if callable(script) else script[number] if number < len(script) else "real")
        finally:
            with server.lock:
                server.running -= 1

    def _play(self, outcome: Any) -> None:
        if outcome == "!reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif outcome == "!hang":
            self.server.released.wait(20)
            self.close_connection = True
        elif outcome == "!broken":
            self._send(200, b'{"id": "1", "choices": [')
        elif isinstance(outcome, tuple):
            self._send(outcome[0], b"{}", {"Retry-After": str(outcome[1])})
        elif isinstance(outcome, int):
            self._send(outcome, json.dumps({"error": {"message": f"key {self.headers.get('Authorization')}"}}).encode())
        elif isinstance(outcome, dict) and "error" in outcome:
            self._send(400, json.dumps(outcome).encode())
        else:
            self._send(200, json.dumps(answer(outcome) if isinstance(outcome, str) else outcome).encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(script: Script, latency: float = 0.0) -> Iterator[FaultServer]:
    """The server, running."""
    server = FaultServer(script, latency)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
