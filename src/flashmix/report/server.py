"""The runs of a folder as pages on this machine: read-only, and for this machine alone.

A request names a run by its path below the folder, which is looked up among the runs found there;
nothing else of a request ever becomes a path.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flashmix.bench.store import REPEATS_FILE, RESULTS_FILE, RUN_FILE
from flashmix.errors import ArgumentError
from flashmix.report.page import PageRun, page
from flashmix.report.page.listing import listing

LOOPBACK = "127.0.0.1"
FILES = (RUN_FILE, RESULTS_FILE, REPEATS_FILE)
NAMES = frozenset({LOOPBACK, "localhost"})
"""What a browser of this machine may call the server: another name is another site's trick."""


def find_runs(folder: Path) -> dict[str, Path]:
    """The folders of runs below ``folder`` by their path from there; links do not lead outside."""
    root = folder.resolve()
    found = {}
    for file in sorted(root.rglob(RUN_FILE)):
        files = (file.parent / name for name in FILES)
        if all(one.resolve().is_relative_to(root) for one in files):
            found[file.parent.relative_to(root).as_posix()] = file.parent
    return found


@functools.lru_cache(maxsize=8)
def _rendered(runs: tuple[tuple[str, Path, float], ...]) -> str:
    """The page of runs; kept until one of their files changes."""
    return page([PageRun.read(path, name) for name, path, _ in runs])


def _stamped(name: str, path: Path) -> tuple[str, Path, float]:
    files = (path / name for name in FILES)
    return name, path, max(file.stat().st_mtime for file in files if file.exists())


class Server(ThreadingHTTPServer):
    """Serves the runs below ``folder`` at the loopback address, at a free port where it is 0.

    Raises:
        ArgumentError: ``folder`` is no folder.
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        if not folder.is_dir():
            raise ArgumentError(f"{folder} is not a folder; name one that holds runs")
        self.folder = folder
        super().__init__((LOOPBACK, port), Handler)

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://{LOOPBACK}:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD: the list of runs, a run, and several side by side."""

    server: Server
    server_version = "flashmix"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with a page."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer with a page's headers."""
        self._answer(body=False)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: a terminal is for what matters."""

    def _answer(self, *, body: bool) -> None:
        status, kind, text = self._page()
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _page(self) -> tuple[HTTPStatus, str, str]:
        """Status, type and text of the answer."""
        host = (self.headers.get("Host") or "").partition(":")[0]
        if host not in NAMES:
            return HTTPStatus.FORBIDDEN, "text/plain", "flashmix serves this machine alone\n"
        address = urlsplit(self.path)
        runs = find_runs(self.server.folder)
        if address.path == "/":
            return HTTPStatus.OK, "text/html", listing(str(self.server.folder), runs)
        if address.path != "/runs":
            return HTTPStatus.NOT_FOUND, "text/plain", "no such page; the runs are at /\n"
        names = list(dict.fromkeys(parse_qs(address.query).get("run", [])))
        if unknown := [name for name in names if name not in runs]:
            return HTTPStatus.NOT_FOUND, "text/plain", f"no such run: {unknown[0]}\n"
        if not names:
            return HTTPStatus.BAD_REQUEST, "text/plain", "choose a run at /\n"
        return self._runs([(name, runs[name]) for name in names])

    def _runs(self, chosen: Sequence[tuple[str, Path]]) -> tuple[HTTPStatus, str, str]:
        try:
            text = _rendered(tuple(_stamped(name, path) for name, path in chosen))
        except Exception as error:  # whatever a file holds, the other runs are still served
            message = f"cannot show {', '.join(name for name, _ in chosen)}: {error!r}\n"
            return HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", message
        return HTTPStatus.OK, "text/html", text
