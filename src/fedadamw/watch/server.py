"""Serves a run, or a folder of runs, to a browser: read-only, only that folder, to this machine unless told otherwise.

Files are looked up among the runs that were found, never by a path from the request. A request whose Host is another
site's name is refused: that site could read the run through the reader's browser (DNS rebinding).
"""

import errno
import gzip
import ipaddress
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from fedadamw.validation import InputError, check

REST_PER_COST = 10  # a snapshot is not made anew before this many times what it took has passed
MIN_REST_S = 0.5
RUN = "run/"
REFUSAL = b"this server answers to its address, localhost and its machine's own name, and to no other name\n"
OWN = (  # Vega compiles expressions, which is an eval
    "default-src 'none'; connect-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src data:"
)
REPORT = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
COMMON = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Content(NamedTuple):
    """A response's body and type, and which scripts it may run."""

    body: bytes
    kind: str
    policy: str = OWN


class Watcher:
    """Makes the snapshots of the folder `path`, each at most as often as its cost allows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()  # one at a time: they take the processor from the run
        self._made: dict[str, tuple[float, bytes]] = {}  # by name: when the next may be made, and the last

    def snapshot(self, name: str | None) -> bytes | None:
        """Return the JSON of the run `name`, of the folder itself with None; None if there is no such run."""
        with self._lock:
            begin = time.monotonic()
            due, made = self._made.get(name or "", (0.0, b""))
            if begin < due:
                return made
            found = self._describe(name)
            if found is None:
                return None
            made, now = json.dumps(found).encode(), time.monotonic()
            self._made[name or ""] = now + max(MIN_REST_S, REST_PER_COST * (now - begin)), made
            return made

    def report(self, name: str | None) -> bytes | None:
        """Return the page that the run or study wrote; None if it has not."""
        from fedadamw.watch.snapshot import find_runs

        folder = self.path if name is None else find_runs(self.path).get(name)
        try:
            return None if folder is None else (folder / "report.html").read_bytes()
        except OSError:
            return None

    def _describe(self, name: str | None) -> dict[str, Any] | None:
        from fedadamw.watch.snapshot import describe_run, describe_study, find_runs  # imports torch

        runs = find_runs(self.path)
        if name is not None:
            return describe_run(runs[name]) if name in runs else None
        return describe_run(self.path) if "" in runs else describe_study(self.path, runs)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """The HTTP server of one folder. port: 0 for any that is free. `serve_forever` serves it."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, path: Path, host: str, port: int) -> None:
        check(0 <= port < 2**16, f"--port {port}: give 1 to 65535, or 0 for any that is free")
        check(not path.exists() or path.is_dir(), f"{path}: is a file; give the folder of a run or study")
        self.watcher, self.host = Watcher(path), host
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(f"--port {port}: is in use; give another, or 0 for any that is free") from None
            raise InputError(f"--host {host} --port {port}: {error.strerror or error}") from None

    @property
    def url(self) -> str:
        """The address of the page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def allows(self, host: str) -> bool:
        """Whether a request's Host may be one of ours: an address, localhost, or this machine's name."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in {"localhost", self.host.lower(), socket.gethostname().lower()}
        return True


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server
    timeout = 30
    server_version, sys_version = "fedadamw", ""

    def do_GET(self) -> None:
        """Answer GET."""
        try:
            self._answer()
        except (ConnectionError, TimeoutError):  # the browser left
            self.close_connection = True

    do_HEAD = do_GET  # noqa: N815  (http.server's name)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (http.server's name)
        """Print nothing."""

    def _answer(self) -> None:
        if not self.server.allows(self.headers.get("Host", "")):
            self._send(HTTPStatus.FORBIDDEN, Content(REFUSAL, "text/plain"))
            return
        try:
            content = self._find(unquote(urlsplit(self.path).path).lstrip("/"))
        except Exception as error:  # a file that was removed or damaged meanwhile, or a fault of a chart
            message = f"{type(error).__name__}: {error}\n".encode()
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, Content(message, "text/plain"))
            return
        if content is None:
            self._send(HTTPStatus.NOT_FOUND, Content(b"there is no such page\n", "text/plain"))
        else:
            self._send(HTTPStatus.OK, content)

    def _find(self, path: str) -> Content | None:
        """Return what is at `path`; None if there is nothing."""
        from fedadamw.report.vega import vega_script

        fixed: dict[str, Callable[[], Content]] = {
            "": lambda: _read_file("page.html", "text/html"),
            "watch.js": lambda: _read_file("watch.js", "text/javascript"),
            "vega.js": lambda: Content(vega_script().encode(), "text/javascript"),
        }
        if path in fixed:
            return fixed[path]()
        kind, _, rest = path.partition("/")
        name = rest.removeprefix(RUN) if rest.startswith(RUN) else None
        if kind == "run":
            return _read_file("page.html", "text/html")
        if kind == "api" and (rest == "" or name):
            made = self.server.watcher.snapshot(name)
            return None if made is None else Content(made, "application/json")
        if kind == "report" and (rest == "" or name):
            page = self.server.watcher.report(name)
            return None if page is None else Content(page, "text/html", REPORT)
        return None

    def _send(self, status: HTTPStatus, content: Content) -> None:
        body, zipped = content.body, "gzip" in self.headers.get("Accept-Encoding", "")
        if zipped:
            body = gzip.compress(body, compresslevel=1)
        self.send_response(status)
        for name, value in COMMON.items():
            self.send_header(name, value)
        if zipped:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Security-Policy", content.policy)
        self.send_header("Content-Type", f"{content.kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _read_file(name: str, kind: str) -> Content:
    return Content((resources.files("fedadamw.watch") / name).read_bytes(), kind)
