"""A small Hub on loopback for the client that is installed: repositories, large files, pull requests, and faults.

It speaks what huggingface_hub asks of the Hub when prompts are shared: repositories are created, filled, listed,
searched and downloaded, with tokens, private and gated repositories. `hub_git` keeps the repositories, `hub_cards`
checks cards, `hub_access` knows who may do what, `hub_changes` and `hub_api` answer; here are the sockets, the storage
and the faults. As on the real Hub, large files lie on another host (here: another port), which takes signed addresses
and no token.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import hub_api
from hub_access import Reply, Request
from hub_git import Refusal, Repository


MAX_BODY = 256 << 20
MAX_HELD = 1 << 30


@dataclass
class Fault:
    """What goes wrong with the next requests it fits. It fits `times` requests, after `after` that went well.

    Args:
        path (`str`): A regular expression, searched in path and query. The storage's paths begin with `/storage/`.
        method (`str`): `"GET"`, `"HEAD"`, …; any if empty.
        times (`int`): How many requests it spoils.
        after (`int`): How many fitting requests it lets through before.
        status (`int`): Answers with this error. 429 brings `Retry-After: 0` unless `headers` say otherwise.
        message (`str`): The words of that error.
        headers (`dict`): Set in the answer over what would be sent (a wrong `ETag`, `X-Linked-Size`, …); `None`
            leaves one out.
        cut_after (`int`): Sends so many bytes of the body and closes the connection.
        cut_request_after (`int`): Reads so many bytes of the request's body and closes the connection.
        truncate (`int`): Sends only so many bytes of the body, with a `Content-Length` that says so.
        flip (`int`): Changes the byte at this place of the body.
        delay (`float`): Seconds before the answer.
        used (`int`): How often it has struck.
    """

    path: str = ""
    method: str = ""
    times: int = 1
    after: int = 0
    status: int | None = None
    message: str = "The Hub is told to fail."
    headers: Mapping[str, str | None] = field(default_factory=dict)
    cut_after: int | None = None
    cut_request_after: int | None = None
    truncate: int | None = None
    flip: int | None = None
    delay: float = 0.0
    used: int = 0


@dataclass
class User:
    name: str
    token: str
    orgs: tuple[str, ...]
    role: str


def spoiled(reply: Reply, fault: Fault) -> Reply:
    """A reply as the fault makes it."""
    raw = reply.raw[: fault.truncate]
    if fault.flip is not None and raw:
        place = fault.flip % len(raw)
        raw = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
    given = {name.lower() for name in fault.headers}
    kept = {name: value for name, value in reply.headers.items() if name.lower() not in given}
    return Reply(raw, reply.status, {"Content-Type": reply.type} | kept | dict(fault.headers))


class Cut(Exception):
    """The connection is to be closed here and now."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    timeout = 60
    server: Port

    def setup(self) -> None:
        super().setup()
        self.server.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.server.hub.connections.discard(self.connection)
        super().finish()

    def answer(self) -> None:
        hub = self.server.hub
        request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        # The client asks this once a process for its own ends; a test that counts requests should not see it.
        unseen = request.route == "/api/agent-harnesses"
        fault = None if unseen else hub.fault_for(request)
        if not unseen:
            hub.requests.append(request)
        try:
            request.body = self.read_body(fault.cut_request_after if fault else None)
            if fault:
                hub.stopped.wait(fault.delay)
            reply = self.reply_to(request, fault)
            request.status = reply.status
            self.send(reply, fault)
        except Cut:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def read_body(self, limit: int | None) -> bytes:
        if limit is not None:
            self.rfile.read(limit)
            raise Cut
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            length = int(self.headers.get("Content-Length") or 0)
            if length > MAX_BODY:
                raise Cut
            return self.rfile.read(length)
        parts: list[bytes] = []
        while size := int(self.rfile.readline(64).split(b";")[0] or b"0", 16):
            if size + sum(map(len, parts)) > MAX_BODY:
                raise Cut
            parts.append(self.rfile.read(size))
            self.rfile.readline(64)
        self.rfile.readline(64)
        return b"".join(parts)

    def reply_to(self, request: Request, fault: Fault | None) -> Reply:
        hub = self.server.hub
        try:
            if fault and fault.status:
                headers = {"Retry-After": "0"} if fault.status == 429 else {}
                raise Refusal(fault.status, fault.message, **headers)
            reply = hub.store(request) if self.server.storage else hub_api.respond(hub, request)
        except Refusal as refusal:
            headers = refusal.headers | {"X-Error-Message": refusal.message.replace("\n", " ")}
            reply = Reply({"error": refusal.message}, refusal.status, headers)
        except Exception:
            # A mistake in the server itself: the client gets a 500, the test finds it in `hub.errors`.
            hub.errors.append(traceback.format_exc())
            reply = Reply({"error": "Internal Server Error"}, 500)
        return spoiled(reply, fault) if fault else reply

    def send(self, reply: Reply, fault: Fault | None) -> None:
        raw = reply.raw
        headers: dict[str, str | None] = {"Content-Type": reply.type, "Content-Length": str(len(raw))}
        headers |= {"X-Request-Id": "Root=1-loopback", **reply.headers}
        self.close_connection |= headers["Content-Length"] is None
        self.send_response(reply.status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value.encode("ascii", "replace").decode())
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.cut_after is not None:
            self.wfile.write(raw[: fault.cut_after])
            raise Cut
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Port(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: HubServer, port: int, storage: bool) -> None:
        self.hub, self.storage = hub, storage
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that went away is what many tests are about; all else is a mistake in the test.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class HubServer:
    """A Hub on loopback. A context manager; it runs in threads of its own and keeps everything in memory.

    Attributes:
        url (`str`): Its address, for `HF_ENDPOINT`.
        repos (`dict[tuple[str, str], Repository]`): The repositories by type (`"model"`, …) and id.
        requests (`list[Request]`): Every request so far, those to the storage (paths `/storage/…`) included.
        faults (`list[Fault]`): What is to go wrong; the first that fits is taken.
        objects (`dict[str, bytes]`): The storage: content by its sha256.
        errors (`list[str]`): Tracebacks of mistakes in the server itself. The fixture `hub` fails on one.
        page_size (`int`): How many entries a page of a listing has at most.
        part_size (`int`): Larger files are uploaded in parts of this size, in bytes.
    """

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.errors: list[str] = []
        self.page_size = 1000
        self.part_size = 16 << 20
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self.connections: set[socket.socket] = set()
        self._secret = secrets.token_bytes(16)
        self._ports = [0, 0]
        self._running: list[Port] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    def start(self) -> HubServer:
        """Listens; after `stop`, at the same address as before."""
        self.stopped.clear()
        self._running = [Port(self, port, storage) for port, storage in zip(self._ports, (False, True), strict=True)]
        self._ports = [port.server_address[1] for port in self._running]
        for port in self._running:
            threading.Thread(target=port.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Is unreachable from now on; what it holds stays."""
        self.stopped.set()
        for port in self._running:
            port.shutdown()
            port.server_close()
        self._running = []
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the other side was first

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def add_user(self, name: str, token: str, orgs: tuple[str, ...] = (), role: str = "write") -> None:
        """Lets somebody in. `role="read"` is a token that can change nothing."""
        self.users[token] = User(name, token, tuple(orgs), role)

    def add_repo(
        self,
        id: str,
        files: Mapping[str, bytes | str] | None = None,
        *,
        type: str = "model",
        private: bool = False,
        gated: bool = False,
    ) -> Repository:
        """Puts a repository there, with files that nothing has checked; `.add(files)` of it makes further commits."""
        with self.lock:
            repo = self.repos[type, id] = Repository(type, id, private, gated)
            if files:
                repo.add(files)
            return repo

    def fault_for(self, request: Request) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.used < fault.times and fault.method in ("", request.method):
                    if re.search(fault.path, request.path) is None:
                        continue
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.used += 1
                    return fault
        return None

    def signed(self, path: str) -> str:
        """An address of the storage that can be used without a token."""
        return f"http://127.0.0.1:{self._ports[1]}/storage/{path}?signature={self._signature(path)}"

    def _signature(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), "sha256").hexdigest()[:32]

    def keep(self, oid: str, data: bytes) -> None:
        """Puts an object in the storage if it is what its name says."""
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, f"The content does not match its checksum {oid}.")
        with self.lock:
            if sum(map(len, self.objects.values())) + len(data) > MAX_HELD:
                raise Refusal(507, "The storage is full.")
            self.objects[oid] = data

    def store(self, request: Request) -> Reply:
        """Answers for the storage: GET and PUT of a signed address."""
        path = request.route.removeprefix("/storage/")
        if "authorization" in request.headers:
            raise Refusal(400, "Only one auth mechanism allowed: the address is signed, send no Authorization header.")
        if not hmac.compare_digest(self._signature(path), request.query.get("signature", [""])[0]):
            raise Refusal(403, "The signature of this address does not match.")
        oid, _, part = path.partition("/")
        if request.method == "PUT" and part:
            with self.lock:
                self.parts[oid, int(part)] = request.body
            return Reply(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
        if request.method == "PUT":
            self.keep(oid, request.body)
            return Reply(headers={"ETag": f'"{oid}"'})
        if request.method not in ("GET", "HEAD") or oid not in self.objects:
            raise Refusal(404, "The specified key does not exist.")
        return hub_api.content(request, self.objects[oid], {"ETag": f'"{oid}"'})


def hub_environment(hub: HubServer, home: Path, token: str | None = "hf_someone") -> dict[str, str]:
    """The environment variables that point a process of its own to the server: `os.environ | hub_environment(…)`."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN": token or "",
        # huggingface_hub 2.4.0 uploads large files by xet whenever hf_xet is installed; no answer of a server makes
        # it take its other documented way, LFS, which is the one spoken here.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1",
    }
