"""Packed, padded and alone, a sequence gives the same numbers, and so do its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flashmix
from flashmix import ops
from flashmix.errors import ArgumentError
from flashmix.mixers._base import WeighingMixer
from flashmix.mixers._heads import Heads
from flashmix.models import Encoder
from flashmix.ops._cpu import library
from helpers import (
    HALF,
    OPS,
    OpCase,
    assert_close,
    each_impl,
    each_mixer,
    make_mixer,
    randn,
    skip_unless_runs,
)
from test_mixtures import PLACES, masked, spoilt

each_case = pytest.mark.parametrize("case", OPS, ids=[case.name for case in OPS])
native = pytest.mark.skipif(library.missing() is not None, reason=f"native {library.missing()}")
NATIVE = [
    case
    for case in OPS
    if case.operator in ("fnet", "spectral", "fourier", "local_attention")
    and "cpu" not in case.refused_by
]


@st.composite
def mixtures(draw):
    """Masks of lengths 0, 1, 2, primes and N, each with its padding at a place."""
    n = draw(st.sampled_from([1, 2, 13, 23]))
    some = [x for x in (0, 1, 2, 7, 13, n) if x <= n]
    lengths = draw(st.lists(st.sampled_from(some), min_size=1, max_size=4))
    return masked(n, lengths, [draw(st.sampled_from(PLACES)) for _ in lengths])


def by_token(case: OpCase, x):
    """``x`` [B, N, D] or [B, H, N, dh] with tokens on axis 1."""
    return x.transpose(1, case.token_axis)


def packed_of(case, mask, *xs):
    """Tokens [T, ...] of each, and the keywords of a packed call."""
    packed = [flashmix.pack(by_token(case, x), mask) for x in xs]
    return [one.tokens for one in packed], lengths_of(packed[0])


def lengths_of(packed):
    return {"cu_seqlens": packed.cu_seqlens, "max_seqlen": packed.max_seqlen}


def results(case, tokens, parameters, upstream, **keywords):
    """The output, and the gradients of tokens and parameters."""
    leaves = [x.detach().requires_grad_() for x in (*tokens, *parameters)]
    y = case.run(*leaves, **keywords)
    return [y, *torch.autograd.grad(y, leaves, upstream, materialize_grads=True)]


@each_impl()
@settings(max_examples=6)
@given(mask=mixtures())
def test_packed_is_as_padded_and_as_alone(case, impl, mask):
    skip_unless_runs(case.operator, impl, torch.float64, "cpu")
    tokens, parameters = case.inputs(*mask.shape)
    xs = [*tokens, randn(*tokens[0].shape, seed=9)]
    (*flat, upstream), lengths = packed_of(case, mask, *xs)
    got = results(case, flat, parameters, upstream, **lengths, impl=impl)
    dirty = [spoilt(x, mask, case.token_axis) for x in xs]
    padded = results(case, dirty[:-1], parameters, dirty[-1], mask=mask, impl=impl)
    count = 1 + len(tokens)
    for one, other in zip(got[:count], padded[:count], strict=True):
        assert_close(one, by_token(case, other)[mask])
    sums = [torch.zeros_like(x) for x in parameters]
    for begin, end in lengths["cu_seqlens"].unfold(0, 2, 1).tolist():
        if begin == end:
            continue
        part = [by_token(case, x[None, begin:end]) for x in (*flat, upstream)]
        alone = results(case, part[:-1], parameters, part[-1], impl=impl)
        for one, other in zip(got[:count], alone[:count], strict=True):
            assert_close(one[begin:end], by_token(case, other)[0])
        sums = [a + b for a, b in zip(sums, alone[count:], strict=True)]
    for one, other, third in zip(got[count:], padded[count:], sums, strict=True):
        assert_close(one, other)
        assert_close(one, third)


@each_impl()
def test_what_a_packed_neighbour_holds_changes_no_bit(case, impl):
    skip_unless_runs(case.operator, impl, torch.float32, "cpu")
    mask = masked(13, [7, 13, 1, 5], ["right"] * 4)
    tokens, parameters = case.inputs(*mask.shape, dtype=torch.float32)
    (*flat, upstream), lengths = packed_of(case, mask, *tokens, randn(*tokens[0].shape, seed=9))
    own = slice(7, 20)
    want = results(case, flat, parameters, upstream.float(), **lengths, impl=impl)
    for x in (*flat, upstream):
        x[own] = float("nan")
    got = results(case, flat, parameters, upstream.float(), **lengths, impl=impl)
    rest = [i for i in range(len(upstream)) if i not in range(20)[own]]
    for one, other in zip(got[: 1 + len(flat)], want[: 1 + len(flat)], strict=True):
        assert torch.equal(one[rest], other[rest])


@native
@pytest.mark.parametrize("case", NATIVE, ids=[case.name for case in NATIVE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_native_kernels_give_the_bits_of_the_padded_call(case, dtype):
    mask = masked(60, [60, 0, 31, 37, 60, 46], ["right", "left", "holes"] * 2)
    tokens, parameters = case.inputs(*mask.shape, 34, dtype=dtype)
    xs = [*tokens, randn(*tokens[0].shape, seed=9, dtype=dtype)]
    (*flat, upstream), lengths = packed_of(case, mask, *xs)
    with ops.dispatch.recorded_choices() as choices:
        got = results(case, flat, parameters, upstream, **lengths)
    assert [(one.impl, dict(one.options)["packed"]) for one in choices] == [("cpu", True)]
    want = results(case, tokens, parameters, xs[-1], mask=mask, impl="cpu")
    for one, other in zip(got[: len(xs)], want[: len(xs)], strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, by_token(case, other)[mask])


@each_case
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tokens_at_all_give_none(case, lengths):
    tokens, parameters = case.inputs(1, 1)
    flat = [by_token(case, x)[0][:0] for x in tokens]
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    got = results(case, flat, parameters, flat[0], cu_seqlens=offsets)
    assert [x.shape for x in got] == [x.shape for x in (flat[0], *flat, *parameters)]
    assert not any(x.any() for x in got)


@each_case
def test_packed_half_precision_is_as_near_as_padded(case):
    mask = masked(23, [23, 0, 1, 13], ["right"] * 4)
    for dtype in HALF:
        tokens, parameters = case.inputs(*mask.shape, dtype=dtype)
        flat, lengths = packed_of(case, mask, *tokens)
        want = by_token(case, case.run(*tokens, *parameters, mask=mask))[mask]
        got = case.run(*flat, *parameters, **lengths)
        assert got.dtype == dtype
        assert_close(got, want, 2.5 * torch.finfo(dtype).eps)


@native
@pytest.mark.parametrize("case", NATIVE, ids=[case.name for case in NATIVE])
def test_second_derivatives_of_packed_kernels_are_those_of_the_formula(case):
    mask = masked(7, [7, 0, 1, 5], ["right"] * 4)
    tokens, parameters = case.inputs(*mask.shape)
    flat, lengths = packed_of(case, mask, *tokens)

    def twice(impl):
        leaves = [x.detach().requires_grad_() for x in (*flat, *parameters)]
        y = case.run(*leaves, **lengths, impl=impl)
        first = torch.autograd.grad(y, leaves, randn(*y.shape, seed=3), create_graph=True)
        total = sum((randn(*g.shape, seed=4) * g).sum() for g in first)
        total = total + sum(0 * x.sum() for x in leaves)
        return torch.autograd.grad(total, leaves)

    for got, want in zip(twice("cpu"), twice("reference"), strict=True):
        assert_close(got, want)


@native
@pytest.mark.parametrize("case", NATIVE, ids=[case.name for case in NATIVE])
def test_forward_mode_of_packed_kernels_is_that_of_the_formula(case):
    mask = masked(7, [7, 0, 1, 5], ["right"] * 4)
    tokens, parameters = case.inputs(*mask.shape)
    (x, *others), lengths = packed_of(case, mask, *tokens)
    got, want = (
        torch.func.jvp(
            lambda x, impl=impl: case.run(x, *others, *parameters, **lengths, impl=impl),
            (x,),
            (torch.ones_like(x),),
        )[1]
        for impl in ("cpu", "reference")
    )
    assert_close(got, want)


COMPILED = [case for case in OPS if case.name in ("attention", "local", "fnet", "spectral-causal")]


@pytest.mark.parametrize("case", COMPILED, ids=[case.name for case in COMPILED])
def test_one_compiled_graph_serves_all_packed_lengths(case):
    def run(*tensors, cu_seqlens):
        # A bound, as attention takes it; values are for the kernels to read.
        return case.run(*tensors, cu_seqlens=cu_seqlens, max_seqlen=16)

    compiled = torch.compile(run, backend="eager", fullgraph=True, dynamic=True)
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for counts in ([7, 0, 16, 3], [2, 13, 5, 9]):
        mask = masked(16, counts, ["right"] * 4)
        tokens, parameters = case.inputs(*mask.shape)
        flat, lengths = packed_of(case, mask, *tokens)
        offsets = lengths["cu_seqlens"]
        assert_close(
            compiled(*flat, *parameters, cu_seqlens=offsets),
            case.run(*flat, *parameters, cu_seqlens=offsets),
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs <= 1


@native
def test_packed_kernels_check_offsets_that_a_graph_could_not():
    compiled = torch.compile(ops.fnet, backend="eager", fullgraph=True)
    with pytest.raises(ArgumentError, match="end with T = 5, got 0 and 6"):
        compiled(randn(5, 8), cu_seqlens=torch.tensor([0, 6], dtype=torch.int32))


OFFSETS = {
    "must begin with 0 and end with T = 5, got 0 and 4": [0, 4],
    "must begin with 0 and end with T = 5, got 1 and 5": [1, 5],
    "must not fall, got 4 and then 3 at index 2": [0, 4, 3, 5],
    r"\[S \+ 1\], where each sequence begins and T, got shape \[0\]": [],
    r"\[S \+ 1\], where each sequence begins and T, got shape \[1, 2\]": [[0, 5]],
}


@each_case
def test_offsets_that_do_not_fit_are_refused(case):
    tokens, parameters = case.inputs(1, 5)
    flat = [by_token(case, x)[0] for x in tokens]

    def refused(match, offsets=(0, 5), dtype=torch.int32, **keywords):
        offsets = keywords.pop("cu_seqlens", torch.tensor(offsets, dtype=dtype))
        with pytest.raises(ArgumentError, match=match):
            case.run(*flat, *parameters, cu_seqlens=offsets, **keywords)

    for match, offsets in OFFSETS.items():
        refused(match, offsets)
    refused("must be int32, got torch.int64; pass cu_seqlens.int", dtype=torch.int64)
    refused("must be an int32 tensor", cu_seqlens=[0, 5])
    refused("on cpu like the input, got meta", cu_seqlens=torch.zeros(2, device="meta").int())
    refused("at least the longest sequence, 5 tokens, got 4", max_seqlen=4)
    refused("max_seqlen must be an integer >= 0 or None, got 5.0", max_seqlen=5.0)
    refused("pass one of them", mask=torch.ones(1, 5, dtype=torch.bool))
    refused("pass cu_seqlens with it", cu_seqlens=None, max_seqlen=5)
    with pytest.raises(ArgumentError, match=r"axes \[T, "):
        offsets = torch.tensor([0, 5], dtype=torch.int32)
        case.run(*tokens, *parameters, cu_seqlens=offsets)


def test_packing_and_unpacking_undo_each_other_with_gradients():
    mask = masked(13, [13, 0, 7, 1], ["right", "left", "holes", "left"])
    x = randn(*mask.shape, 3, 2).requires_grad_()
    packed = flashmix.pack(x, mask)
    assert torch.equal(packed.tokens, x[mask])
    assert packed.cu_seqlens.tolist() == [0, 13, 13, 20, 21]
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.max_seqlen == 13
    y = flashmix.unpack(packed.tokens, packed)
    assert torch.equal(y[mask], x[mask])
    assert not y[~mask].any()
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(grad, mask[..., None, None].expand_as(grad).double())
    whole = flashmix.pack(x)
    assert whole.cu_seqlens.tolist() == [0, 13, 26, 39, 52]
    assert torch.equal(flashmix.unpack(whole.tokens, whole), x)


def test_packing_what_does_not_fit_is_refused():
    with pytest.raises(ArgumentError, match=r"x must be a tensor \[B, N, ...\], got \[3\]"):
        flashmix.pack(randn(3))
    with pytest.raises(ArgumentError, match="mask must be bool"):
        flashmix.pack(randn(2, 3), torch.ones(2, 3))
    with pytest.raises(ArgumentError, match=r"mask must be \[B, N\] = \[2, 3\]"):
        flashmix.pack(randn(2, 3, 4), torch.ones(2, 4).bool())
    with pytest.raises(ArgumentError, match="T = 6 as packed"):
        flashmix.unpack(randn(5, 4), flashmix.pack(randn(2, 3, 4)))


def test_auto_takes_packed_tokens_as_they_are_where_an_implementation_does():
    for name, operator in ops.OPERATORS.items():
        shape = (2, 3, 64, 8)[-len(operator.axes.split(", ")) :]
        decision = flashmix.explain(name, shape, packed=True, topk=2)
        able = [one for one in operator.implementations if one.refusal(decision.signature) is None]
        assert decision.signature.options["masked"]
        if any(one.packed for one in able):
            assert decision.implementation.packed is not None
        for one in able:
            if one.packed is None and one is not decision.implementation:
                assert "takes padded tokens" in decision.alternatives[one.name]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_case
def test_a_packed_call_with_its_longest_length_never_waits_for_the_gpu(case):
    mask = masked(64, [64, 0, 1, 37], ["right"] * 4)
    tokens, parameters = case.inputs(*mask.shape, 64, dtype=torch.bfloat16)
    flat, lengths = packed_of(case, mask, *tokens)
    want = case.run(*flat, *parameters, **lengths)
    flat, parameters = [x.cuda() for x in flat], [x.cuda() for x in parameters]
    lengths["cu_seqlens"] = lengths["cu_seqlens"].cuda()
    case.run(*flat, *parameters, **lengths)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = case.run(*flat, *parameters, **lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(got.cpu(), want, 5 * torch.finfo(torch.bfloat16).eps)


def modules_results(module, x, upstream, *arguments, **keywords):
    """The output, and the gradients of ``x`` and of the parameters."""
    x = x.detach().requires_grad_()
    y = module(x, *arguments, **keywords)
    leaves = [x, *module.parameters()]
    return [y, *torch.autograd.grad(y, leaves, upstream, materialize_grads=True)]


@each_mixer
def test_a_mixer_of_packed_tokens_is_as_of_padded_ones(text):
    mixer = make_mixer(text)
    mask = masked(13, [13, 0, 1, 7], ["right", "left", "holes", "left"])
    x, upstream = randn(*mask.shape, 8), randn(*mask.shape, 8, seed=1)
    packed = flashmix.pack(x, mask)
    y, grad, *grads = modules_results(mixer, packed.tokens, upstream[mask], **lengths_of(packed))
    want, want_grad, *want_grads = modules_results(mixer, x, upstream, mask)
    for one, other in zip((y, grad), (want, want_grad), strict=True):
        assert_close(one, other[mask])
    for one, other in zip(grads, want_grads, strict=True):
        assert_close(one, other)
    heads = [randn(*mask.shape, 2, 4, seed=seed) for seed in range(3)]
    got = mixer(Heads(*(one[mask] for one in heads)), **lengths_of(packed))
    assert_close(got, mixer.mix_heads(*(one.transpose(1, 2) for one in heads), mask)[mask])


@each_mixer
def test_what_packed_tokens_do_not_have_is_refused_by_a_mixer(text):
    mixer = make_mixer(text)
    packed = flashmix.pack(randn(2, 5, 8))
    with pytest.raises(ArgumentError, match=r"axes \[T, D\]"):
        mixer(randn(2, 5, 8), **lengths_of(packed))
    with pytest.raises(ArgumentError, match="width D = 8"):
        mixer(randn(10, 6), **lengths_of(packed))
    with pytest.raises(ArgumentError, match="pass one of them"):
        mixer(packed.tokens, torch.ones(2, 5).bool(), **lengths_of(packed))
    if isinstance(mixer, WeighingMixer):
        with pytest.raises(ArgumentError, match="return_weights takes padded tokens"):
            mixer(packed.tokens, return_weights=True, **lengths_of(packed))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("lengths", [[13, 0, 1, 7], [13, 13], [0]])
def test_an_encoder_that_unpads_gives_the_same(lengths, norm_first):
    torch.manual_seed(0)
    options = {"depth": 3, "mixers": "fnet,attention,spectral+local", "norm_first": norm_first}
    plain = Encoder(8, num_heads=2, **options).double()
    unpadding = Encoder(8, num_heads=2, unpad=True, **options).double()
    unpadding.load_state_dict(plain.state_dict())
    mask = masked(13, lengths, ["right", "left", "holes", "left"][: len(lengths)])
    x, upstream = randn(*mask.shape, 8), randn(*mask.shape, 8, seed=1)
    seen = []
    unpadding.blocks[1].mlp.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    got = modules_results(unpadding, x.masked_fill(~mask[..., None], torch.nan), upstream, mask)
    for one, other in zip(got, modules_results(plain, x, upstream, mask), strict=True):
        assert_close(one, other)
    assert seen == [(sum(lengths), 8)]
    assert_close(unpadding(x), plain(x))
    packed = flashmix.pack(x, mask)
    assert_close(plain(packed.tokens, **lengths_of(packed)), got[0][mask])


def test_an_encoder_that_unpads_keeps_padding_in_a_compiled_graph():
    encoder = Encoder(8, 2, "fnet,attention", num_heads=2, unpad=True).double()
    mask = masked(13, [13, 7], ["right", "left"])
    x = randn(*mask.shape, 8)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    assert_close(compiled(x, mask), encoder(x, mask))
