"""The swap: only the mixing changes, weights stay, masks hold, what is not understood is named."""

from __future__ import annotations

import copy
import itertools
import os
from pathlib import Path

import pytest
import torch

import flashmix
from flashmix.errors import ArgumentError, FlashmixError, ImplementationError, ModelError
from helpers import assert_close, relative_error
from hf_models import (
    COMMON,
    HEADS,
    MIXERS,
    TEXT,
    WIDTH,
    classifier,
    images,
    inputs,
    logits,
    reviews,
    swapped,
    transformers,
)

FAMILIES = [*TEXT, "vit"]
PROJECTION = WIDTH * WIDTH + WIDTH

each_family = pytest.mark.parametrize("name", FAMILIES)
each_mixer = pytest.mark.parametrize("mixers", MIXERS)


def takes(name: str, mixers: str) -> bool:
    """Whether a mixer can stand in a model: MPNet's relative positions need scores of one kind."""
    return name != "mpnet" or not any(part in mixers for part in ("topk", "+local", "'attention'"))


def accepted(names: list[str], mixers: list[str]) -> list[tuple[str, str]]:
    return [pair for pair in itertools.product(names, mixers) if takes(*pair)]


@each_family
@pytest.mark.parametrize("mixers", ["attention", "attention(impl=naive)", "local(window=99)"])
def test_full_attention_gives_what_the_model_gave(name, mixers):
    model = classifier(name)
    want = logits(model, inputs(name))
    assert_close(logits(flashmix.swap(model, mixers), inputs(name)), want, 1e-12)


@pytest.mark.parametrize(("name", "mixers"), accepted(FAMILIES, MIXERS))
def test_swap_changes_nothing_but_the_attention(name, mixers):
    before = classifier(name)
    after = flashmix.swap(copy.deepcopy(before), mixers)
    old, new = before.state_dict(), after.state_dict()
    assert {key for key in new if ".mixer." not in key} <= set(old)
    for key in set(old) & set(new):
        assert torch.equal(old[key], new[key])
    gone = set(old) - set(new)
    assert all(".".join(key.split(".")[-2:-1]).startswith(("q", "k", "v")) for key in gone)
    output = logits(after, inputs(name))
    assert output.isfinite().all()
    if "attention" not in mixers and "block" not in mixers:  # a block holds all these tokens
        assert relative_error(output, logits(before, inputs(name))) > 1e-6


@pytest.mark.parametrize(("name", "mixers"), accepted(list(TEXT), MIXERS))
def test_logits_of_a_review_do_not_change_when_its_neighbours_get_longer(name, mixers):
    model = swapped(mixers, name)
    pad = model.config.pad_token_id
    alone = logits(model, reviews(9, pad=pad))
    for neighbour in (9, 12, 31):
        batch = reviews(9, neighbour, neighbour - 2, pad=pad)
        assert_close(logits(model, batch)[:1], alone, 1e-11)


@each_mixer
def test_what_stands_in_the_padding_does_not_matter(mixers):
    model, batch = swapped(mixers), reviews(9, 4)
    other = copy.deepcopy(batch)
    other["input_ids"][1, 4:] = 42
    assert_close(logits(model, other), logits(model, batch), 1e-12)


def test_every_token_counts_without_a_mask():
    model, batch = swapped("fnet"), reviews(9, 4)
    full = {"input_ids": batch["input_ids"], "attention_mask": torch.ones(2, 9).long()}
    assert_close(logits(model, {"input_ids": batch["input_ids"]}), logits(model, full), 1e-12)
    assert relative_error(logits(model, full)[1:], logits(model, batch)[1:]) > 1e-3


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_the_mask_arrives_whichever_attention_the_model_had(attention):
    model = classifier(attn_implementation=attention)
    got = logits(flashmix.swap(model, "fnet,local(window=3)"), reviews(9, 4))
    want = logits(flashmix.swap(classifier(), "fnet,local(window=3)"), reviews(9, 4))
    assert torch.equal(got, want)


KEEPS = {
    "attention": 3,
    "local": 3,
    "topk": 3,
    "fourier": 1,
    "fnet": 0,
    "spectral(modes=3)": 0,
    "spectral+local": 3,
    "hybrid(mixers=('spectral', 'fourier'))": 1,
}


@pytest.mark.parametrize(("name", "mixers"), accepted(FAMILIES, list(KEEPS)))
def test_report_counts_what_was_kept_dropped_and_added(name, mixers):
    keeps = KEEPS[mixers]
    before = classifier(name)
    model = flashmix.swap(copy.deepcopy(before), mixers)
    report = flashmix.swap_report(model)
    assert len(report.layers) == (1 if name == "albert" else 2)  # ALBERT's layers share weights
    for layer in report.layers:
        assert len(layer.keeps) == keeps
        assert layer.dropped == (3 - keeps) * PROJECTION
        assert layer.path in dict(model.named_modules())
    count = sum(p.numel() for p in model.parameters())
    assert (report.parameters, report.parameters_before) == (count, before.num_parameters())
    assert report.added == sum(p.numel() for n, p in model.named_parameters() if ".mixer." in n)
    assert f"{before.num_parameters():,} before, {count:,} now" in str(report)


