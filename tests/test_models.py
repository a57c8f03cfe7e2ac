"""Blocks, encoders, mixers as text, patterns over layers, and explanations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import flashmix
from flashmix import create_mixer, list_mixers, ops
from flashmix.errors import ArgumentError
from flashmix.mixers import (
    MIXERS,
    FNet,
    Hybrid,
    LocalAttention,
    MixerSpec,
    parse_mixer,
    parse_pattern,
)
from flashmix.mixers import __all__ as mixer_names
from flashmix.models import Block, Encoder
from flashmix.ops.dispatch import Signature
from helpers import DEVICES, assert_close, each_mixer, make_mixer, randn, right_padding


def randomised(module, device):
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed)
    return module.to(device, torch.float64).eval()


def norm(layer, x):
    return F.layer_norm(x, layer.weight.shape, layer.weight, layer.bias)


def mlp(block, x):
    first, _, second = block.mlp
    return second(F.gelu(first(x)))


@each_mixer
def test_block_is_two_residual_steps(text, device):
    block = randomised(Block(8, make_mixer(text)), device)
    x = randn(2, 9, 8, device=device)
    middle = x + block.mixer(norm(block.norm1, x))
    assert_close(block(x), middle + mlp(block, norm(block.norm2, middle)))


def test_block_with_norm_last_is_that_of_bert(device):
    block = randomised(Block(8, "attention", norm_first=False), device)
    x = randn(2, 9, 8, device=device)
    middle = norm(block.norm1, x + block.mixer(x))
    assert_close(block(x), norm(block.norm2, middle + mlp(block, middle)))


def test_block_hands_on_its_options():
    block = Block(16, "local(window=6)", num_heads=4, mlp_ratio=2.5, dropout=0.25)
    assert isinstance(block.mixer, LocalAttention)
    assert (block.mixer.window, block.mixer.num_heads) == (6, 4)
    assert block.mlp[0].out_features == 40
    assert block.dropout.p == 0.25


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    block = Block(8, "fnet", dropout=0.5)
    x = randn(2, 9, 8, dtype=torch.float32)
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_is_its_blocks_in_order(norm_first, device):
    mixers = "spectral,local(window=3)"
    encoder = randomised(Encoder(8, 4, mixers, num_heads=2, norm_first=norm_first), device)
    x, mask = randn(2, 9, 8, device=device), right_padding(2, 9, device=device)
    want = x
    for block in encoder.blocks:
        want = block(want, mask)
    want = norm(encoder.norm, want) if norm_first else want
    assert_close(encoder(x, mask), want * mask[..., None])


def test_encoder_follows_its_pattern():
    encoder = Encoder(16, 12, "fnet*10,attention*2", num_heads=4)
    kinds = [type(block.mixer).__name__ for block in encoder.blocks]
    assert kinds == ["FNet"] * 10 + ["Attention"] * 2
    assert encoder.blocks[-1].mixer.num_heads == 4


@pytest.mark.parametrize(
    ("pattern", "depth", "layers"),
    [
        ("fnet", 3, "fnet fnet fnet"),
        ("fnet*2,attention", 3, "fnet fnet attention"),
        ("local,spectral", 4, "local spectral local spectral"),
        (" local , spectral * 3 ", 4, "local spectral spectral spectral"),
        ("spectral+local*2,fnet", 3, "hybrid hybrid fnet"),
        ("topk(topk=4,selection=block)*2", 2, "topk topk"),
    ],
)
def test_pattern_names_one_mixer_for_each_layer(pattern, depth, layers):
    assert [spec.name for spec in parse_pattern(pattern, depth)] == layers.split()


@given(
    counts=st.lists(
        st.tuples(st.sampled_from(list_mixers()), st.integers(1, 9)), min_size=1, max_size=4
    ),
    repeats=st.integers(1, 3),
)
def test_pattern_repeats_over_any_multiple_of_its_length(counts, repeats):
    layers = [name for name, count in counts for _ in range(count)]
    text = ",".join(f"{name}*{count}" for name, count in counts)
    specs = parse_pattern(text, repeats * len(layers))
    assert [spec.name for spec in specs] == layers * repeats
    if len(layers) > 1:
        with pytest.raises(ArgumentError, match="does not divide"):
            parse_pattern(text, repeats * len(layers) + 1)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "must be text"),
        ("   ", "must be text"),
        (None, "must be text"),
        (["fnet"], "must be text"),
        ("fnet,", "missing in ''"),
        (",fnet", "missing in ''"),
        ("*2", r"missing in '\*2'"),
        ("fnet*", "count"),
        ("fnet*0", "count"),
        ("fnet*-1", "count"),
        ("fnet*1.5", "count"),
        ("fnet*two", "count"),
        ("fnet*2*3", "count"),
        ("fnet*99999999999", "count"),
        ("fnet*" + "9" * 5000, "count"),
        ("fnet*5", "5 layers, which does not divide depth 12"),
        ("local(window=3", "unbalanced"),
        ("local(window='3)", "unbalanced"),
        ("local(window)", "key=value, got 'window'"),
        ("local(3=window)", "key=value, got '3=window'"),
        ("local(window=3)x", r"expected '\)' at the end"),
        ("fnet+", r"missing beside '\+'"),
    ],
)
def test_pattern_that_breaks_the_grammar_says_where(pattern, words):
    with pytest.raises(ArgumentError, match=words):
        parse_pattern(pattern, 12)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("fnet", {}),
        ("local(window=64)", {"window": 64}),
        ("topk(topk=4, selection=block)", {"topk": 4, "selection": "block"}),
        ("topk(selection='block')", {"selection": "block"}),
        ("spectral(causal=True, context=None)", {"causal": True, "context": None}),
        ("spectral+local(window=3)", {"mixers": ("spectral", "local(window=3)")}),
        ("hybrid(mixers=('fnet', 'local(window=3)'))", {"mixers": ("fnet", "local(window=3)")}),
    ],
)
def test_mixer_text_carries_options(text, options):
    spec = parse_mixer(text)
    assert spec.options == options
    assert parse_mixer(str(spec)) == spec


def test_spec_builds_and_its_own_options_win():
    mixer = MixerSpec("local", {"window": 6, "impl": "reference"}).build(
        8, num_heads=2, impl="torch"
    )
    assert (mixer.dim, mixer.window, mixer.num_heads, mixer.impl) == (8, 6, 2, "reference")
    assert MixerSpec("fnet").build(8, impl="reference").impl == "reference"


def test_create_mixer_takes_names_texts_and_options():
    assert isinstance(create_mixer("fnet", 8), FNet)
    assert create_mixer("local", 8, window=6).window == 6
    assert create_mixer("local(window=6)", 8).window == 6
    hybrid = create_mixer("spectral+local(window=6)", 8, num_heads=2, combine="gate")
    assert isinstance(hybrid, Hybrid)
    assert hybrid.combine == "gate"
    assert [type(m).__name__ for m in hybrid.mixers] == ["Spectral", "LocalAttention"]
    assert (hybrid.mixers[1].window, hybrid.mixers[1].num_heads) == (6, 2)


@pytest.mark.parametrize(("dim", "heads"), [(128, 2), (64, 1), (100, 1)])
def test_heads_are_of_width_64_by_default(dim, heads):
    for name in ("attention", "local", "topk", "fourier"):
        assert create_mixer(name, dim).num_heads == heads


def test_num_heads_is_taken_by_mixers_that_have_heads_and_shared_by_the_layers_of_a_pattern():
    for name in list_mixers():
        if "num_heads" in MIXERS[name].Config.options():
            assert create_mixer(name, 12, num_heads=3).num_heads == 3
        else:
            for text in (name, f"{name}(num_heads=3)"):
                with pytest.raises(ArgumentError, match=f"option of mixer '{name}'.*num_heads"):
                    create_mixer(text, 12, **({"num_heads": 3} if text == name else {}))
    encoder = Encoder(12, 4, "fnet,attention,spectral,spectral+local", num_heads=3)
    assert encoder.blocks[1].mixer.num_heads == encoder.blocks[3].mixer.mixers[1].num_heads == 3
    with pytest.raises(ArgumentError, match="num_heads = 2 is for a mixer given as text"):
        Block(8, create_mixer("attention", 8), num_heads=2)


@pytest.mark.parametrize(
    ("combine", "want"),
    [
        ("sum", lambda a, b, x, gate: a(x) + b(x)),
        ("gate", lambda a, b, x, gate: a(x) * gate.softmax(0)[0] + b(x) * gate.softmax(0)[1]),
        ("heads", lambda a, b, x, gate: torch.cat((a(x[..., :4]), b(x[..., 4:])), -1)),
    ],
)
def test_hybrid_combines_its_parts(combine, want, device):
    text = f"hybrid(mixers=('spectral', 'attention'), combine={combine})"
    hybrid = make_mixer(text, device=device)
    x = randn(2, 9, 8, device=device)
    assert_close(hybrid(x), want(*hybrid.mixers, x, getattr(hybrid, "gate", None)))


def test_gate_starts_even():
    hybrid = Hybrid(8, combine="gate").double()
    x = randn(1, 5, 8)
    assert_close(hybrid(x), (hybrid.mixers[0](x) + hybrid.mixers[1](x)) / 2)


def test_list_mixers_matches_patterns():
    assert list_mixers() == ["attention", "local", "topk", "fnet", "spectral", "fourier", "hybrid"]
    assert list_mixers("f*") == ["fnet", "fourier"]
    assert list_mixers("nothing*") == []


def test_every_mixer_class_declares_what_the_package_reads_of_it():
    for kind in flashmix.mixers.MIXERS.values():
        assert kind.__name__ in mixer_names
        assert kind.summary
        assert kind.cost.startswith(("O(", "the sum"))
        assert kind.colour
        assert kind.sharding_strategy
        texts = [text for text in vars(kind.benchmarks).values() if isinstance(text, str)]
        for text in texts:
            assert isinstance(parse_mixer(text).build(64), kind)


@pytest.mark.parametrize("op", ops.OPERATORS)
@pytest.mark.parametrize("device", DEVICES)
def test_explain_names_the_impl_that_auto_runs(op, device):
    axes = len(ops.OPERATORS[op].axes.split(", "))
    explanation = flashmix.explain(op, (2,) * axes, torch.float32, device)
    signature = Signature((2,) * axes, torch.float32, torch.device(device))
    assert explanation.impl == ops.OPERATORS[op].select("auto", signature).impl
    names = {one.name for one in ops.OPERATORS[op].implementations}
    assert {explanation.impl, *explanation.alternatives} == names
    for text in (op, explanation.impl, explanation.reason, *explanation.alternatives.values()):
        assert text in str(explanation)
