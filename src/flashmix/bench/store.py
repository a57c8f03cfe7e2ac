"""A run's folder: ``run.json`` (what and where) and ``results.jsonl`` (a row a line).

``repeats.jsonl`` holds second measurements of some of the cases, ``search.jsonl`` the trainings
that chose learning rates. Rows are appended and fsynced as they come, so a killed run loses at most
the case it was in. ``run.json`` is always written whole. One run at a time holds a folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shlex
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from flashmix._files import write_whole as write_whole
from flashmix.bench.reading import REPEATS_FILE as REPEATS_FILE
from flashmix.bench.reading import RESULTS_FILE as RESULTS_FILE
from flashmix.bench.reading import RUN_FILE as RUN_FILE
from flashmix.bench.reading import SEARCH_FILE as SEARCH_FILE
from flashmix.bench.reading import Row as Row
from flashmix.bench.reading import read_rows as read_rows
from flashmix.bench.reading import read_run as read_run
from flashmix.errors import FlashmixError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of an OSError: there is no room to write."""
_PART = re.compile(r"\..+\.[a-z0-9_]{8}(\.tmp)?")
"""The names that ``write_whole`` gives to what is not yet whole."""


class RunFolder:
    """A run's folder, held open for appending rows; use as a context manager."""

    def __init__(self, path: Path, results: FileIO, command: str) -> None:
        self.path = path
        self._results = results
        self._command = command
        for file in (RESULTS_FILE, REPEATS_FILE, SEARCH_FILE):
            _drop_half_line(path / file)

    @classmethod
    @contextlib.contextmanager
    def hold(cls, path: Path, command: str = "bench") -> Iterator[RunFolder]:
        """Create or reopen the folder and hold it until the end of the block.

        ``command`` of flashmix is the one that resumes the run.

        Raises:
            FlashmixError: another process holds it, or it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            results = FileIO(path / RESULTS_FILE, "a")
        except OSError as error:
            raise FlashmixError(
                f"cannot write to {path}: {error.strerror}. Choose another --out, or, once there "
                "is room, run the same command again"
            ) from None
        with results:
            try:
                # The results themselves are the lock: a lock file of its own that is removed at
                # the end could be held by two, one of them on the removed file.
                fcntl.flock(results, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FlashmixError(
                    f"another run is writing to {path}; wait for it, or choose another --out"
                ) from None
            _remove_parts(path)
            yield cls(path, results, command)

    def append(self, row: Row, file: str | None = None) -> None:
        """Add a row to the results, or to another ``file``; it is on disk when this returns.

        Raises:
            FlashmixError: it cannot be written, for example because the disk is full; or the row
                has the status "full", which says so of what its worker had to write.
        """
        if row.get("status") == "full":
            raise self.not_written(row["error"])
        with self.writing():
            if file is None:
                _append_line(self._results, row)
                return
            with FileIO(self.path / file, "a") as other:
                _append_line(other, row)

    def write_run(self, run: dict[str, Any]) -> None:
        """Replace run.json.

        Raises:
            FlashmixError: it cannot be written, for example because the disk is full.
        """
        self.write(RUN_FILE, json.dumps(run, indent=2) + "\n")

    def write(self, file: str, content: str) -> None:
        """Replace a ``file`` of the run.

        Raises:
            FlashmixError: it cannot be written, for example because the disk is full.
        """
        with self.writing():
            write_whole(self.path / file, content)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an OSError of the block into the error that says how to go on."""
        try:
            yield
        except OSError as error:
            raise self.not_written(error.strerror) from None

    def not_written(self, reason: str | None) -> FlashmixError:
        """The error that says how to go on after something could not be written."""
        begun = (self.path / RUN_FILE).exists()
        resume = f"flashmix {self._command} --resume {shlex.quote(str(self.path))}"
        advice = (
            f"Finished cases are kept; once there is room: {resume}"
            if begun
            else "Nothing was measured yet; once there is room, run the same command again"
        )
        return FlashmixError(f"cannot write to {self.path}: {reason}. {advice}")


def _append_line(file: FileIO, row: Row) -> None:
    left = (json.dumps(row) + "\n").encode()
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())


def _remove_parts(folder: Path) -> None:
    """Remove what killed writers left: temporary files that no living one holds.

    Those of other names than are written again would stay for ever.
    """
    for path in folder.rglob(".*"):
        if _PART.fullmatch(path.name) and path.is_file():
            with path.open("rb") as file, contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _drop_half_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
