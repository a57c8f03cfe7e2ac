"""Operators as PyTorch sees them: registered whole, compiled without a break, exported."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

import flashmix.ops  # noqa: F401
from flashmix import list_mixers
from flashmix.models import Block, Encoder
from flashmix.ops._cpu import library
from helpers import FLOAT64_BUDGET, assert_close, each_mixer, make_mixer, randn, right_padding


def tensors(count, *shape, device, grad=True):
    return [
        randn(*shape, seed=seed, dtype=torch.float32, device=device).requires_grad_(grad)
        for seed in range(count)
    ]


def qkv(device, **options):
    return tensors(3, 2, 2, 9, 4, device=device, **options)


def heads_samples(plain, masked):
    """A call without a mask, and one with it: ``plain`` and ``masked`` are what follows the mask.

    The composite ops among these are traced through, which takes seconds a call.
    """
    return lambda device, mask: [(*qkv(device), None, *plain), (*qkv(device), mask, *masked)]


def fnet(device, mask):
    return [(*tensors(1, 2, 9, 6, device=device), m, n) for m in (None, mask) for n in NORMS]


def spectral(device, mask):
    x, weight = tensors(1, 2, 9, 6, device=device) + tensors(1, 3, 6, 2, device=device)
    return [(x, weight, m, unitary) for m in (None, mask) for unitary in (False, True)]


def spectral_backward(device, mask):
    grad, x = tensors(2, 2, 9, 6, device=device, grad=False)
    (weight,) = tensors(1, 3, 6, 2, device=device, grad=False)
    return [(grad, x, weight, m, unitary) for m in (None, mask) for unitary in (False, True)]


def spectral_cpu(device, mask):
    (bias,) = tensors(1, 6, device=device)
    calls = spectral(device, mask)
    return [(x, w, b, m, unitary) for x, w, m, unitary in calls for b in (None, bias)]


def causal_conv(device, mask):
    (x,) = tensors(1, 2, 9, 6, device=device)
    return [(x, tensors(1, taps, 6, device=device)[0]) for taps in (1, 4, 20)]


def causal_conv_taps_grad(device, mask):
    return [(*tensors(2, 2, 9, 6, device=device, grad=False), taps) for taps in (1, 4, 20)]


def fourier(device, mask):
    return [(*tensors(1, 2, 9, 2, 3, device=device), m) for m in (None, mask)]


def fourier_backward(device, mask):
    return [(*tensors(2, 2, 9, 2, 3, device=device, grad=False), m) for m in (None, mask)]


def topk_backward(device, mask):
    index = torch.arange(3, dtype=torch.int32, device=device).expand(2, 2, 9, 3).contiguous()
    weights = randn(2, 2, 9, 3, dtype=torch.float32, device=device).softmax(-1)
    (grad,) = tensors(1, 2, 2, 9, 4, device=device, grad=False)
    return [(grad, *qkv(device, grad=False), index, weights)]


def local_backward(device, mask):
    (grad,) = tensors(1, 2, 2, 9, 4, device=device, grad=False)
    logarithm = randn(2, 2, 9, dtype=torch.float32, device=device)
    inputs = (grad, *qkv(device, grad=False), logarithm)
    return [(*inputs, m, 3, after) for m, after in ((None, 3), (mask, 0))]


def block_backward(device, mask):
    (grad,) = tensors(1, 2, 2, 9, 4, device=device, grad=False)
    logarithm = randn(2, 2, 9, dtype=torch.float32, device=device)
    kept = torch.ones(2, 2, 3, 3, dtype=torch.bool, device=device).tril()
    inputs = (grad, *qkv(device, grad=False), logarithm, kept)
    return [(*inputs, m, causal) for m, causal in ((None, False), (mask, True))]


def topk_cpu(device, mask):
    return [(*qkv(device), m, 3, causal, True) for m in (None, mask) for causal in (False, True)]


def packed(calls):
    """The samples with a mask, of packed tokens: [T, ...] for [B, N, ...], offsets for the mask."""

    def samples(device, mask):
        offsets = torch.cat((mask.new_zeros(1), mask.sum(1).cumsum(0))).int()

        def tokens(x):
            # Heads stand before tokens only in what is [B, 2, 9, ...].
            by_token = x.transpose(1, 2) if x.shape[1] == 2 else x
            one = by_token.detach()[mask]
            if x.dim() == 3 and x.shape[1] == 2:
                one = one.t().contiguous()
            return one.requires_grad_(x.requires_grad)

        return [
            tuple(offsets if x is mask else tokens(x) if batched(x, mask) else x for x in call)
            for call in calls(device, mask)
            if any(x is mask for x in call)
        ]

    return samples


def batched(x, mask):
    return isinstance(x, torch.Tensor) and x.dim() > 2 and x.shape[0] == 2 and 9 in x.shape


def without_gradients(calls):
    return lambda device, mask: [
        tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in call)
        for call in calls(device, mask)
    ]


NORMS = ("backward", "ortho")
SAMPLES = {
    "attention_torch": heads_samples((False,), (True,)),
    "local_attention_torch": heads_samples((1, 4), (3, 0)),
    "local_attention_cpu": heads_samples((1, 4), (3, 0)),
    "local_attention_cpu_backward": local_backward,
    "topk_attention_torch": heads_samples((3, False), (3, True)),
    "topk_attention_torch_backward": topk_backward,
    "topk_attention_cpu": topk_cpu,
    "topk_attention_cpu_backward": topk_backward,
    "block_topk_attention_torch": heads_samples((6, False), (6, True)),
    "block_topk_attention_cpu": heads_samples((6, False), (6, True)),
    "block_topk_attention_cpu_backward": block_backward,
    "fnet_torch": fnet,
    "fnet_cpu": fnet,
    "fnet_dense": fnet,
    "spectral_torch": spectral,
    "spectral_cpu": spectral_cpu,
    "spectral_cpu_backward": spectral_backward,
    "spectral_torch_backward": spectral_backward,
    "causal_conv": causal_conv,
    "causal_conv_taps_grad": causal_conv_taps_grad,
    "fourier_torch": fourier,
    "fourier_torch_backward": fourier_backward,
    "fourier_cpu": fourier,
    "fourier_cpu_backward": fourier_backward,
}
SAMPLES |= {
    name.replace("_cpu", "_cpu_packed"): packed(SAMPLES[name])
    for name in SAMPLES
    if "_cpu" in name and name.startswith(("local", "fnet", "spectral", "fourier"))
}
# Triton's ops need a GPU or its interpreter, and are checked beside their kernels.
REGISTERED = {
    name.removeprefix("flashmix::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("flashmix::") and "triton" not in name and "launcher" not in name
    # Of these, the launcher calls a kernel's Python.
    if not name.endswith(("_python", "_autograd"))
}
SAMPLES |= {
    name: without_gradients(SAMPLES[name.removesuffix("_forward")])
    for name in sorted(REGISTERED)
    if name.endswith("_forward")
}


def test_every_registered_op_has_a_sample():
    assert set(SAMPLES) == REGISTERED


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name, device, small_blocks):
    if "_cpu" in name and (device != "cpu" or library.missing()):
        pytest.skip(library.missing() or "native kernels run on the CPU")
    for sample in SAMPLES[name](device, right_padding(2, 9, device=device)):
        torch.library.opcheck(getattr(torch.ops.flashmix, name).default, sample)


def run(module, x, mask, upstream):
    """Output and all gradients."""
    x = x.detach().requires_grad_()
    y = module(x, mask)
    return y, *torch.autograd.grad(y, [x, *module.parameters()], upstream)


def loops_over_sequences(text):
    """References that transform one sequence at a time cannot be traced with a mask."""
    return "impl=reference" in text and any(
        name in text for name in ("fnet", "spectral", "fourier")
    )


def check_compiled(
    module, device, *, lengths=(9,), masked=(False, True), dtype=torch.float64, budget=None, **how
):
    """Outputs and gradients, and the output alone, are those of the module itself."""
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, **{"backend": "aot_eager", **how})
    for n in lengths:
        x, upstream = randn(2, 2, n, 8, dtype=dtype, device=device)
        for with_mask in masked:
            mask = right_padding(2, n, device=device) if with_mask else None
            got, want = (run(one, x, mask, upstream) for one in (compiled, module))
            with torch.no_grad():
                got, want = (*got, compiled(x, mask)), (*want, module(x, mask))
            for one, other in zip(got, want, strict=True):
                assert_close(one, other, budget or FLOAT64_BUDGET)


@each_mixer
def test_mixer_compiles_without_a_graph_break(text, device, small_blocks):
    masked = (False,) if loops_over_sequences(text) else (False, True)
    check_compiled(make_mixer(text, device=device), device, masked=masked)


@pytest.mark.parametrize("name", list_mixers())
def test_mixer_compiles_for_any_length_at_once(name, device):
    check_compiled(make_mixer(name, device=device), device, dynamic=True, lengths=(9, 13))


@pytest.mark.parametrize("name", list_mixers())
def test_block_compiles_without_a_graph_break(name, device):
    check_compiled(Block(8, name, num_heads=2).to(device, torch.float64), device)


def test_encoder_compiles_with_inductor(device):
    if device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("Inductor needs a C++ compiler on the CPU")
    torch.manual_seed(0)
    encoder = Encoder(8, 2, "topk(topk=3),spectral+local", num_heads=2)
    # Inductor reorders float32 sums: a hundred roundings of 1.2e-7 at most.
    check_compiled(encoder.to(device), device, backend="inductor", budget=1e-5, dtype=torch.float32)


@each_mixer
def test_mixer_exports(text, device):
    mixer = make_mixer(text, device=device)
    x, other = randn(2, 2, 9, 8, device=device)
    mask = right_padding(2, 9, device=device)
    calls = [((x,), (other,)), ((x, mask), (other, mask.flip(1)))]
    for inputs, others in calls[:1] if loops_over_sequences(text) else calls:
        exported = torch.export.export(mixer, inputs).module()
        assert_close(exported(*others), mixer(*others))
