"""A suite from Python: run it, get the rows."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashmix.bench.repeat import measured_rows
from flashmix.bench.runner import Listener, run_suite
from flashmix.bench.store import Row, read_run
from flashmix.bench.suites import Grid


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        about: what run.json holds: machine, versions, settings.
        rows: one for each case; reports and charts are made of them.
    """

    about: dict[str, Any]
    rows: list[Row]


def measure(
    suite: str,
    grid: Grid | None = None,
    out: Path | None = None,
    *,
    threads: int | None = None,
    time_limit: float = 60.0,
    listener: Listener = lambda progress: None,
) -> Run:
    """Run a suite and return its rows.

        >>> run = measure("efficient", Grid(seq_lens=(64, 256, 1024)))
        >>> print(flashmix.report.markdown(run.about, run.rows))

    Args:
        suite: a name of SUITES.
        grid: what to change of it; nothing when None.
        out: a folder to keep the run in, as ``flashmix bench`` does; nothing is kept when None.
        threads, time_limit, listener: see :func:`run_suite`.

    Raises:
        ArgumentError: an unknown suite, or a folder that holds a run.
        FlashmixError: the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="flashmix-") as temporary:
        folder = run_suite(
            suite,
            grid or Grid(),
            out or Path(temporary) / "run",
            threads=threads,
            time_limit=time_limit,
            listener=listener,
        )
        return Run(read_run(folder), measured_rows(folder))
