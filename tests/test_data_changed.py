"""A training that is resumed reads the data that it was begun with, or refuses by name."""

from __future__ import annotations

import json

import pytest

from flashmix.bench import machine
from flashmix.bench.store import RUN_FILE
from flashmix.bench.training import Experiment, experiment, run_experiment
from flashmix.errors import ArgumentError
from flashmix.tasks.finetuning import FinetuneConfig
from flashmix.tasks.pretraining import PretrainConfig

SPLITS = {"finetune": ("train", "test"), "pretrain": ("unsupervised",)}


@pytest.fixture(params=SPLITS)
def begun(request, tmp_path, monkeypatch):
    """The kind of a run that is not finished, its folder, and the folder of its data."""
    kind, data, out = request.param, tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for split in SPLITS[kind]:
        (data / f"{split}.csv").write_text("text,label\ngood,1\nbad,0\n")
    shared = {"data": str(data), "tokenizer": "none"}
    config = (
        FinetuneConfig(task="imdb", model="bert-tiny", **shared)
        if kind == "finetune"
        else PretrainConfig(corpus="imdb_unsup", arch="bert-tiny", steps=1, **shared)
    )
    here = {"cpu": "a processor", "packages": {}, "code": "c"}
    monkeypatch.setattr(machine, "describe", lambda device: here)
    monkeypatch.setattr(experiment, "_lead", lambda *_: False)
    run_experiment(Experiment(config=config, mixers=("fnet",)), out, kind=kind)
    return kind, out, data


def test_data_edited_since_the_start_are_refused_by_name(begun):
    kind, out, data = begun
    run_experiment(None, out, kind=kind, resume=True)
    for split in SPLITS[kind]:
        file = data / f"{split}.csv"
        content = file.read_text()
        for edited in (content.replace("good", "fine"), content + "more,1\n"):
            file.write_text(edited)
            with pytest.raises(ArgumentError, match=f"other data: the {split} split had 24 bytes"):
                run_experiment(None, out, kind=kind, resume=True)
        file.write_text(content)
    run_experiment(None, out, kind=kind, resume=True)


def test_runs_that_say_nothing_of_their_data_are_resumed(begun):
    kind, out, data = begun
    run = json.loads((out / RUN_FILE).read_text())
    del run["data"]
    (out / RUN_FILE).write_text(json.dumps(run))
    (data / f"{SPLITS[kind][0]}.csv").write_text("text,label\nother,1\n")
    run_experiment(None, out, kind=kind, resume=True)


def test_a_fingerprint_that_is_none_is_told_by_its_place(begun):
    kind, out, _ = begun
    run = json.loads((out / RUN_FILE).read_text())
    split = SPLITS[kind][0]
    run["data"][split]["bytes"] = "many"
    (out / RUN_FILE).write_text(json.dumps(run))
    with pytest.raises(ArgumentError, match=rf"data.*{split}.*bytes"):
        run_experiment(None, out, kind=kind, resume=True)