def kinds(model) -> list[str]:
    return [type(m.mixer).__name__ for m in model.modules() if hasattr(m, "mixer")]


@pytest.mark.parametrize(
    ("mixers", "want"),
    [
        ("fnet*1,attention*1", ["FNet", "Attention"]),
        ("local,spectral", ["LocalAttention", "Spectral"]),
        ({0: "spectral", 1: "local"}, ["Spectral", "LocalAttention"]),
        ({1: "fnet"}, ["Attention", "FNet"]),
    ],
)
def test_swap_follows_its_pattern(mixers, want):
    model = classifier()
    assert flashmix.swap(model, mixers) is model
    assert kinds(model) == want


def test_a_mixer_takes_the_layers_heads_width_options_and_mode():
    model = flashmix.swap(classifier().train(), "local(window=6)")
    mixer = next(m.mixer for m in model.modules() if hasattr(m, "mixer"))
    assert (mixer.dim, mixer.num_heads, mixer.window) == (WIDTH, HEADS, 6)
    assert all(m.training for m in model.modules())


def test_a_second_swap_builds_on_the_first():
    model = flashmix.swap(flashmix.swap(classifier(), {0: "fourier"}), {1: "fnet"})
    assert kinds(model) == ["FourierAttention", "FNet"]
    assert [layer.dropped for layer in flashmix.swap_report(model).layers] == [
        2 * PROJECTION,
        3 * PROJECTION,
    ]
    flashmix.swap(model, {0: "spectral"})
    assert flashmix.swap_report(model).layers[0].dropped == 3 * PROJECTION
    with pytest.raises(ArgumentError, match=r"local needs the projections of q, k, v"):
        flashmix.swap(model, {0: "local"})
    assert kinds(model) == ["Spectral", "FNet"]


def test_a_second_swap_leaves_the_layers_that_it_does_not_name():
    model = swapped("spectral(modes=3)")
    kept = next(m.mixer for m in model.modules() if hasattr(m, "mixer"))
    flashmix.swap(model, {1: "fnet"})
    assert next(m.mixer for m in model.modules() if hasattr(m, "mixer")) is kept


@pytest.mark.parametrize(
    ("mixers", "words"),
    [
        ("fnett", "unknown mixer 'fnett'; did you mean 'fnet'"),
        ("fnet(impl=tritn)", "did you mean 'triton'"),
        ("fnet*3", "3 layers, which does not divide depth 2"),
        ({2: "fnet"}, "numbered 0 to 1, got 2"),
        ({"0": "fnet"}, "numbered 0 to 1, got '0'"),
        ({-1: "fnet"}, "numbered 0 to 1, got -1"),
        ("local(causal=True)", "is causal"),
        ("attention,hybrid(mixers=('fnet', 'spectral(causal=True)'))", "is causal"),
        (None, "must be text"),
    ],
)
def test_a_refused_swap_says_why_and_leaves_the_model_alone(mixers, words):
    model = classifier()
    want = logits(model, reviews(9, 4))
    with pytest.raises(ArgumentError, match=words):
        flashmix.swap(model, mixers)
    assert torch.equal(logits(model, reviews(9, 4)), want)
    assert kinds(model) == []


