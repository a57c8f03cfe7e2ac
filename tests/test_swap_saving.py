"""A swapped model saved and loaded is the same model."""

from __future__ import annotations

import json

import pytest
import torch

import flashmix
from flashmix.cli.main import main
from flashmix.errors import ArgumentError, ModelError
from hf_models import MIXERS, TEXT, classifier, inputs, reviews, swapped, transformers


@torch.no_grad()
def outputs(model, name="bert"):
    return model(**inputs(name)).logits


@pytest.mark.parametrize("mixers", MIXERS)
def test_save_and_load_give_identical_outputs(mixers, tmp_path):
    model = swapped(mixers)
    model.save_pretrained(tmp_path)
    loaded = flashmix.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(outputs(loaded), outputs(model))
    assert not loaded.training
    assert flashmix.swap_report(loaded) == flashmix.swap_report(model)


@pytest.mark.parametrize("name", [*TEXT, "vit"])
def test_every_family_comes_back_from_its_folder(name, tmp_path):
    model = swapped("fnet" if name in ("mpnet", "albert") else "fourier,spectral(modes=3)", name)
    model.save_pretrained(tmp_path)
    loaded = flashmix.from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded, name), outputs(model, name))
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_a_pattern_survives_two_rounds(tmp_path):
    model = swapped("hybrid(mixers=('fnet', 'local(window=3)'), combine=gate),attention")
    want = outputs(model)
    for folder in (tmp_path / "one", tmp_path / "two"):
        model.save_pretrained(folder)
        model = flashmix.from_pretrained(folder)
    assert torch.equal(outputs(model), want)


def test_the_folder_holds_safetensors_and_the_swap_and_no_code(tmp_path):
    swapped("fnet,local(window=5)").save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["flashmix"]["mixers"] == ["fnet", "local(window=5)"]
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_transformers_alone_refuses_the_folder(tmp_path, monkeypatch):
    swapped("attention,fnet").save_pretrained(tmp_path)
    monkeypatch.delitem(transformers.AttentionInterface._global_mapping, "mixers")
    with pytest.raises(ValueError, match='attn_implementation="mixers"` is not supported'):
        transformers.AutoModel.from_pretrained(tmp_path)
    loaded = flashmix.from_pretrained(tmp_path)  # as the first call of a process
    loaded.save_pretrained(tmp_path / "again")
    monkeypatch.delitem(transformers.AttentionInterface._global_mapping, "mixers")
    with pytest.raises(ValueError, match='attn_implementation="mixers"` is not supported'):
        transformers.BertForSequenceClassification.from_pretrained(tmp_path / "again")


def test_transformers_beside_flashmix_builds_no_attention_where_mixers_were(tmp_path):
    swapped("fnet").save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"load swapped models with flashmix\.from_pretrained"):
        model(**inputs("bert"))


def test_shards_and_dtype_come_back(tmp_path):
    model = swapped("spectral(modes=3)").to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = flashmix.from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_an_encoder_pretrained_with_one_head_gets_another(tmp_path):
    model = classifier(head="ForMaskedLM")
    flashmix.swap(model, "spectral(modes=3),attention")
    model.save_pretrained(tmp_path)
    loaded = flashmix.from_pretrained(tmp_path, "AutoModelForSequenceClassification", num_labels=5)
    assert isinstance(loaded, transformers.BertForSequenceClassification)
    assert loaded(**reviews(9, 4)).logits.shape == (2, 5)
    for key, value in model.bert.state_dict().items():
        assert torch.equal(loaded.bert.state_dict()[key], value)


def test_loading_takes_a_class_and_reports_what_it_loaded(tmp_path):
    model = swapped("fnet")
    model.save_pretrained(tmp_path)
    loaded, info = flashmix.from_pretrained(
        tmp_path, transformers.BertForSequenceClassification, output_loading_info=True
    )
    assert torch.equal(outputs(loaded), outputs(model))
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_folder_without_a_swap_is_refused(tmp_path):
    classifier().save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="holds no swapped model"):
        flashmix.from_pretrained(tmp_path)


def test_a_swapped_folder_loaded_plain_is_known_to_be_plain(tmp_path):
    swapped("local(window=5)").save_pretrained(tmp_path)
    plain = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match=r"was not swapped.*flashmix\.from_pretrained"):
        flashmix.swap_report(plain)
    flashmix.swap(plain, {0: "fnet"})
    mixers = [layer.mixer for layer in flashmix.swap_report(plain).layers]
    assert mixers == ["fnet", "attention"]


@pytest.mark.parametrize(
    ("model_class", "options", "words"),
    [
        ("BertForNothing", {}, "transformers has no class 'BertForNothing'"),
        (None, {"trust_remote_code": True}, "trust_remote_code cannot be set"),
        (None, {"use_safetensors": False}, "use_safetensors cannot be set"),
        (None, {"attn_implementation": "eager"}, "attn_implementation cannot be set"),
    ],
)
def test_what_cannot_be_loaded_is_refused(model_class, options, words, tmp_path):
    swapped("fnet").save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match=words):
        flashmix.from_pretrained(tmp_path, model_class, **options)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "nothing", str(tmp_path / "nothing")):
        with pytest.raises(ArgumentError, match=r"no folder .*nothing"):
            flashmix.from_pretrained(path)


def test_pickled_weights_are_refused(tmp_path):
    model = swapped("fnet")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        flashmix.from_pretrained(tmp_path)


def test_the_command_saves_a_swapped_model_and_prints_its_report(tmp_path, capsys):
    classifier().save_pretrained(tmp_path / "bert")
    command = ["swap", str(tmp_path / "bert"), "--mixers", "fnet,local(window=5)"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    loaded = flashmix.from_pretrained(tmp_path / "out")
    assert str(flashmix.swap_report(loaded)) in text
    want = flashmix.swap(classifier(), "fnet,local(window=5)")
    assert torch.equal(outputs(loaded), outputs(want))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("model", "mixers", "out", "words"),
    [
        ("bert", "fnett", "out", "did you mean 'fnet'"),
        ("bert", "fnet", "bert", "exists; name a folder that is not there yet"),
        ("nothing", "fnet", "out", "no folder"),
    ],
)
def test_the_command_refuses_in_one_line_and_leaves_nothing(
    model, mixers, out, words, tmp_path, capsys
):
    classifier().save_pretrained(tmp_path / "bert")
    command = ["swap", str(tmp_path / model), "--mixers", mixers, "--out", str(tmp_path / out)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("flashmix: ")
    assert [p.name for p in tmp_path.iterdir()] == ["bert"]
