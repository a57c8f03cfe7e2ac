"""The runs of a folder as pages on this machine: read-only, and for this machine alone.

A request names a run by its path below the folder, which is looked up among the runs found there;
nothing else of a request ever becomes a path. No file is read through a link.
"""

from __future__ import annotations

import functools
import io
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import socket
from typing import Any
from urllib.parse import parse_qs, urlencode

from flashmix._text import one_line, visible
from flashmix.bench.reading import REPEATS_FILE, RESULTS_FILE, RUN_FILE, SEARCH_FILE
from flashmix.bench.training.examples import EXAMPLES_FILE
from flashmix.errors import ArgumentError
from flashmix.report.html.document import document, theme_button
from flashmix.report.html.markup import Markup, tag
from flashmix.report.html.page import PageRun, page

LOOPBACK = "127.0.0.1"


FILES = (RUN_FILE, RESULTS_FILE, REPEATS_FILE, SEARCH_FILE, EXAMPLES_FILE)


NAMES = frozenset({LOOPBACK, "localhost"})
"""What a browser of this machine may call the server: another name is another site's trick."""


CLIENTS = 64
"""Requests answered at a time; as many as may wait for their turn, which WAITING bounds."""


WAITING = 256


SECONDS = 10.0
"""For a client to send its request, and then to take the answer."""


Stamp = tuple[tuple[int, ...] | None, ...]


def find_runs(folder: Path) -> dict[str, Path]:
    """The folders of runs below ``folder`` by their path from there, as text; no link is followed.

    Two paths that look alike as text get different names.
    """
    root = folder.resolve()
    found: dict[str, Path] = {}
    for place, folders, files in os.walk(root):
        folders.sort()
        if RUN_FILE in (*files, *folders):
            name = one_line(Path(place).relative_to(root).as_posix())
            while name in found:
                name += "'"
            found[name] = Path(place)
    return dict(sorted(found.items()))