UNKNOWN = [
    ("Longformer", {**COMMON, "attention_window": 4}, r"encoder\.layer\.0\.attention"),
    ("FNet", {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 8}, "no attention"),
    ("GPT2", {"n_embd": 16, "n_layer": 1, "n_head": 2}, r"h\.0\.attn is causal, and fnet sees"),
    (
        "Bart",
        {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
        "BartModel cannot be swapped: its config",
    ),
    ("Bert", {**COMMON, "is_decoder": True}, r"layer\.0\.attention\.self is causal, and fnet sees"),
    (
        "Swin",
        {"embed_dim": 16, "depths": [1], "num_heads": [2], "image_size": 32, "window_size": 4},
        r"attention has a mask that adds to its scores .*which fnet cannot take",
    ),
]


@pytest.mark.parametrize(("family", "config", "words"), UNKNOWN, ids=[u[0] for u in UNKNOWN])
def test_an_unsupported_model_is_refused_by_the_module_that_is_not_understood(
    family, config, words
):
    config = getattr(transformers, f"{family}Config")(**config)
    model = getattr(transformers, f"{family}Model")(config).eval()
    with pytest.raises(ModelError, match=words):
        flashmix.swap(model, "fnet")


def test_what_is_no_model_of_transformers_is_refused():
    with pytest.raises(ArgumentError, match="model of transformers, got Linear"):
        flashmix.swap(torch.nn.Linear(2, 2), "fnet")


def test_weights_of_attention_are_refused():
    with pytest.raises(ModelError, match="no attention weights"):
        swapped("local")(**reviews(9, 4), output_attentions=True)


def test_a_mask_of_pairs_is_refused():
    model, batch = swapped("fnet"), reviews(9, 4)
    batch["attention_mask"] = torch.ones(2, 1, 9, 9).tril().bool()
    with pytest.raises(ModelError, match=r"attention_mask \[B, N\]"):
        model(**batch)


def test_a_swapped_model_keeps_its_attention_implementation():
    model = swapped("fnet")
    model.set_attn_implementation("sdpa")
    with pytest.raises(ImplementationError, match="must stay 'mixers'"):
        model(**reviews(9, 4))


def test_a_config_of_a_swapped_model_alone_makes_no_swapped_model():
    model = type(classifier())(swapped("fnet").config).eval()
    with pytest.raises(ModelError, match=r"flashmix\.from_pretrained"):
        model(**reviews(9, 4))


def test_dropout_of_attention_weights_acts_in_training_alone():
    for mixers in ("attention", "attention(impl=naive)"):
        model = swapped(mixers, attention_probs_dropout_prob=0.9, hidden_dropout_prob=0.0)
        batch = reviews(9, 4)
        assert torch.equal(model(**batch).logits, model(**batch).logits)
        torch.manual_seed(0)
        model.train()
        assert not torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("mixers", [m for m in (*MIXERS, *KEEPS) if not takes("mpnet", m)])
def test_mpnet_refuses_mixers_that_would_lose_its_relative_positions(mixers):
    with pytest.raises(ModelError, match="adds relative positions"):
        flashmix.swap(classifier("mpnet"), mixers)


def test_mpnet_adds_its_relative_positions_within_the_window():
    model, batch = flashmix.swap(classifier("mpnet"), "local(window=5)"), reviews(12, 7)
    before = logits(model, batch)
    bias = model.mpnet.encoder.relative_attention_bias.weight
    assert bias.requires_grad
    for beyond in (slice(3, 16), slice(19, 32)):  # buckets of distances above 2, to either side
        bias.data[beyond] += 100
    assert torch.equal(logits(model, batch), before)
    bias.data[1] += 1
    assert relative_error(logits(model, batch), before) > 1e-6


def test_mpnet_does_not_train_relative_positions_that_no_layer_reads():
    model = flashmix.swap(classifier("mpnet"), "fnet")
    assert not model.mpnet.encoder.relative_attention_bias.weight.requires_grad


def test_t5_keeps_its_relative_positions():
    config = transformers.T5Config(
        vocab_size=60, d_model=16, d_kv=8, num_layers=2, num_heads=2, d_ff=32
    )
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(config).double().eval()
    batch = reviews(9, 4)
    with torch.no_grad():
        want = model(**batch).last_hidden_state
        got = flashmix.swap(model, "attention")(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    assert_close(got[real], want[real], 1e-12)
    with pytest.raises(ModelError, match="adds relative positions"):
        flashmix.swap(model, "topk")


@pytest.mark.parametrize("mixer", ["attention", "local(window=5)", "topk(topk=3)"])
@pytest.mark.parametrize("name", ["bert", "distilbert", "vit"])
def test_a_registered_attention_does_what_the_swap_does(name, mixer):
    registered = flashmix.register_attention(mixer)
    assert registered == f"mixer_{mixer}"
    model = classifier(name)
    want = logits(flashmix.swap(copy.deepcopy(model), mixer), inputs(name))
    model.set_attn_implementation(registered)
    assert_close(logits(model, inputs(name)), want, 1e-12)


@pytest.mark.parametrize(
    ("mixer", "name", "words"),
    [
        ("fnet", None, "does not mix q, k and v alone"),
        ("spectral+local", None, "does not mix q, k and v alone"),
        ("locl", None, "did you mean 'local'"),
        ("local", "flashmix_local", "must not contain 'flash'"),
    ],
)
def test_register_attention_takes_mixers_of_q_k_and_v(mixer, name, words):
    with pytest.raises(ArgumentError, match=words):
        flashmix.register_attention(mixer, name)


def test_images_are_classified_without_a_mask():
    assert logits(swapped("fnet,local(window=5)", "vit"), images(3)).shape == (3, 3)


def test_a_missing_transformers_gives_the_install_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(FlashmixError, match=r"pip install 'flashmix\[hf\]'"):
        flashmix.swap(torch.nn.Linear(2, 2), "fnet")


@pytest.mark.parametrize("mixers", ["attention", "local(window=9)", "fnet", "spectral*2,attention"])
def test_a_real_encoder_embeds_a_sentence_the_same_beside_longer_ones(mixers):
    folder = Path(os.environ.get("FLASHMIX_DATA", "data")) / "paraphrase-minilm-l3-v2"
    if not folder.is_dir():
        pytest.skip(f"no encoder in {folder}; set FLASHMIX_DATA to the folder that holds it")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sentences = ["A fine film.", "Two hours of my life that " + "really " * 40 + "went."]
    long = tokenizer(sentences, padding=True, return_tensors="pt")
    short = tokenizer(sentences[:1], return_tensors="pt")
    vanilla = copy.deepcopy(model)
    flashmix.swap(model, mixers)
    with torch.no_grad():
        want = model.double()(**short).last_hidden_state
        n = want.shape[1]
        assert_close(model(**long).last_hidden_state[:1, :n], want, 1e-11)
        if mixers == "attention":
            assert_close(want, vanilla.double()(**short).last_hidden_state, 1e-12)
