"""A stack of blocks whose mixers follow a pattern over layers.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from flashmix.mixers import parse_pattern
from flashmix.models.block import Block
from flashmix.ops import _checks
from flashmix.ops._packed import check_offsets, lengths_readable, pack, unpack
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
        unpad: remove padding once before the first block and put it back after the last, so that
            projections and MLPs skip it too. On a GPU the host then waits once a call for the
            lengths; where it cannot, in a graph that is compiled or captured, and where tokens are
            sharded across ranks, padding stays. Outputs are the same.
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
        unpad: bool = False,
    ) -> None:
        super().__init__()
        _checks.check_count("Encoder", "depth", depth)
        _checks.check_flag("Encoder", "unpad", unpad)
        self.dim = dim
        self.unpad = unpad
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

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Encode ``x`` [B, N, D] with ``mask`` bool [B, N], True = a real token.

        Or packed ``x`` [T, D], with ``cu_seqlens`` int32 [S + 1] and maybe ``max_seqlen``; see
        :func:`flashmix.pack`.

        Raises:
            ArgumentError: ``x`` or ``mask`` does not fit.
        """
        if cu_seqlens is not None or max_seqlen is not None:
            _checks.check_floating("Encoder", "x", x, "T, D")
            cu_seqlens, max_seqlen = check_offsets("Encoder", mask, cu_seqlens, max_seqlen, x)
            for block in self.blocks:
                x = block(x, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
            return self.norm(x)
        _checks.check_tokens("Encoder", x, mask, self.dim)
        if self.unpad and mask is not None and self._may_unpad():
            packed = pack(x, mask)
            y = self(packed.tokens, cu_seqlens=packed.cu_seqlens, max_seqlen=packed.max_seqlen)
            return unpack(y, packed)
        x = zero_padding(x, mask)
        for block in self.blocks:
            x = block(x, mask)
        return zero_padding(self.norm(x), mask)

    def _may_unpad(self) -> bool:
        """Whether lengths can be read here, and every block has all tokens."""
        return lengths_readable() and all(
            getattr(one, "sharding", None) is None for one in self.modules()
        )
