"""The ops of flashmix beside what a user would otherwise run for the same result.

A baseline is a function of the op's inputs. Each op's table names what users run today; the
implementations of flashmix come from its own registry.

Shapes: fnet and spectral take x [B, N, D]; the attentions q, k, v [B, H, N, dh], fourier v alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix import ops
from flashmix.bench.case import BenchmarkCase, mask_of
from flashmix.ops import OPERATORS
from flashmix.ops.dispatch import Signature

Function = Callable[..., Tensor]


def _fftn(case: BenchmarkCase) -> Function:
    """As Hugging Face's FNet writes it."""
    wide = torch.float32
    return lambda x: torch.fft.fftn(x.to(wide), dim=(1, 2)).real.to(x.dtype)


def _fft_fft(case: BenchmarkCase) -> Function:
    wide = torch.float32
    return lambda x: torch.fft.fft(torch.fft.fft(x.to(wide), dim=-1), dim=-2).real.to(x.dtype)


def _rfft_filter_irfft(case: BenchmarkCase) -> Function:
    """As spectral layers usually write it, with the higher modes dropped."""

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x.float(), dim=1)
        kept = min(weight.shape[0], spectrum.shape[1])
        filtered = torch.zeros_like(spectrum)
        filtered[:, :kept] = spectrum[:, :kept] * torch.view_as_complex(weight[:kept])
        return (torch.fft.irfft(filtered, n=x.shape[1], dim=1) + bias).to(x.dtype)

    return run


def _rfft_weigh_irfft(case: BenchmarkCase) -> Function:
    """As the formula of Fourier attention reads."""

    def run(v: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(v.float(), dim=2)
        weights = spectrum.abs().square().mean(-1, keepdim=True).add(1e-6).log().softmax(2)
        return torch.fft.irfft(spectrum * weights * spectrum.shape[2], n=v.shape[2], dim=2).to(
            v.dtype
        )

    return run


def _near(case: BenchmarkCase) -> Tensor:
    assert case.window is not None
    i = torch.arange(case.seq_len, device=case.device)
    return (i[:, None] - i).abs() <= case.window // 2


def _sdpa(case: BenchmarkCase) -> Function:
    """Dense fused attention: not the same result, but what the sparse ones must beat."""
    if (mask := mask_of(case)) is None:
        return F.scaled_dot_product_attention
    real = mask[:, None, None]
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=real)


def _sdpa_mask(case: BenchmarkCase) -> Function:
    mask, real = _near(case), mask_of(case)
    if real is not None:
        mask = mask & real[:, None, None]
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _flex_parts(case: BenchmarkCase) -> tuple[Callable[[], Any], Callable[..., Tensor]]:
    """FlexAttention, compiled, and what builds its block mask, which visits all N x N pairs."""
    import torch._dynamo
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    assert case.window is not None
    reach, n = case.window // 2, case.seq_len

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i - j).abs() <= reach

    # After eight shapes a compiled function would silently run dense and uncompiled.
    torch._dynamo.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: create_block_mask(near, None, None, n, n, device=case.device), compiled


def _flex(case: BenchmarkCase) -> Function:
    """FlexAttention, compiled, its block mask built beforehand."""
    build, attend = _flex_parts(case)
    mask = build()
    return lambda q, k, v: attend(q, k, v, block_mask=mask)


def _flex_mask(case: BenchmarkCase) -> Function:
    """FlexAttention, compiled, its block mask built anew in each call, as for lengths that vary."""
    build, attend = _flex_parts(case)
    return lambda q, k, v: attend(q, k, v, block_mask=build())


def _topk_scatter(case: BenchmarkCase) -> Function:
    """As usually written: all scores, topk, scatter, softmax."""
    assert case.topk is not None
    count = min(case.topk, case.seq_len)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        values, index = scores.topk(count, dim=-1)
        kept = torch.full_like(scores, float("-inf")).scatter(-1, index, values)
        return kept.softmax(-1) @ v

    return run


