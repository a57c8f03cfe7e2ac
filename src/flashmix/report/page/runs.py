"""Runs as a page takes them: titled apart, each row with its number and its place on the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flashmix.bench.store import Row
from flashmix.report.about import place
from flashmix.report.load import load


@dataclass(frozen=True)
class PageRun:
    """A run: its folder's name, ``run.json``, its rows and what to call it."""

    name: str
    run: dict[str, Any]
    rows: Sequence[Row]

    @classmethod
    def read(cls, folder: Path, name: str | None = None, root: Path | None = None) -> PageRun:
        """The run in ``folder``; below ``root``, where one is named, no link is followed.

        Raises:
            ArgumentError: the folder holds no run, or one that cannot be read.
        """
        return cls(name or str(folder), *load(folder, root))

    @property
    def title(self) -> str:
        """The suite and the device, without the marks that makers put in a device's name."""
        device = re.sub(r"\((R|TM)\)| Processor\b| CPU\b", "", place(self.run))
        return f"{self.run.get('suite') or self.name} on {' '.join(device.split())}"


@dataclass(frozen=True)
class PlacedRun:
    """A run on a page: rows hold their number as ``line`` and the id of theirs as ``anchor``."""

    number: int
    title: str
    run: dict[str, Any]
    rows: Sequence[Row]


def placed(runs: Sequence[PageRun]) -> list[PlacedRun]:
    """``runs`` with titles that differ, and with a place on the page for each row."""
    titles = [one.title for one in runs]
    found = []
    for number, one in enumerate(runs, 1):
        title = f"{one.title}, {one.name}" if titles.count(one.title) > 1 else one.title
        rows = [
            {**row, "line": line, "anchor": f"r{number}-{line}"}
            for line, row in enumerate(one.rows, 1)
        ]
        found.append(PlacedRun(number, title, one.run, rows))
    if len({one.title for one in found}) < len(found):
        found = [replace(one, title=f"{one.title} ({one.number})") for one in found]
    return found