def _stamp(path: Path) -> Stamp:
    """What changes with any file of a run."""
    found: list[tuple[int, ...] | None] = []
    for name in FILES:
        try:
            state = (path / name).lstat()
        except OSError:
            found.append(None)
        else:
            found.append((state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return tuple(found)


@functools.lru_cache(maxsize=8)
def _rendered(runs: tuple[tuple[str, Path, Stamp], ...], root: Path) -> str:
    """The page of runs; kept until one of their files changes."""
    return page([PageRun.read(path, name, root) for name, path, _ in runs])


@functools.lru_cache(maxsize=4096)
def _line(name: str, path: Path, stamp: Stamp, root: Path) -> Line:
    """A run in the list; kept until one of its files changes."""
    return read_line(name, path, root)


class Server(ThreadingHTTPServer):
    """Serves the runs below ``folder`` at the loopback address, at a free port where it is 0.

    A client that is slower than ``seconds`` is dropped, so that it keeps none of the threads.

    Raises:
        ArgumentError: ``folder`` is no folder.
        OSError: the port is taken.
    """

    daemon_threads = True
    request_queue_size = WAITING

    def __init__(self, folder: Path, port: int = 0, *, seconds: float = SECONDS) -> None:
        if not folder.is_dir():
            raise ArgumentError(f"{folder} is not a folder; name one that holds runs")
        self.folder = folder.resolve()
        self.title = str(folder)
        self.seconds = seconds
        self.reading = threading.Lock()
        """Pages are made one at a time: who asks for the same one finds it made."""
        self._places = threading.BoundedSemaphore(CLIENTS)
        super().__init__((LOOPBACK, port), Handler)

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, once one of them is free."""
        self._places.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and let the next client in."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away or was too slow; anything else is a fault."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Arriving(io.RawIOBase):
    """What a client sends, until a deadline that no byte of it puts off."""

    def __init__(self, connection: socket, seconds: float) -> None:
        self._connection = connection
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD: the list of runs, a run, and several side by side."""

    server: Server
    server_version = "flashmix"
    sys_version = ""

    def setup(self) -> None:
        """Give the client so long to send its request, and as long to take the answer."""
        super().setup()
        self.rfile = io.BufferedReader(_Arriving(self.connection, self.server.seconds))

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
        self.connection.settimeout(self.server.seconds)  # for all of the answer
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
            return HTTPStatus.FORBIDDEN, "text/plain", "flashmix serves this machine only\n"
        path, _, query = self.path.partition("?")
        if path not in ("/", "/runs"):
            return HTTPStatus.NOT_FOUND, "text/plain", "no such page; the runs are at /\n"
        with self.server.reading:
            runs = find_runs(self.server.folder)
            if path == "/":
                return HTTPStatus.OK, "text/html", self._list(runs)
            names = list(dict.fromkeys(parse_qs(query).get("run", [])))
            if unknown := [name for name in names if name not in runs]:
                return HTTPStatus.NOT_FOUND, "text/plain", f"no such run: {unknown[0]}\n"
            if not names:
                return HTTPStatus.BAD_REQUEST, "text/plain", "choose a run at /\n"
            return self._runs([(name, runs[name]) for name in names])

    def _list(self, runs: dict[str, Path]) -> str:
        root = self.server.folder
        lines = [_line(name, path, _stamp(path), root) for name, path in runs.items()]
        return listing(self.server.title, lines)

    def _runs(self, chosen: Sequence[tuple[str, Path]]) -> tuple[HTTPStatus, str, str]:
        stamped = tuple((name, path, _stamp(path)) for name, path in chosen)
        try:
            text = _rendered(stamped, self.server.folder)
        except Exception as error:  # whatever a file holds, the other runs are still served
            message = f"cannot show {', '.join(name for name, _ in chosen)}: {error}\n"
            return HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", visible(message)
        return HTTPStatus.OK, "text/html", text


@dataclass(frozen=True)
class Line:
    """A run in the list: its name, then what is said of it, or why it cannot be read."""

    name: str
    cells: tuple[str, ...]


def read_line(name: str, path: Path, root: Path) -> Line:
    """The line of the run in ``path``, which lies below ``root``."""
    try:
        run = PageRun.read(path, name, root)
        bad = sum(row["status"] != "ok" for row in run.rows)
        started = str(run.about.get("started") or "")[:16]
        return Line(name, (run.title, started, str(len(run.rows)), str(bad)))
    except Exception as error:  # one run, whatever is in it, never takes the others from the list
        return Line(name, (f"cannot be read: {one_line(str(error))}", "", "", ""))


def listing(folder: str, runs: Sequence[Line]) -> str:
    """A table of ``runs``, each with a box to choose it."""
    lines = [_shown(line) for line in runs]
    columns = ("compare", "run", "suite and device", "started (UTC)", "rows", "not ok")
    head = tag("tr", *(tag("th", column, scope="col") for column in columns))
    table = tag("table", tag("thead", head), tag("tbody", *lines), aria_label="Runs")
    form = tag(
        "form",
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Runs"),
        tag("p", tag("button", "Show the chosen side by side"), class_="tools"),
        action="/runs",
        method="get",
    )
    top = [tag("p", "flashmix", class_="brand"), tag("h1", f"Runs in {folder}"), theme_button()]
    empty = tag(
        "p", "No run in this folder yet: flashmix bench quick makes one in about three minutes."
    )
    body = [tag("section", form if lines else empty, class_="listing")]
    return document("flashmix: runs", tag("header", *top, class_="top"), body)


def _shown(line: Line) -> Markup:
    address = "/runs?" + urlencode({"run": line.name})
    label = f"Compare {line.name}"
    box = tag("input", type="checkbox", name="run", value=line.name, aria_label=label)
    return tag(
        "tr",
        tag("td", box),
        tag("th", tag("a", line.name, href=address), scope="row"),
        *(tag("td", cell) for cell in line.cells),
    )
