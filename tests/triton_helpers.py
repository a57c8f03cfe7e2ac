"""What the tests of the sparse attentions' Triton kernels share."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flashmix import ops
from flashmix.ops._triton.availability import DTYPES, INTERPRETED
from helpers import relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1"
)
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def each_case(cases):
    """Parametrise over (case, dtype); the interpreter, which is slow, takes half types twice."""
    pairs = [(case, dtype) for dtype in DTYPES for case in cases]
    if DEVICE == "cpu":
        pairs = [one for one in pairs if one[1] == torch.float32 or one[0] in cases[:2]]
    return pytest.mark.parametrize(("case", "dtype"), pairs, ids=str)


# Rounding to nearest errs by 12**-0.5 epsilon in RMS. Forward: weights and output are rounded;
# backward: also the output in delta, and the slopes. Sums that cancel amplify by less than three.
ROUNDINGS = {"forward": 3 * 2**0.5 * 12**-0.5, "backward": 3 * 6**0.5 * 12**-0.5}


def budget(dtype, direction):
    """How far from float64 a result may be; float32 products sum a few hundred terms."""
    return 2e-6 if dtype == torch.float32 else ROUNDINGS[direction] * torch.finfo(dtype).eps


def qkv(batch, heads, key_heads, n, width, dtype=torch.float32, seed=0):
    """Leaves q [B, H, N, dh], k and v [B, K, N, dh], and a gradient for the output."""
    generator = torch.Generator().manual_seed(seed)

    def make(h):
        x = torch.randn(batch, h, n, width, generator=generator)
        return x.to(DEVICE, dtype)

    leaves = [make(h).requires_grad_() for h in (heads, key_heads, key_heads)]
    return leaves, make(heads)


def holes(batch, n):
    """A mask with padding in front, behind and within; the last sequence is nothing else."""
    mask = torch.rand(batch, n, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[-1] = False
    return mask.to(DEVICE)


def poisoned(leaves, mask):
    """The leaves with NaN at padding, which no result may show."""
    return [
        x.detach().masked_fill(~mask[:, None, :, None], float("nan")).requires_grad_()
        for x in leaves
    ]


def outputs(run, leaves, upstream):
    y = run(*leaves)
    return [y, *torch.autograd.grad(y, leaves, upstream.to(y.dtype))]


def check(run, leaves, upstream, reference=None):
    """``run(q, k, v, impl=)`` in the dtype of the leaves is near float64: values and gradients."""
    dtype = leaves[0].dtype
    wide = [x.detach().double().requires_grad_() for x in leaves]
    got = outputs(lambda *x: run(*x, impl="triton"), leaves, upstream)
    want = outputs(reference or (lambda *x: run(*x, impl="reference")), wide, upstream)
    for place, (one, exact) in enumerate(zip(got, want, strict=True)):
        assert one.dtype == dtype
        limit = budget(dtype, "backward" if place else "forward")
        assert relative_error(one, exact) <= limit, f"output {place}"
    return got


def check_case(runner, shape, dtype, masked):
    """``runner(mask)`` gives what :func:`check` takes; NaN at padding shows nowhere."""
    leaves, upstream = qkv(*shape, dtype=dtype)
    mask = holes(shape[0], shape[3]) if masked else None
    if masked:
        leaves = poisoned(leaves, mask)
    got = check(runner(mask), leaves, upstream)
    if masked:
        for one in got:
            assert not one.masked_select(~mask[:, None, :, None]).any()


def check_joins(run, shape, masked):
    """Heads that ``run(q, k, v, mask)`` returns, and its gradients, are joined without a copy."""
    leaves, upstream = qkv(*shape)
    mask = holes(shape[0], shape[3]) if masked else None
    for one in outputs(lambda *x: run(*x, mask), leaves, upstream):
        assert one.transpose(1, 2).flatten(2).data_ptr() == one.data_ptr()


class Copies(TorchDispatchMode):
    """Counts PyTorch's copies of as many elements as ``size`` or more, by the op's name."""

    def __init__(self, size):
        super().__init__()
        self.size, self.found = size, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        name = op.overloadpacket.__name__
        if name in ("clone", "copy_", "cat", "stack", "_to_copy") and result.numel() >= self.size:
            self.found.append(name)
        return result


def check_copies_once(mixer):
    """Between projections and kernels a mixer copies once: the gradients of q, k and v."""
    mixer = mixer.to(DEVICE)
    x = torch.randn(2, 40, mixer.dim, device=DEVICE, requires_grad=True)
    upstream = torch.randn(2, 40, mixer.dim, device=DEVICE)
    with Copies(x.numel()) as copies:
        torch.autograd.grad(mixer(x), [x, *mixer.parameters()], upstream)
    assert copies.found in (["stack"], ["cat"])


def half_real(shape, masked):
    """As :func:`holes` where ``masked``, but half of the last sequence is real."""
    if not masked:
        return None
    mask = holes(shape[0], shape[3])
    mask[-1, : shape[3] // 2] = True
    return mask


def replays(run, leaves, upstream):
    """``run`` is captured in a CUDA graph without waiting for the host; the outputs it fills."""
    outputs(run, leaves, upstream)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            got = outputs(run, leaves, upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.no_grad():
        leaves[0].copy_(torch.randn_like(leaves[0]))
    graph.replay()
    return got


def repeated(q, k, v):
    """k and v by the definition of shared heads."""
    group = q.shape[1] // k.shape[1]
    return k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)


def explained(op, shape, **options):
    return ops.explain(op, shape, torch.float16, "cuda", **options)
