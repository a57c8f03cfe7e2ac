"""What block selection misses of the exact top-k: recall, weight and output, for sampled queries.

Shapes: B batch, H heads, N tokens, dh width of a head, C queries of a block.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.bench.case import BenchmarkCase
from flashmix.ops.block_topk_attention import blocks

SAMPLED_BLOCKS = 16
SMOOTHED = 129
"""Tokens that smooth inputs are averaged over: about two blocks."""


def block_selection_properties(case: BenchmarkCase) -> dict[str, Any]:
    """Recall of the exact top-k keys and output error, on inputs of two kinds.

    White noise has no structure that the mean of a block could show; inputs that change slowly
    along the tokens do. Real models lie between, and nothing here says where.
    """
    assert case.topk is not None
    shape = (case.batch, case.num_heads, case.seq_len, case.dim // case.num_heads)
    noise = [torch.randn(shape, device=case.device) for _ in range(3)]
    dtype = getattr(torch, case.dtype)
    kinds = {"white noise": noise, f"noise averaged over {SMOOTHED} tokens": map(_smooth, noise)}
    return {
        "kept_share": case.topk / case.seq_len,
        "queries": min(SAMPLED_BLOCKS * blocks.BLOCK, case.seq_len),
        "inputs": {
            name: _compare([x.to(dtype) for x in inputs], case.topk)
            for name, inputs in kinds.items()
        },
    }


def _smooth(x: Tensor) -> Tensor:
    """Unit variance kept, neighbours alike."""
    flat = x.flatten(0, 1).transpose(1, 2)
    mean = F.avg_pool1d(flat, SMOOTHED, 1, SMOOTHED // 2, count_include_pad=False)
    return (mean / mean.std()).transpose(1, 2).view(x.shape)


def _compare(qkv: list[Tensor], topk: int) -> dict[str, float]:
    """Block selection beside exact selection and dense attention, over blocks spread evenly."""
    q, k, v = qkv
    n = q.shape[2]
    (q_blocks, k_blocks, _), lengths = blocks.pack_blocks(q, k, v, None)
    kept = blocks.select_blocks(q_blocks, k_blocks, lengths, topk, causal=False)
    groups = kept.shape[2]
    recalls, shares = [], []
    squares = torch.zeros(4, dtype=torch.float64)
    count = min(SAMPLED_BLOCKS, groups)
    for group in torch.linspace(0, groups - 1, count).round().int().tolist():
        rows = slice(group * blocks.BLOCK, min(n, (group + 1) * blocks.BLOCK))
        scores = (q[:, :, rows].float() * q.shape[3] ** -0.5) @ k.float().transpose(2, 3)
        best = scores.topk(min(topk, n), dim=-1).indices
        seen = kept[:, :, group].repeat_interleave(blocks.BLOCK, -1)[..., None, :n]
        seen = seen.expand_as(scores)
        recalls.append(seen.gather(-1, best).double().mean())
        weights = scores.softmax(-1)
        shares.append((weights * seen).sum(-1).double().mean())
        exact = torch.zeros_like(seen).scatter(-1, best, True)
        dense, ours, theirs = (
            scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v.float()
            for mask in (torch.ones_like(seen), seen, exact)
        )
        for place, one in enumerate((ours - theirs, theirs, ours - dense, dense)):
            squares[place] += one.double().square().sum().cpu()
    return {
        "recall": torch.stack(recalls).mean().item(),
        "weight_kept": torch.stack(shares).mean().item(),
        "error_against_exact": (squares[0] / squares[1]).sqrt().item(),
        "error_against_dense": (squares[2] / squares[3]).sqrt().item(),
    }
