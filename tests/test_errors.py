"""Bad input gives one clear ArgumentError: the argument, what it got and what it needs."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flashmix
from flashmix import create_mixer, ops
from flashmix.errors import ArgumentError, ImplementationError, missing_extra
from flashmix.mixers import MIXERS, Hybrid, Spectral, parse_mixer
from flashmix.models import Block, Encoder
from flashmix.ops.dispatch import Implementation, Operator, Signature
from helpers import MIXERS as MIXER_TEXTS
from helpers import OPS, make_mixer, runnable

NOT_FLOATING = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
NOT_COUNTS = [0, -1, True, 2.0, "3", None]

each_op = pytest.mark.parametrize("case", OPS, ids=lambda case: case.name)
each_mixer = pytest.mark.parametrize("text", MIXER_TEXTS)


def wrong_shapes(good, free):
    """Shapes that are not ``good``; axis 0 and those in ``free`` may have any size but zero."""
    shapes = st.lists(st.integers(0, 9), max_size=5).map(tuple)

    def fits(shape):
        return len(shape) == len(good) and all(
            size >= (axis > 0) if axis == 0 or axis in free else size == good[axis]
            for axis, size in enumerate(shape)
        )

    return shapes.filter(lambda shape: not fits(shape))


def refuses(call, *words):
    """``call`` raises ArgumentError, and its message holds all ``words``."""
    with pytest.raises(ArgumentError) as caught:
        call()
    for word in words:
        assert str(word) in str(caught.value)


def operator_call(case, **changes):
    """Call an operator on good inputs of shape [2, 6, 8] or [2, 2, 6, 4], but for ``changes``."""
    tokens, parameters = case.inputs(2, 6, dtype=torch.float32)
    tokens[0] = changes.pop("first", tokens[0])
    return lambda: case.run(*tokens, *parameters, **changes)


def first_argument(case):
    return {"spectral": "x", "fnet": "x", "fourier": "v"}.get(case.operator, "q")


@each_op
@given(data=st.data())
def test_op_refuses_wrong_shapes(case, data):
    # A spectral filter has a fixed width; q must have the shape of k and v; the rest is free.
    good = case.shape(2, 6, 8)
    free = {"spectral": (1,), "fnet": (1, 2), "fourier": (1, 2, 3)}.get(case.operator, ())
    if not free:
        good = (2, *good[1:])
    shape = data.draw(wrong_shapes(good, free))
    if not free and len(shape) == 4 and shape[1:] == good[1:]:
        shape = (5, *shape[1:])
    refuses(operator_call(case, first=torch.zeros(shape)), "[")


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("impl", ["tritn", "", None, 3])
def test_mixer_with_an_unknown_impl_is_never_built(name, impl):
    refuses(lambda: create_mixer(name, 8, impl=impl), "unknown impl", repr(impl), "auto", "torch")


@each_op
@pytest.mark.parametrize("dtype", NOT_FLOATING)
def test_op_refuses_other_dtypes(case, dtype):
    x = torch.zeros(case.shape(2, 6, 8), dtype=dtype)
    refuses(operator_call(case, first=x), first_argument(case), dtype, "float32")


@each_op
@pytest.mark.parametrize("value", [None, 3, [[1.0]], "x"])
def test_op_refuses_what_is_no_tensor(case, value):
    refuses(operator_call(case, first=value), first_argument(case), type(value).__name__)


@each_op
@given(shape=wrong_shapes((2, 6), ()))
def test_op_refuses_masks_of_wrong_shape(case, shape):
    if len(shape) == 2 and shape[1] == 6:
        shape = (shape[0] + 3, 6)
    mask = torch.ones(shape, dtype=torch.bool)
    refuses(operator_call(case, mask=mask), "mask", "[2, 6]", list(shape))


@each_op
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_op_refuses_masks_of_other_dtypes(case, dtype):
    refuses(operator_call(case, mask=torch.ones(2, 6, dtype=dtype)), "mask", "bool", dtype)


@each_op
def test_op_refuses_a_mask_on_another_device_or_no_tensor(case):
    mask = torch.ones(2, 6, dtype=torch.bool, device="meta")
    refuses(operator_call(case, mask=mask), "mask", "cpu", "meta")
    refuses(operator_call(case, mask=[[True] * 6] * 2), "mask", "list")


@each_op
def test_op_refuses_an_empty_sequence(case):
    refuses(operator_call(case, first=torch.zeros(case.shape(2, 0, 8))), "at least one", " N ")


@each_op
def test_op_takes_an_empty_batch(case):
    for impl in set(runnable(case.operator)) - set(case.refused_by):
        tokens, parameters = case.inputs(0, 6, dtype=torch.float32)
        leaves = [x.requires_grad_() for x in (*tokens, *parameters)]
        for mask in (None, torch.ones(0, 6, dtype=torch.bool)):
            y = case.run(*leaves, mask=mask, impl=impl)
            grads = torch.autograd.grad(y.sum(), leaves, allow_unused=True, materialize_grads=True)
            assert y.shape == tokens[0].shape
            assert [grad.shape for grad in grads] == [leaf.shape for leaf in leaves]
            assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("case", [c for c in OPS if c.tokens == 3], ids=lambda case: case.name)
@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize(
    ("other", "word"),
    [
        (torch.zeros(2, 2, 5, 4), "shape"),
        (torch.zeros(2, 1, 6, 4), "shape"),
        (torch.zeros(2, 2, 6, 4, dtype=torch.float64), "dtype"),
        (torch.zeros(2, 2, 6, 4, device="meta"), "device"),
    ],
    ids=["length", "heads", "dtype", "device"],
)
def test_op_refuses_k_or_v_unlike_q(case, which, other, word):
    qkv = dict.fromkeys("qkv", torch.zeros(2, 2, 6, 4)) | {which: other}
    refuses(lambda: case.run(*qkv.values()), which, word)


@pytest.mark.parametrize("value", NOT_COUNTS)
def test_counts_below_one_or_no_integers_are_refused(value):
    q = torch.zeros(1, 1, 4, 2)
    x, weight = torch.zeros(1, 4, 2), torch.zeros(2, 2, 2)
    calls = {
        "window": [
            partial(ops.local_attention, q, q, q, window=value),
            partial(create_mixer, "local", 8, window=value),
        ],
        "topk": [
            partial(ops.topk_attention, q, q, q, topk=value),
            partial(create_mixer, "topk", 8, topk=value),
        ],
        "dim": [partial(kind, value) for kind in MIXERS.values()],
        "depth": [partial(Encoder, 8, value)],
    }
    if value is not None:
        calls |= {
            "modes": [partial(Spectral, 8, modes=value)],
            "context": [
                partial(Spectral, 8, causal=True, context=value),
                partial(ops.spectral, x, weight, causal=True, context=value),
            ],
            "num_heads": [
                partial(create_mixer, name, 8, num_heads=value)
                for name in ("attention", "local", "topk", "fourier", "hybrid")
            ],
        }
    for name, those in calls.items():
        for call in those:
            refuses(call, name, "integer >= 1", repr(value))


@pytest.mark.parametrize("pair", [(1,), (1, 2, 3), (-1, 0), (0, 1.0), (True, 1), (None, 1), ()])
def test_a_window_of_two_sides_is_two_integers(pair):
    q = torch.zeros(1, 1, 4, 2)
    for call in (
        partial(ops.local_attention, q, q, q, window=pair),
        partial(create_mixer, "local", 8, window=pair),
    ):
        refuses(call, "window", "(left, right)", repr(pair))


@pytest.mark.parametrize("name", ["attention", "local", "topk", "fourier", "hybrid"])
@given(dim=st.integers(1, 64), heads=st.integers(2, 70))
def test_heads_must_divide_the_width(name, dim, heads):
    if dim % heads:
        refuses(lambda: create_mixer(name, dim, num_heads=heads), "num_heads", dim, heads)
    else:
        create_mixer(name, dim, num_heads=heads)


@pytest.mark.parametrize("name", ["attention", "local", "topk", "spectral"])
@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_causal_must_be_true_or_false(name, value):
    refuses(lambda: create_mixer(name, 8, causal=value), "causal", repr(value))


@pytest.mark.parametrize(
    "case", [case for case in OPS if "causal" in case.name], ids=lambda case: case.name
)
@pytest.mark.parametrize("value", [1, None])
def test_op_refuses_flags_that_are_no_booleans(case, value):
    refuses(operator_call(case, causal=value), "causal", repr(value))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, w: ops.fnet(x, norm="forward"), ("norm", "'ortho'", "'forward'")),
        (lambda x, w: create_mixer("fnet", 8, norm="forward"), ("norm", "'ortho'", "'forward'")),
        (lambda x, w: create_mixer("topk", 8, selection="blok"), ("selection", "'block'", "blok")),
        (lambda x, w: create_mixer("hybrid", 8, combine="mean"), ("combine", "'gate'", "mean")),
        (lambda x, w: ops.spectral(x, w[:, :5]), ("weight", "[M, 8, 2]", "[3, 5, 2]")),
        (lambda x, w: ops.spectral(x, w[..., 0]), ("weight", "M, D, 2", "[3, 8]")),
        (lambda x, w: ops.spectral(x, w[:0]), ("weight", "M >= 1", "[0, 8, 2]")),
        (lambda x, w: ops.spectral(x, w.int()), ("weight", "int32")),
        (lambda x, w: ops.spectral(x, None), ("weight", "NoneType")),
        (lambda x, w: ops.spectral(x, w, torch.zeros(5)), ("bias", "[8]", "[5]")),
        (lambda x, w: ops.spectral(x, w, torch.zeros(8).int()), ("bias", "int32")),
        (lambda x, w: ops.spectral(x, w, context=4), ("context", "causal=True")),
        (lambda x, w: ops.spectral(x, w, unitary=True, causal=True), ("causal", "unitary")),
        (lambda x, w: Spectral(8, context=4), ("context", "causal=True")),
        (lambda x, w: Spectral(8, unitary=True, causal=True), ("causal", "unitary")),
        (lambda x, w: Hybrid(8, mixers="fnet"), ("mixers", "two", "'fnet'")),
        (lambda x, w: Hybrid(8, mixers=("fnet",)), ("mixers", "two")),
        (lambda x, w: Hybrid(8, mixers=3), ("mixers", "two", "3")),
        (lambda x, w: Hybrid(8, mixers=("fnet", 3)), ("mixer", "3")),
        (lambda x, w: Hybrid(9, combine="heads"), ("9", "2 mixers")),
        (lambda x, w: Hybrid(8, num_heads=1, combine="heads"), ("num_heads = 1", "2 mixers")),
        (lambda x, w: Block(8, create_mixer("fnet", 9)), ("mixer", "8", "9")),
        (lambda x, w: Block(8, "fnet", mlp_ratio=0.1), ("mlp_ratio", "0.1")),
        (lambda x, w: Block(8, "fnet", norm_first=1), ("norm_first", "1")),
        (lambda x, w: Encoder(8, 2)(x[..., :7]), ("x", "D = 8", "[2, 6, 7]")),
        (lambda x, w: create_mixer("fourier", 8).magnitude(x[0]), ("x", "[6, 8]")),
        (lambda x, w: ops.fourier_weights(x), ("v", "[2, 6, 8]")),
        (lambda x, w: flashmix.explain("fnet", (2, 3)), ("shape", "B, N, D", "[2, 3]")),
        (lambda x, w: flashmix.explain("fnet", (2, 3, 0)), ("shape", "positive", "[2, 3, 0]")),
        (lambda x, w: flashmix.explain("fnet", (2, 3, 4), torch.int8), ("dtype", "int8")),
    ],
)
def test_other_bad_arguments_are_refused(call, words):
    refuses(lambda: call(torch.zeros(2, 6, 8), torch.zeros(3, 8, 2)), *words)


@each_mixer
@given(shape=wrong_shapes((2, 6, 8), (1,)))
def test_mixer_refuses_wrong_shapes(text, shape):
    mixer = make_mixer(text, dtype=torch.float32)
    refuses(lambda: mixer(torch.zeros(shape)), type(mixer).__name__, "x must", list(shape))


@each_mixer
@pytest.mark.parametrize("dtype", NOT_FLOATING)
def test_mixer_refuses_other_dtypes(text, dtype):
    mixer = make_mixer(text, dtype=torch.float32)
    refuses(lambda: mixer(torch.zeros(2, 6, 8, dtype=dtype)), "x must be float32", dtype)


@each_mixer
def test_mixer_refuses_bad_masks(text):
    mixer = make_mixer(text, dtype=torch.float32)
    x = torch.zeros(2, 6, 8)
    for mask, word in (
        (torch.ones(2, 5, dtype=torch.bool), [2, 5]),
        (torch.ones(6, dtype=torch.bool), [6]),
        (torch.ones(2, 6, 1, dtype=torch.bool), [2, 6, 1]),
        (torch.ones(2, 6), "float32"),
        (torch.ones(2, 6, dtype=torch.int64), "mask.bool()"),
        (torch.ones(2, 6, dtype=torch.bool, device="meta"), "meta"),
        (True, "bool"),
    ):
        refuses(lambda mask=mask: mixer(x, mask), type(mixer).__name__, "mask must", word)


@pytest.mark.parametrize(
    ("call", "near", "listed"),
    [
        (lambda: create_mixer("fnett", 8), "'fnet'", "attention, fnet, fourier"),
        (lambda: create_mixer("locl(window=3)", 8), "'local'", "topk"),
        (lambda: create_mixer("local", 8, windw=3), "'window'", "num_heads"),
        (lambda: create_mixer("local(windw=3)", 8), "'window'", "num_heads"),
        (lambda: create_mixer("spectral+locl", 8), "'local'", "topk"),
        (lambda: flashmix.explain("fnt", (1, 2, 3)), "'fnet'", "spectral"),
        (lambda: ops.fnet(torch.zeros(1, 2, 3), impl="referense"), "'reference'", "torch"),
        (lambda: ops.attention(*torch.zeros(3, 1, 1, 2, 3), impl="spda"), "'sdpa'", "naive"),
        (lambda: create_mixer("topk", 8, impl="torhc")(torch.zeros(1, 40, 8)), "'torch'", "auto"),
        (lambda: Encoder(8, 2, "fnet,atention"), "'attention'", "topk"),
    ],
)
def test_unknown_names_list_the_choices_and_suggest_the_nearest(call, near, listed):
    refuses(call, f"did you mean {near}?", listed)


def test_a_name_like_no_other_lists_the_choices_alone():
    refuses(lambda: create_mixer("zzz", 8), "Choices: attention, fnet")
    with pytest.raises(ArgumentError) as caught:
        create_mixer("zzz", 8)
    assert "did you mean" not in str(caught.value)


@each_op
def test_every_op_refuses_an_unknown_impl(case):
    refuses(operator_call(case, impl="cuda9"), "impl", "cuda9", "reference")


def test_an_impl_that_cannot_run_here_raises_and_says_what_is_missing():
    here = Implementation(name="torch", run=lambda: "ran", summary="")
    gpu = Implementation(name="gpu", run=lambda: None, summary="", devices=("cuda",))
    half = Implementation(name="half", run=lambda: None, summary="", dtypes=(torch.float16,))
    absent = Implementation(
        name="absent", run=lambda: None, summary="", missing=lambda: "needs a package: install it"
    )
    operator = Operator(name="an op", axes="B", implementations=[gpu, half, absent, here])
    signature = Signature((2, 3, 4), torch.float32, torch.device("cpu"))

    def choose(impl):
        return operator.select(impl, signature).implementation

    assert choose("auto").run() == choose("torch").run() == "ran"
    for name, words in (
        ("gpu", "'gpu' runs on cuda, not on cpu"),
        ("half", "'half' does not support torch.float32"),
        ("absent", "'absent' needs a package: install it"),
    ):
        with pytest.raises(ImplementationError, match=words):
            choose(name)
    none_left = Operator(name="an op", axes="B", implementations=[gpu, absent])
    with pytest.raises(ImplementationError, match=r"'gpu' runs on cuda.*'absent' needs a"):
        none_left.select("auto", signature)


def test_a_missing_extra_comes_with_its_install_command():
    error = missing_extra("scikit-learn", "tasks", "training on digits")
    assert isinstance(error, ImportError)
    assert "training on digits needs scikit-learn" in str(error)
    assert "pip install 'flashmix[tasks]'" in str(error)


@given(text=st.text(alphabet="fnetlocal()[]{}=,*+'\"\\ 0123_:", max_size=25))
def test_any_text_is_a_mixer_or_an_argument_error(text):
    try:
        spec = parse_mixer(text)
    except ArgumentError as error:
        assert repr(text) in str(error) or "mixer" in str(error)
    else:
        assert spec.name == "hybrid" or spec.name in text


@pytest.mark.parametrize(
    ("shape", "device", "message"),
    [
        (5, "cpu", "3 positive integers"),
        ((2, 0, 4), "cpu", "3 positive integers"),
        ((2, 3), "cpu", "3 positive integers"),
        ((2, 3, 4), "foo", "such as 'cpu' or 'cuda'"),
        ((2, 3, 4), None, "such as 'cpu' or 'cuda'"),
    ],
)
def test_explain_refuses_what_is_no_case(shape, device, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        flashmix.explain("fnet", shape, torch.float32, device)
