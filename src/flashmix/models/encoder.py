"""A stack of blocks whose mixers follow a pattern over layers.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from flashmix.mixers import parse_pattern
from flashmix.models.block import Block
from flashmix.ops import _checks
from flashmix.ops._padding import zero_padding


class Encoder(nn.Module):
    """``depth`` blocks and a final LayerNorm; outputs at padding are zero.

    Args:
        dim: width D.
        depth: number of blocks.
        mixers: a pattern over layers: "fnet*10,attention*2" (FNet-Hybrid puts attention last),
            "local,spectral" repeated, or one name for all.
        num_heads: heads of the mixers that have them; heads of width 64 by default.
        mlp_ratio, dropout, norm_first: see :class:`Block`.
        impl: of every mixer that does not name its own.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        mixers: str = "attention",
        *,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        norm_first: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        _checks.check_count("Encoder", "depth", depth)
        self.dim = dim
        self.blocks = nn.ModuleList(
            Block(
                dim,
                spec.build(dim, num_heads=num_heads, impl=impl),
                mlp_ratio=mlp_ratio,
                dropout=dropout,
                norm_first=norm_first,
            )
            for spec in parse_pattern(mixers, depth)
        )
        self.norm = nn.LayerNorm(dim) if norm_first else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode ``x`` [B, N, D] with ``mask`` bool [B, N], True = a real token.

        Raises:
            ArgumentError: ``x`` or ``mask`` does not fit.
        """
        _checks.check_tokens("Encoder", x, mask, self.dim)
        x = zero_padding(x, mask)
        for block in self.blocks:
            x = block(x, mask)
        return zero_padding(self.norm(x), mask)