def _local_attention_package(case: BenchmarkCase) -> Function:
    """Package local-attention; N must be a multiple of half the window.

    It pads other lengths itself, but attends to that padding.
    """
    from local_attention import LocalAttention

    assert case.window is not None
    layer = LocalAttention(
        window_size=max(1, case.window // 2),
        causal=False,
        look_forward=1,
        exact_windowsize=True,
        use_rotary_pos_emb=False,
    )
    return layer.to(case.device)


def _x_transformers(case: BenchmarkCase) -> Function:
    """Package x-transformers, with its ``sparse_topk``."""
    from x_transformers.attend import Attend

    assert case.topk is not None
    layer = Attend(sparse_topk=min(case.topk, case.seq_len))
    return lambda q, k, v: layer(q, k, v)[0]


PEERS = {"local-attention": "local_attention", "x-transformers": "x_transformers"}
"""Baselines that are packages of their own, and what they import as: timed where installed."""

BASELINES: dict[str, dict[str, Callable[[BenchmarkCase], Function]]] = {
    "fnet": {"fftn": _fftn, "fft-fft": _fft_fft},
    "spectral": {"rfft-filter-irfft": _rfft_filter_irfft},
    "fourier": {"rfft-weigh-irfft": _rfft_weigh_irfft},
    "local_attention": {
        "sdpa": _sdpa,
        "sdpa-mask": _sdpa_mask,
        "flex": _flex,
        "flex-mask": _flex_mask,
        "local-attention": _local_attention_package,
    },
    "topk_attention": {
        "sdpa": _sdpa,
        "topk-scatter": _topk_scatter,
        "x-transformers": _x_transformers,
    },
    "block_topk_attention": {"sdpa": _sdpa},
}


def installed_baselines(op: str) -> list[str]:
    """What a user would otherwise run, the peers among it where they are installed."""
    return [
        name for name in BASELINES[op] if name not in PEERS or importlib.util.find_spec(PEERS[name])
    ]


def implementations(case: BenchmarkCase) -> list[str]:
    """The op's own implementations that can run ``case`` here, the reference left aside."""
    assert case.op is not None
    dtype = getattr(torch, case.dtype)
    shape: tuple[int, ...] = (case.batch, case.seq_len, case.dim)
    if case.op not in ("fnet", "spectral"):
        shape = (case.batch, case.num_heads, case.seq_len, case.dim // case.num_heads)
    given = {"window": case.window, "topk": case.topk, "modes": case.modes}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if case.lengths != "full":
        options["masked"] = True
    signature = Signature(shape, dtype, torch.device(case.device), options)
    return [
        one.name
        for one in OPERATORS[case.op].registered()
        if one.name != "reference" and one.refusal(signature) is None
    ]


def _own(case: BenchmarkCase) -> Function:
    mask = mask_of(case)
    if case.op == "fnet":
        return lambda x: ops.fnet(x, mask=mask, impl=case.impl)
    if case.op == "spectral":
        return lambda x, weight, bias: ops.spectral(x, weight, bias, mask=mask, impl=case.impl)
    if case.op == "local_attention":
        assert case.window is not None
        window = case.window
        return lambda q, k, v: ops.local_attention(
            q, k, v, mask=mask, window=window, impl=case.impl
        )
    if case.op == "fourier":
        return lambda v: ops.fourier(v, mask=mask, impl=case.impl)
    assert case.topk is not None
    topk = case.topk
    selection: Literal["exact", "block"] = "exact" if case.op == "topk_attention" else "block"
    return lambda q, k, v: ops.topk_attention(
        q, k, v, mask=mask, topk=topk, selection=selection, impl=case.impl
    )


def build_function(case: BenchmarkCase) -> tuple[list[Tensor], Function]:
    """The inputs of an op's case, and the function its ``impl`` names."""
    assert case.op is not None
    dtype = getattr(torch, case.dtype)
    build = BASELINES[case.op].get(case.impl)
    function = build(case) if build else _own(case)
    if case.op in ("fnet", "spectral"):
        x = torch.randn(case.batch, case.seq_len, case.dim, device=case.device, dtype=dtype)
        if case.op == "fnet":
            return [x], function
        assert case.modes is not None
        weight = torch.randn(case.modes, case.dim, 2, device=case.device)
        return [x, weight, torch.randn(case.dim, device=case.device)], function
    shape = (case.batch, case.num_heads, case.seq_len, case.dim // case.num_heads)
    count = 1 if case.op == "fourier" else 3
    qkv = [torch.randn(shape, device=case.device, dtype=dtype) for _ in range(count)]
    return qkv, function
