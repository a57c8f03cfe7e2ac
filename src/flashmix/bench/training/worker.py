"""The process that trains: ``python -m flashmix.bench.training.worker``.

It serves jobs as :mod:`flashmix.bench.worker` does. Asked to end (SIGTERM), it saves the state of
the model in training first.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from flashmix.bench.training.jobs import execute
from flashmix.bench.worker import Emit, limit_memory, reporting, serve, set_threads
from flashmix.tasks.loop import Stopped

_stopping = False


def main() -> None:
    """Serve training jobs."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        serve(_run)
    except Stopped:
        sys.exit(1)


def _stop(number: int, frame: object) -> None:
    global _stopping
    _stopping = True


def _run(job: dict[str, Any], emit: Emit) -> None:
    set_threads(job["threads"])
    if job["config"]["device"] == "cpu":
        limit_memory()
    with reporting(emit, 0):
        emit("done", index=0, result=execute(job, emit, lambda: _stopping))


if __name__ == "__main__":
    main()
