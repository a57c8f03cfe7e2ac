"""The notebook runs in a fresh kernel, and what is committed is what it says."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient, of flashmix[dev]")

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "main_benchmark.ipynb"
MOST_BYTES = 400_000


def outputs(notebook):
    """Every output of the notebook's code, as (kind of content, content)."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for one in cell.outputs:
                found += [("stream", one.text)] if "text" in one else [*one.data.items()]
    return found


def check(notebook):
    """The results have their shape, whatever the machine's times."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    found = outputs(notebook)
    images = [base64.b64decode(content) for kind, content in found if kind == "image/png"]
    assert len(images) == 2
    assert all(image.startswith(b"\x89PNG") for image in images)
    texts = [content for kind, content in found if kind in ("text/plain", "stream")]
    assert any("30 cases" in text and text.rstrip("'").endswith(": ok") for text in texts)
    sentences = next(text for text in texts if text.startswith("- "))
    assert "topk(topk=32)" in sentences
    assert "local(window=32)" in sentences
    figures = next(text for text in texts if "entropy_bits" in text)
    assert "'topk(topk=32) nonzero_per_row': 32.0" in figures


LONG = "Grid(seq_lens=(64, 128, 256, 512, 1024, 2048), passes=10)"
SHORT = "Grid(seq_lens=(48, 64, 96, 128, 192, 256), passes=2)"


@pytest.mark.slow
def test_the_notebook_runs_in_a_fresh_kernel(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (cell for cell in notebook.cells if LONG in cell.source)
    cell.source = cell.source.replace(LONG, SHORT)  # as many cases, in less time
    short = tmp_path / NOTEBOOK.name
    nbformat.write(notebook, short)
    spec = importlib.util.spec_from_file_location("run_notebook", ROOT / "scripts/run_notebook.py")
    run_notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run_notebook)
    check(run_notebook.execute(short))


def test_the_committed_notebook_is_executed_and_small():
    check(nbformat.read(NOTEBOOK, as_version=4))
    assert NOTEBOOK.stat().st_size < MOST_BYTES
