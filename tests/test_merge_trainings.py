"""Runs that trained other patterns become one; runs that do not fit together are refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from flashmix.bench.store import SEARCH_FILE, read_rows, read_run
from flashmix.errors import ArgumentError

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "merge_trainings.py"
RUN = Path(__file__).parents[1] / "benchmarks" / "results" / "cpu" / "finetune-imdb"


@pytest.fixture(scope="module")
def merge():
    spec = importlib.util.spec_from_file_location("merge_trainings", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.merge


def part(folder, mixers, **config):
    """The part of the committed run that trained ``mixers``, with other settings where given."""
    folder.mkdir()
    run = read_run(RUN)
    run["experiment"]["mixers"] = [mixers]
    run["experiment"]["config"] |= config
    (folder / "run.json").write_text(json.dumps(run))
    rows = [row for row in read_rows(RUN) if row["mixers"] == mixers]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trial = {"mixers": mixers, "lr": 1.0, "status": "oom"}
    (folder / SEARCH_FILE).write_text(json.dumps(trial) + "\n")
    costs = json.loads((RUN / "costs.json").read_text())
    (folder / "costs.json").write_text(json.dumps({mixers: costs[mixers]}))
    return folder


def test_parts_of_a_study_become_one_run(merge, tmp_path):
    parts = [part(tmp_path / name, name, model=name) for name in ("attention", "fnet")]
    merge(parts, tmp_path / "whole")
    whole = tmp_path / "whole"
    assert read_rows(whole) == [row for one in parts for row in read_rows(one)]
    assert [row["mixers"] for row in read_rows(whole, SEARCH_FILE)] == ["attention", "fnet"]
    assert list(json.loads((whole / "costs.json").read_text())) == ["fnet", "attention"]
    report = (whole / "report.md").read_text()
    assert "fnet compared with attention: test accuracy differs" in report
    assert "Merged from 2 runs, costs measured in turn within each: attention; fnet." in report


def test_runs_that_do_not_fit_together_are_refused(merge, tmp_path):
    first = part(tmp_path / "first", "attention")
    with pytest.raises(ArgumentError, match="differ in settings"):
        merge([first, part(tmp_path / "second", "fnet", lr=0.5)], tmp_path / "whole")
    with pytest.raises(ArgumentError, match="more than one run"):
        merge([first, part(tmp_path / "third", "attention")], tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
