"""Execute a notebook in a fresh kernel and write it back: ``make notebook``.

Timings of the execution and the kernel's version are left out, so that a run changes outputs only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TIME_LIMIT = 300


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook at ``path``, executed from its first cell to its last.

    Raises:
        CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook, timeout=TIME_LIMIT, kernel_name="python3", resources=resources
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    """Execute the notebooks named on the command line."""
    for name in sys.argv[1:]:
        nbformat.write(execute(Path(name)), name)


if __name__ == "__main__":
    main()
