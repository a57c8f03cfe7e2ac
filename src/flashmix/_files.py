"""Files that are never seen half written."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content``, so that a reader or a crash never sees half of it.

    What a writer of the same file left behind when it was killed is removed.

    Raises:
        OSError: it cannot be written, for example because the disk is full; it names ``path``.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        _remove_left(path)
        handle, temporary = _locked_temporary(path)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
                Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def _locked_temporary(path: Path) -> tuple[int, str]:
    """A new file beside ``path``, locked for as long as its writer lives."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with contextlib.suppress(OSError):  # a file system without locks keeps what is left
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else another writer took it for left behind
            return handle, name
        os.close(handle)


def _remove_left(path: Path) -> None:
    """Remove temporary files of ``path`` that no writer holds."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            handle = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink(missing_ok=True)
        except OSError:
            continue
        finally:
            os.close(handle)
