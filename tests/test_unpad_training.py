"""Training without padding in the layers: refused where there is none, recorded where it is."""

from __future__ import annotations

import pytest
import torch

import flashmix
from flashmix.bench.store import read_rows, read_run
from flashmix.bench.training import Experiment, run_experiment
from flashmix.cli.main import main
from flashmix.errors import ArgumentError
from flashmix.hf.real_tokens import unpads
from flashmix.models import SequenceClassifier, TextClassifier
from flashmix.report import write_report
from flashmix.tasks.encoders import classifier
from flashmix.tasks.finetuning import FinetuneConfig
from flashmix.tasks.tokens import Special
from helpers import assert_close, randn
from training_helpers import cache, in_process, own_cache, reviews, vocabulary  # noqa: F401

pytest.importorskip("transformers")
SPECIAL = Special(pad=0, cls=1, sep=2, mask=3, size=40)


def config(**options):
    return FinetuneConfig(**{"task": "imdb", "model": "bert-tiny", "unpad": True, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compile": True}, "a compiled model keeps its padding"),
        ({"sequence_parallel": 2}, "sequences spread over processes"),
        ({"task": "digits"}, "digits are all of one length"),
    ],
)
def test_unpad_is_refused_where_it_would_remove_nothing(options, words):
    with pytest.raises(ArgumentError, match=f"unpad would remove nothing: .*{words}"):
        config(**options)


def test_unpad_is_refused_of_vanilla_models_alone():
    for mixers in (("vanilla fused",), ("vanilla eager", "vanilla fused")):
        with pytest.raises(ArgumentError, match="unpad would remove nothing: vanilla models"):
            Experiment(config=config(), mixers=mixers)
    assert Experiment(config=config(), mixers=("vanilla fused", "fnet")).unpad


def test_pretraining_says_that_its_rows_have_no_padding(capsys):
    assert main(["pretrain", "--unpad", "--steps", "1"]) == 2
    assert "rows of pretraining are filled with text" in capsys.readouterr().err


def test_a_run_records_it_and_saves_models_that_do_it(
    tmp_path, reviews, vocabulary, own_cache, in_process  # noqa: F811
):  # fmt: skip
    run = tmp_path / "run"
    settings = config(
        data=str(reviews), tokenizer=str(vocabulary), limit=24, epochs=1, batch_size=8, seq_len=16
    )
    experiment = Experiment(config=settings, mixers=("fnet", "vanilla fused"), lengths=())
    run_experiment(experiment, run, kind="finetune", threads=1)
    assert read_run(run)["experiment"]["config"]["unpad"] is True
    rows = {row["mixers"]: row for row in read_rows(run)}
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(rows, "ok")
    assert {name: row["unpad"] for name, row in rows.items()} == {
        "fnet": True,
        "vanilla fused": False,
    }
    assert unpads(flashmix.from_pretrained(run / "fnet" / "seed-0" / "model"))
    assert "Padding is removed before the first layer" in write_report(run).read_text()


def test_a_model_that_was_saved_either_way_is_trained_as_asked(tmp_path):
    weights = {}
    for before in (False, True):
        model = classifier("bert-tiny", "spectral", 2, SPECIAL, 0, unpad=before)
        model.save_pretrained(tmp_path / str(before))
        for asked in (False, True):
            again = classifier(str(tmp_path / str(before)), "spectral", 2, SPECIAL, 0, unpad=asked)
            assert unpads(again) is asked
            weights[before, asked] = again.bert.encoder.layer[0].attention.self.mixer.weight
        assert torch.equal(weights[before, False], weights[before, True])


@pytest.mark.parametrize("kind", [SequenceClassifier, TextClassifier])
def test_classifiers_without_padding_in_their_blocks_give_the_same(kind):
    options = {"dim": 8, "depth": 2, "mixers": "fnet,attention", "num_heads": 2}
    text = kind is TextClassifier
    torch.manual_seed(0)
    plain = kind(5, 9, 3, **options).double()
    unpadding = kind(5, 9, 3, **options, unpad=True).double()
    unpadding.load_state_dict(plain.state_dict())
    x = torch.arange(18).reshape(2, 9) % 5 if text else randn(2, 9, 5)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    seen = []
    unpadding.encoder.blocks[1].mlp.register_forward_hook(
        lambda _, args, __: seen.append(args[0].shape)
    )
    assert_close(unpadding(x, mask), plain(x, mask))
    assert seen == [(13, 8)]
