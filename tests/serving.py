"""Servers on loopback: one that answers as a test says, with any fault, and `transformers serve` with a zoo model."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def decoded(url: str) -> np.ndarray:
    """The pixels of a data URL."""
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image)


# Nothing on loopback goes through a proxy that the environment names.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Request:
    """A request as it came in."""

    path: str
    headers: dict[str, str]
    raw: bytes
    time: float = field(default_factory=time.monotonic)

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)

    @property
    def url(self) -> str:
        return self.body["messages"][0]["content"][0]["image_url"]["url"]

    @property
    def text(self) -> str:
        return self.body["messages"][0]["content"][1]["text"]

    @property
    def pixels(self) -> np.ndarray:
        return decoded(self.url)


@dataclass
class Reply:
    """What goes back: after `delay` seconds, byte by byte if it trickles, or nothing at all if it is dropped."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False
    trickle: float = 0.0

    @property
    def raw(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


Respond = Callable[[Request], Reply]


def completion(text: Any, **choice: Any) -> Reply:
    """A chat completion."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}} | choice
    return Reply({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: LoopbackServer

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.path, {name.lower(): value for name, value in self.headers.items()}, raw)
        with self.server.counting(request):
            reply = self.server.respond(request)
            self.server.stopped.wait(reply.delay)
        if reply.drop:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(reply.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(reply.raw))} | reply.headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        step = 1 if reply.trickle else max(1, len(reply.raw))
        for start in range(0, len(reply.raw), step):
            self.wfile.write(reply.raw[start : start + step])
            self.wfile.flush()
            self.server.stopped.wait(reply.trickle)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class LoopbackServer(ThreadingHTTPServer):
    """Answers as `respond` says, and keeps every request. A context manager; it runs in threads of its own."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond = respond
        self.requests: list[Request] = []
        self.most = self.now = 0
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextlib.contextmanager
    def counting(self, request: Request) -> Iterator[None]:
        with self._lock:
            self.requests.append(request)
            self.now += 1
            self.most = max(self.most, self.now)
        yield
        with self._lock:
            self.now -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that went away is what many of these tests are about; all else is a mistake in the test.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def __enter__(self) -> LoopbackServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()


def forward(upstream: str) -> Respond:
    """Passes every request on to another server."""

    def respond(request: Request) -> Reply:
        headers = {key: value for key, value in request.headers.items() if key in ("content-type", "authorization")}
        passed = urllib.request.Request(upstream + request.path, request.raw, headers)
        try:
            with OPENER.open(passed, timeout=60) as response:
                return Reply(response.read(), response.status)
        except urllib.error.HTTPError as error:
            return Reply(error.read(), error.code)

    return respond


def faulty(faults: dict[str, list[Reply]], then: Respond) -> Respond:
    """Gives the faults listed for a question first, one a request, and then what `then` gives."""
    left = {question: list(replies) for question, replies in faults.items()}

    def respond(request: Request) -> Reply:
        replies = left.get(request.text)
        return replies.pop(0) if replies else then(request)

    return respond


@contextlib.contextmanager
def transformers_serve(model: Path, log: Path, limit: float = 180) -> Iterator[str]:
    """Runs `transformers serve` with a model of a local folder; gives its address. It stops with the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [
        sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(model),
        "--host", "127.0.0.1", "--port", str(port), "--device", "cpu",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            start = time.monotonic()
            while not _healthy(url):
                if process.poll() is not None or time.monotonic() - start > limit:
                    raise RuntimeError(
                        f"`transformers serve` did not start: {log.read_text(errors='replace')[-3000:]}"
                    )
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _healthy(url: str) -> bool:
    try:
        with OPENER.open(f"{url}/health", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False
