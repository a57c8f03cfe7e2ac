"""What is loaded is what was saved: these files, all of their weights, and no code from the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import flashmix
from flashmix import hf
from flashmix.cli.main import main
from flashmix.errors import ArgumentError
from flashmix.tasks import encoders
from flashmix.tasks.tokens import Special
from hf_models import COMMON, VISION, classifier, swapped, transformers

MIXERS = "spectral(modes=3),fourier"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    swapped(MIXERS).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of a saved model, to be spoiled."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit_config(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(file: Path, change) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


# Which files.


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> tuple[Path, dict[str, torch.nn.Module]]:
    """A cache of the hub that holds two revisions of "reviews/model", and what they hold."""
    cache = tmp_path_factory.mktemp("cache")
    models = {"main": swapped("fnet"), "v2": swapped("spectral(modes=3)")}
    for number, (name, model) in enumerate(models.items()):
        with torch.no_grad():
            model.classifier.bias += number + 1
        repo, commit = cache / "models--reviews--model", f"{number}" * 40
        model.save_pretrained(repo / "snapshots" / commit)
        model.save_pretrained(repo / "snapshots" / commit / "inner" / "best")
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / name).write_text(commit)
    return cache, models


def same(loaded, model) -> bool:
    state, other = model.state_dict(), loaded.state_dict()
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


@pytest.mark.parametrize("options", [{}, {"revision": "v2"}, {"revision": "1" * 40}])
@pytest.mark.parametrize("inner", [{}, {"subfolder": "inner/best"}])
def test_config_and_weights_come_from_the_same_files(hub, options, inner):
    cache, models = hub
    want = models["v2" if options else "main"]
    loaded = flashmix.from_pretrained(
        "reviews/model", cache_dir=cache, local_files_only=True, **options, **inner
    )
    assert same(loaded, want)


def test_options_of_the_hub_reach_the_weights(saved, monkeypatch):
    seen: dict[str, object] = {}

    class Model(transformers.BertForSequenceClassification):
        @classmethod
        def from_pretrained(cls, *args, **options):
            seen.update(options)
            return super().from_pretrained(*args, **options)

    given = {"token": "abc", "force_download": True, "proxies": {}, "revision": "v3"}
    flashmix.from_pretrained(saved, Model, **given)
    assert given.items() <= seen.items()


def test_files_that_are_not_in_the_cache_are_an_error_not_others(hub):
    cache, _ = hub
    for options in ({"revision": "v3"}, {"subfolder": "nowhere"}):
        with pytest.raises(OSError, match=r"cached files|reviews/model"):
            flashmix.from_pretrained(
                "reviews/model", cache_dir=cache, local_files_only=True, **options
            )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"revison": "v2"}, "unknown option 'revison'"),
        ({"dtype": torch.float32, "torch_dtype": torch.float16}, "set one of them"),
        ({"config": {}}, "config cannot be set"),
        ({"state_dict": {}}, "state_dict cannot be set"),
        ({"flashmix": {}}, "the config records the swap"),
        ({"kernel_config": {}}, "no code from the hub runs"),
        ({"num_labels": 5}, r"classifier\.bias has shape \[3\], expected \[5\].*anew"),
        ({"num_hidden_layers": 1}, "layers are numbered 0 to 0, got 1"),
        ({"num_hidden_layers": 3}, r"layer\.2.* is missing"),
        ({"hidden_size": 32}, r"has shape \[.*16.*\], expected \[.*32.*\]"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(saved, options, words):
    with pytest.raises(ArgumentError, match=words):
        flashmix.from_pretrained(saved, **options)


def test_a_head_of_other_labels_starts_anew_when_asked(saved):
    loaded = flashmix.from_pretrained(saved, num_labels=5, ignore_mismatched_sizes=True)
    assert loaded.classifier.out_features == 5
    assert same(loaded.bert, flashmix.from_pretrained(saved).bert)


# All of their weights.

OTHER_HEAD = "BertForTokenClassification"


def kept_or_made(saved: Path) -> list[str]:
    """A tensor of a filter, one that the swap kept, and one of the model around them."""
    keys = load_file(saved / "model.safetensors")
    return [next(key for key in keys if part in key) for part in (".mixer.", ".value.", ".output.")]


@pytest.mark.parametrize("model_class", [None, OTHER_HEAD, "BertModel"])
@pytest.mark.parametrize("which", range(3))
def test_weights_that_lack_a_tensor_are_refused(saved, folder, which, model_class):
    key = kept_or_made(saved)[which]
    edit_weights(folder / "model.safetensors", lambda weights: weights.pop(key))
    with pytest.raises(ArgumentError, match=rf"{key.removeprefix('bert.')} is missing"):
        flashmix.from_pretrained(folder, model_class)


@pytest.mark.parametrize("model_class", [None, OTHER_HEAD])
@pytest.mark.parametrize("key", ["attention.self.query.weight", "attention.self.mixer.gain"])
def test_weights_that_hold_more_are_refused(folder, key, model_class):
    key = f"bert.encoder.layer.0.{key}"
    extra = {key: torch.zeros(16, 16)}
    edit_weights(folder / "model.safetensors", lambda weights: weights.update(extra))
    with pytest.raises(ArgumentError, match=f"{key} is not in the model"):
        flashmix.from_pretrained(folder, model_class)


@pytest.mark.parametrize("options", [{}, {"ignore_mismatched_sizes": True}])
def test_a_tensor_of_another_shape_in_a_swapped_layer_is_refused(saved, folder, options):
    other = {kept_or_made(saved)[0]: torch.zeros(3)}
    edit_weights(folder / "model.safetensors", lambda weights: weights.update(other))
    with pytest.raises(ArgumentError, match=r"has shape \[3\], expected"):
        flashmix.from_pretrained(folder, **options)


def test_shards_that_lack_a_tensor_or_a_file_are_refused(saved, tmp_path):
    flashmix.from_pretrained(saved).save_pretrained(tmp_path, max_shard_size="5KB")
    key = kept_or_made(saved)[0]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = tmp_path / index["weight_map"][key]
    edit_weights(shard, lambda weights: weights.pop(key))
    with pytest.raises(ArgumentError, match=f"{key} is missing"):
        flashmix.from_pretrained(tmp_path)
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        flashmix.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [0, 3000])
def test_a_file_cut_short_is_refused(folder, size):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(size)
    with pytest.raises(ArgumentError, match="is not whole"):
        flashmix.from_pretrained(folder)


def test_tied_weights_stay_tied(tmp_path):
    model = flashmix.swap(classifier(head="ForMaskedLM"), MIXERS)
    model.save_pretrained(tmp_path)
    loaded = flashmix.from_pretrained(tmp_path)
    words = loaded.bert.embeddings.word_embeddings.weight
    assert loaded.cls.predictions.decoder.weight is words
    assert same(loaded, model)


@pytest.mark.parametrize("record", ["fnet", {}, {"mixers": "fnet"}, {"submodels": ["bert"]}])
def test_a_broken_record_of_the_swap_is_refused(folder, record):
    edit_config(folder, lambda config: config.update(flashmix=record))
    with pytest.raises(ArgumentError, match="broken entry 'flashmix'"):
        flashmix.from_pretrained(folder)


def test_a_classifier_that_reads_the_mean_comes_back_without_a_swap(tmp_path):
    model = hf.pool_mean(classifier())
    model.save_pretrained(tmp_path)
    for loaded in (flashmix.from_pretrained(tmp_path), hf.load(tmp_path)):
        assert loaded.flashmix_pooling
        assert same(loaded, model)


# Models that transformers writes or initialises by the names of q, k and v.

IMAGE = {key: value for key, value in VISION.items() if "vocab" not in key and "max_pos" not in key}
WORDS = {**COMMON, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
FUSED = ("Radio", "Tipsv2Vision", "Tipsv2Text")
BY_NAME = (
    *(f"{family}Vision" for family in ("Siglip", "OwlViT", "XCLIP", "ChineseCLIP", "AltCLIP")),
    *(f"{family}Vision" for family in ("Siglip2", "Owlv2", "CLIPSeg")),
    "SiglipText",
)


def small(name: str):
    torch.manual_seed(0)
    kind = getattr(transformers, f"{name}Model", None)
    if kind is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}Model")
    options = WORDS if name.endswith("Text") else IMAGE
    options = {key: value for key, value in options.items() if key != "initializer_range"}
    return kind(getattr(transformers, f"{name}Config")(**options)).eval()


@pytest.mark.parametrize("mixers", ["fnet,spectral(modes=3)", "fourier,attention"])
@pytest.mark.parametrize("name", [*FUSED, *BY_NAME])
def test_models_come_back_that_are_written_or_initialised_by_name(name, mixers, tmp_path):
    model = flashmix.swap(small(name), mixers)
    model.save_pretrained(tmp_path)
    assert same(flashmix.from_pretrained(tmp_path), model)


def test_a_folder_written_with_q_k_and_v_fused_is_read_or_refused(tmp_path, monkeypatch):
    model = flashmix.swap(small("Tipsv2Vision"), "attention")
    monkeypatch.setattr(hf.saving, "_has_converters", lambda model: False)  # as older versions did
    model.save_pretrained(tmp_path / "attention")
    assert any("qkv" in key for key in load_file(tmp_path / "attention" / "model.safetensors"))
    assert same(flashmix.from_pretrained(tmp_path / "attention"), model)
    flashmix.swap(model, "fourier").save_pretrained(tmp_path / "fourier")
    with pytest.raises(ArgumentError, match=r"\.v\w+\.\w+ is missing"):
        flashmix.from_pretrained(tmp_path / "fourier")


# No code from the hub.

CODE = {
    "outer": {"attn_implementation": "org/kernel"},
    "private": {"_attn_implementation": "org/kernel@main:attend"},
    "internal": {"_attn_implementation_internal": "org/kernel"},
    "by submodel": {"attn_implementation": {"vision_config": "org/kernel"}},
    "nested": {"inner_config": {"deep": [{"attn_implementation": "org/kernel"}]}},
    "flash": {"attn_implementation": "flash_attention_2"},
    "experts": {"experts_implementation": "sonicmoe"},
}
SPECIAL = Special(size=60, pad=0, cls=1, sep=2, mask=3)


def loaders(folder: Path) -> dict[str, object]:
    command = ["swap", str(folder), "--mixers", "fnet", "--out", str(folder / "out")]
    return {
        "from_pretrained": lambda: flashmix.from_pretrained(folder),
        "load": lambda: hf.load(folder),
        "classifier": lambda: encoders.classifier(str(folder), "fnet", 2, SPECIAL, 0),
        "swap": lambda: main(command),
    }


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("where", CODE)
def test_a_config_that_asks_for_code_from_the_hub_is_refused(
    where, plain, folder, monkeypatch, capsys
):
    if plain:
        edit_config(folder, lambda config: config.pop("flashmix"))
        edit_config(folder, lambda config: config.pop("attn_implementation"))
    edit_config(folder, lambda config: config.update(CODE[where]))

    def built(*_, **__):
        raise AssertionError("transformers saw the config")

    monkeypatch.setattr(transformers.PreTrainedConfig, "from_dict", built)
    for name, load in loaders(folder).items():
        if name == "swap":
            assert load() == 2
            assert "from the hub as code" in capsys.readouterr().err
        else:
            with pytest.raises(ArgumentError, match="may fetch from the hub as code"):
                load()


def test_code_of_its_own_is_hidden_from_transformers(folder):
    auto_map = {"AutoConfig": "code.Config", "AutoModel": "org/repo--code.Model"}
    edit_config(folder, lambda config: config.update(auto_map=auto_map, inner={"auto_map": {}}))
    (folder / "code.py").write_text("raise AssertionError('code ran')")
    loaded = flashmix.from_pretrained(folder)
    assert not hasattr(loaded.config, "auto_map")
    assert loaded.config.inner == {}
    edit_config(folder, lambda config: config.update(model_type="own"))
    for load in (flashmix.from_pretrained, hf.load):
        with pytest.raises(ArgumentError, match=r"'own', which .* code of its own \(auto_map\)"):
            load(folder)


def test_a_config_that_names_pickled_weights_is_refused(folder):
    edit_config(folder, lambda config: config.update(transformers_weights="adapter_model.bin"))
    for load in (flashmix.from_pretrained, hf.load):
        with pytest.raises(ArgumentError, match="come from safetensors only"):
            load(folder)


def test_a_tokenizer_with_code_of_its_own_is_refused(tmp_path):
    from flashmix.tasks.tokens import load_tokenizer

    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}})
    )
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "code.py").write_text("raise AssertionError('code ran')")
    with pytest.raises(ArgumentError, match="no tokenizer at"):
        load_tokenizer(str(tmp_path))
