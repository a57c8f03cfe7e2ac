"""Reads the files of a run: rows, or one sentence that names the file, the line and the fault.

A row is written once its line has ended, so what a kill left of the last one is not a row. Whatever
else is not what flashmix writes is refused: every command sees the same rows, or the same sentence.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flashmix._version import __version__
from flashmix.bench import schema
from flashmix.bench.case import BenchmarkCase
from flashmix.errors import ArgumentError

Row = dict[str, Any]

RUN_FILE = "run.json"
RESULTS_FILE = "results.jsonl"
REPEATS_FILE = "repeats.jsonl"
SEARCH_FILE = "search.jsonl"

LARGEST = 1 << 28
"""Bytes of a file; a run's largest so far has under a million."""
DEEPEST = 16
"""Lists and objects within each other; rows have four."""
HUGE = 2**63


def read_rows(
    folder: Path,
    file: str = RESULTS_FILE,
    *,
    run: Mapping[str, Any] | None = None,
    root: Path | None = None,
) -> list[Row]:
    """The rows of a run; what a kill left of the last line is not a row.

    Args:
        folder: of the run.
        file: one of its files that hold a row a line; one that is missing has none.
        run: what its run.json holds; rows that belong to another run are then refused.
        root: as in :func:`read_bytes`.

    Raises:
        ArgumentError: the file cannot be read, or a line is not a row.
    """
    path = folder / file
    try:
        lines = read_bytes(path, root).split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    rows: list[Row] = []
    seen: dict[BenchmarkCase, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = _parsed(line, where)
        if fault := _row_fault(row, file, run):
            raise ArgumentError(f"{where}: {fault}")
        if (
            "mixer" in row
            and (first := seen.setdefault(BenchmarkCase.from_dict(row), number)) != number
        ):
            raise ArgumentError(f"{where}: it is the same case as line {first}; remove one of them")
        rows.append(row)
    return rows


def read_run(folder: Path, *, root: Path | None = None) -> dict[str, Any]:
    """``run.json`` of a run.

    Raises:
        ArgumentError: the folder holds no run, or one that a newer flashmix wrote, or the file
            is not what flashmix writes.
    """
    path = folder / RUN_FILE
    try:
        run = _parsed(read_bytes(path, root), str(path))
    except FileNotFoundError:
        raise ArgumentError(f"{folder} holds no run: {path} is missing") from None
    if version := _newer(run):
        raise ArgumentError(
            f"{path} was written by flashmix {version}, which is newer than this {__version__}; "
            "upgrade flashmix to read it"
        )
    if fault := schema.run_fault(run):
        raise ArgumentError(f"{path}: {fault}")
    content: dict[str, Any] = run
    return content


def read_json(path: Path, check: Callable[[Any], str | None], root: Path | None = None) -> Any:
    """Another file of a run, which holds one value of JSON; None where it is missing.

    Raises:
        ArgumentError: it cannot be read, or ``check`` finds a fault.
    """
    try:
        content = _parsed(read_bytes(path, root), str(path))
    except FileNotFoundError:
        return None
    if fault := check(content):
        raise ArgumentError(f"{path}: {fault}")
    return content


def read_bytes(path: Path, root: Path | None = None) -> bytes:
    """All of a regular file, without waiting for whatever else has its name.

    ``root``: a folder above it, below which no part of the path may be a link; it is opened part
    by part, so that none can become one in between.

    Raises:
        ArgumentError: it cannot be read, is no regular file, or is larger than any run's.
        FileNotFoundError: there is none.
    """
    try:
        handle = _open(path, root)
        try:
            kind = os.fstat(handle).st_mode
            if not stat.S_ISREG(kind):
                what = "a folder" if stat.S_ISDIR(kind) else "a pipe or a device"
                raise ArgumentError(f"cannot read {path}: it is {what}, not a file")
            with os.fdopen(handle, "rb", closefd=False) as file:
                data = file.read(LARGEST + 1)
        finally:
            os.close(handle)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is missing") from None
    except OSError as error:
        link = root is not None and error.errno == errno.ELOOP
        reason = "it is a link, which is not followed" if link else error.strerror
        raise ArgumentError(f"cannot read {path}: {reason}") from None
    if len(data) > LARGEST:
        raise ArgumentError(f"cannot read {path}: it has more than {LARGEST >> 20} MiB")
    return data


def _open(path: Path, root: Path | None) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    if root is None:
        return os.open(path, flags)
    *folders, name = path.relative_to(root).parts
    place = os.open(root, flags | os.O_DIRECTORY)
    try:
        for folder in folders:
            inner = os.open(folder, flags | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
            os.close(place)
            place = inner
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=place)
    finally:
        os.close(place)


def _parsed(text: bytes, where: str) -> Any:
    """A value of JSON that holds nothing which another step would stumble over."""
    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=_object, parse_int=_whole, parse_constant=float
        )
        _check_plain(value)
    except UnicodeDecodeError:
        raise ArgumentError(f"{where} is not UTF-8 text") from None
    except RecursionError:
        raise ArgumentError(f"{where}: lists are nested too deep") from None
    except json.JSONDecodeError as error:
        raise ArgumentError(f"{where} is not JSON: {error}") from None
    except ValueError as error:
        raise ArgumentError(f"{where}: {error}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice in an object")
    return found


def _whole(text: str) -> int:
    if len(text) > 20 or not -HUGE <= (value := int(text)) < HUGE:
        raise ValueError(f"a whole number of {len(text)} digits is too large")
    return value


def _check_plain(value: Any, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise ValueError(f"lists are nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        for name, one in value.items():
            _check_plain(name, depth)
            _check_plain(one, depth + 1)
    elif isinstance(value, list):
        for one in value:
            _check_plain(one, depth + 1)
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"text holds half of a surrogate pair: {value!r}") from None


def _newer(run: Any) -> str | None:
    """The version that wrote a run, where this one may not know all that it holds."""
    machine = run.get("machine") if isinstance(run, dict) else None
    version = machine.get("flashmix") if isinstance(machine, dict) else None
    if not isinstance(version, str):
        return None
    theirs, ours = (_release(text) for text in (version, __version__))
    return version if theirs is not None and ours is not None and theirs > ours else None


def _release(version: str) -> tuple[int, ...] | None:
    found = re.match(r"(\d{1,9})\.(\d{1,9})", version)
    return tuple(map(int, found.groups())) if found else None


def _row_fault(row: Any, file: str, run: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a row by itself, or as one of a run."""
    if not isinstance(row, dict):
        return f"a row must be an object, got {type(row).__name__}"
    suite = run["suite"] if run else row.get("suite")
    if file == SEARCH_FILE:
        return schema.trial_fault(row, suite) or _unlisted(row, run)
    if suite not in schema.TRAININGS:
        return schema.case_fault(row) or _foreign(row, suite)
    return schema.training_fault(row, suite) or _foreign(row, suite) or _unlisted(row, run)


def _foreign(row: Row, suite: Any) -> str | None:
    own = row.get("suite", suite)
    return None if own == suite else f"its suite is {own!r}, the run's {suite!r}"


def _unlisted(row: Row, run: Mapping[str, Any] | None) -> str | None:
    if run is None or row["mixers"] in run["experiment"]["mixers"]:
        return None
    return f"mixers {row['mixers']!r} are not among those of {RUN_FILE}"
