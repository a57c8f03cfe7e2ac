"""What the tests share: seeded inputs, relative error, and the tables of mixers and operators.

Shapes: B batch, N tokens, D width, H heads, dh width of a head, M modes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from flashmix import ops
from flashmix.mixers import MixerSpec, parse_mixer

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
HALF = [torch.bfloat16, torch.float16]

# Two correct float64 computations of one formula differ by their roundings: 2.2e-16 each, over
# fewer than a thousand operations on a path from input to output, amplified less than 100-fold.
FLOAT64_BUDGET = 1e3 * 1e2 * torch.finfo(torch.float64).eps


def randn(*shape: int, seed: int = 0, dtype=torch.float64, device="cpu") -> Tensor:
    """Standard normal numbers, the same on every device and, up to rounding, in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def relative_error(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want| in float64, over all elements; NaN and wrong shapes never pass."""
    assert got.shape == want.shape, f"shape {list(got.shape)}, expected {list(want.shape)}"
    got, want = got.detach().double(), want.detach().double()
    error, scale = (got - want).norm().item(), want.norm().item()
    return error / scale if scale else error


def assert_close(got: Tensor, want: Tensor, budget: float = FLOAT64_BUDGET) -> None:
    error = relative_error(got, want)
    assert error <= budget, f"relative error {error:.2e} exceeds {budget:.2e}"


# Every mixer, and every option that changes what it computes.
MIXERS = [
    "attention",
    "attention(causal=True)",
    "attention(impl=naive)",
    "attention(num_kv_heads=1)",
    "local(window=5)",
    "local(window=4, causal=True)",
    "local(window=(4, 1))",
    "local(window=5, impl=reference)",
    "local(window=5, num_kv_heads=1)",
    "topk(topk=3)",
    "topk(topk=3, causal=True)",
    "topk(topk=3, impl=reference)",
    "topk(topk=6, selection=block)",
    "topk(topk=6, selection=block, causal=True)",
    "topk(topk=6, selection=block, impl=reference)",
    "fnet",
    "fnet(norm=ortho)",
    "fnet(impl=reference)",
    "spectral(modes=3)",
    "spectral(modes=40)",
    "spectral(modes=3, unitary=True)",
    "spectral(modes=40, unitary=True)",
    "spectral(modes=3, causal=True)",
    "spectral(modes=3, causal=True, context=12)",
    "spectral(modes=3, impl=reference)",
    "spectral(modes=3, causal=True, impl=reference)",
    "fourier",
    "fourier(impl=reference)",
    "hybrid(mixers=('spectral(modes=3)', 'local(window=3)'))",
    "hybrid(mixers=('fnet', 'topk(topk=2)'), combine=gate)",
    "hybrid(mixers=('fourier', 'attention'), combine=heads)",
]


def fresh_mixer(text: str, dim: int = 8, *, num_heads: int = 2, **options) -> nn.Module:
    """A mixer as it is created, with ``num_heads`` where it has heads."""
    spec = parse_mixer(text)
    return MixerSpec(spec.name, {**spec.options, **options}).build(dim, num_heads=num_heads)


def make_mixer(
    text: str, dim: int = 8, *, num_heads: int = 2, dtype=torch.float64, device="cpu", **options
) -> nn.Module:
    """A mixer whose parameters are all random, since some start where they do nothing."""
    mixer = fresh_mixer(text, dim, num_heads=num_heads, **options)
    for seed, parameter in enumerate(mixer.parameters()):
        parameter.data = randn(*parameter.shape, seed=100 + seed) * dim**-0.5
    return mixer.to(device, dtype)


def by_reference(module: nn.Module) -> nn.Module:
    """The module, with every mixer in it computed by its formula."""
    for one in module.modules():
        if hasattr(one, "impl"):
            one.impl = "reference"
    return module


@dataclass(frozen=True)
class OpCase:
    """An operator with options: ``run(*tokens, *parameters, mask=, impl=)``.

    ``token_axis`` is 1 for [B, N, D] and 2 for [B, H, N, dh]; ``parameters`` maps D to the shapes
    of what else is learned. The implementations in ``refused_by`` refuse these options.
    """

    name: str
    operator: str
    run: Callable[..., Tensor]
    token_axis: int
    tokens: int = 1
    parameters: Callable[[int], list[tuple[int, ...]]] = lambda dim: []
    refused_by: tuple[str, ...] = ()

    def shape(self, batch: int, n: int, dim: int, heads: int = 2) -> tuple[int, ...]:
        return (batch, n, dim) if self.token_axis == 1 else (batch, heads, n, dim // heads)

    def inputs(
        self, batch: int, n: int, dim: int = 8, *, heads: int = 2, dtype=torch.float64, device="cpu"
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The token tensors and the parameters."""
        shapes = [self.shape(batch, n, dim, heads)] * self.tokens
        make = partial(randn, dtype=dtype, device=device)
        tokens = [make(*shape, seed=seed) for seed, shape in enumerate(shapes)]
        return tokens, [make(*s, seed=50 + i) for i, s in enumerate(self.parameters(dim))]


def _heads(name: str, operator: str, function: Callable[..., Tensor], **options) -> OpCase:
    return OpCase(name, operator, partial(function, **options), 2, 3)


def _spectral(name: str, modes: int, *, bias: bool = True, **options) -> OpCase:
    def run(x: Tensor, weight: Tensor, *bias: Tensor, **keywords) -> Tensor:
        return ops.spectral(x, weight, *bias, **{**options, **keywords})

    return OpCase(
        name,
        "spectral",
        run,
        1,
        1,
        lambda dim: [(modes, dim, 2), *([(dim,)] if bias else [])],
        ("cpu", "triton") if options.get("causal") else (),
    )


OPS = [
    _heads("attention", "attention", ops.attention),
    _heads("attention-causal", "attention", ops.attention, causal=True),
    _heads("local", "local_attention", ops.local_attention, window=5),
    _heads("local-causal", "local_attention", ops.local_attention, window=4, causal=True),
    _heads("local-pair", "local_attention", ops.local_attention, window=(1, 4)),
    _heads("topk", "topk_attention", ops.topk_attention, topk=3),
    _heads("topk-causal", "topk_attention", ops.topk_attention, topk=3, causal=True),
    _heads("block", "block_topk_attention", ops.topk_attention, topk=6, selection="block"),
    _heads(
        "block-causal",
        "block_topk_attention",
        ops.topk_attention,
        topk=6,
        selection="block",
        causal=True,
    ),
    OpCase("fnet", "fnet", ops.fnet, 1),
    OpCase("fnet-ortho", "fnet", partial(ops.fnet, norm="ortho"), 1),
    _spectral("spectral", 3),
    _spectral("spectral-all-modes", 40),
    _spectral("spectral-unitary", 3, bias=False, unitary=True),
    _spectral("spectral-causal", 3, causal=True),
    _spectral("spectral-causal-long", 3, causal=True, context=12),
    OpCase("fourier", "fourier", ops.fourier, 2),
]


def runnable(operator: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """Names of the implementations of an operator that run on some device here.

    Those for GPUs alone refuse many shapes, and have tests of their own, test_triton_*.py.
    """
    return [
        one.name
        for one in ops.OPERATORS[operator].implementations
        if "cpu" in one.devices
        and any(one.unavailable_reason(dtype, device) is None for device in DEVICES)
    ]


def skip_unless_runs(operator: str, impl: str, dtype: torch.dtype, device: str) -> None:
    """Skip a case that the implementation says it does not support."""
    (one,) = (x for x in ops.OPERATORS[operator].implementations if x.name == impl)
    if refusal := one.unavailable_reason(dtype, device):
        pytest.skip(f"{impl} {refusal}")


def each_impl(cases: list[OpCase] = OPS, *, without: tuple[str, ...] = ()):
    """Parametrise over (case, impl) for all implementations but those named."""
    return pytest.mark.parametrize(
        ("case", "impl"),
        [
            pytest.param(case, impl, id=f"{case.name}-{impl}")
            for case in cases
            for impl in runnable(case.operator)
            if impl not in (*without, *case.refused_by)
        ],
    )


each_mixer = pytest.mark.parametrize("text", MIXERS)


def right_padding(batch: int, n: int, device="cpu") -> Tensor:
    """A mask [B, N] whose sequences have n, n - 1, ... real tokens, at the left."""
    lengths = torch.arange(n, n - batch, -1, device=device).clamp(min=0)
    return torch.arange(n, device=device) < lengths[:, None]
