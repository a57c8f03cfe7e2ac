"""A transformer block with any token mixer.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flashmix.errors import ArgumentError
from flashmix.mixers import Mixer, parse_mixer
from flashmix.ops import _checks


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)), with LayerNorm and a GELU MLP (pre-norm).

    ``norm_first=False`` is BERT's and FNet's order: norm(x + mixer(x)), then norm(x + mlp(x)).

    Args:
        dim: width D.
        mixer: a mixer, or one as text: "fnet", "local(window=64)", "spectral+local".
        num_heads: heads of a mixer given as text that has them; heads of width 64 by default.
        mlp_ratio: hidden width of the MLP over ``dim``.
        dropout: probability after the mixer and after the MLP.
        norm_first: normalise before each part (default) or after each sum.
    """

    def __init__(
        self,
        dim: int,
        mixer: str | Mixer = "attention",
        *,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        norm_first: bool = True,
    ) -> None:
        super().__init__()
        _checks.check_count("Block", "dim", dim)
        _checks.check_flag("Block", "norm_first", norm_first)
        hidden = int(dim * mlp_ratio)
        if hidden < 1:
            raise ArgumentError(
                f"Block: mlp_ratio * dim must be at least 1, got {mlp_ratio} * {dim}"
            )
        if not isinstance(mixer, Mixer):
            mixer = parse_mixer(mixer).build(dim, num_heads=num_heads)
        elif num_heads is not None:
            raise ArgumentError(
                f"Block: num_heads = {num_heads} is for a mixer given as text; this one is built "
                "already, so give num_heads to it"
            )
        if mixer.dim != dim:
            raise ArgumentError(f"Block: mixer must have dim = {dim}, got {mixer.dim}")
        self.norm_first = norm_first
        self.mixer = mixer
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """``x`` [B, N, D], ``mask`` bool [B, N]; outputs at padding mean nothing.

        Or packed ``x`` [T, D], with ``cu_seqlens`` int32 [S + 1] and maybe ``max_seqlen``.
        """
        lengths: dict[str, Any] = {}
        if cu_seqlens is not None or max_seqlen is not None:
            lengths = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        if self.norm_first:
            x = x + self.dropout(self.mixer(self.norm1(x), mask, **lengths))
            return x + self.dropout(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.mixer(x, mask, **lengths)))
        return self.norm2(x + self.dropout(self.mlp(x)))
