"""What stands in an attention module where a mixer needs no projection.

Shapes: B batch, N tokens, D width of the tokens, C channels of a projection, H heads, dh width of a
head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashmix.hf.structure import Columns, Structure


class Tokens(nn.Module):
    """Stands where a projection was, and passes the tokens on."""

    def forward(self, x: Tensor) -> Tensor:
        """``x``, contiguous as a projection's output is."""
        return x.contiguous()


class Unread(nn.Module):
    """Stands where a projection was whose output no mixer reads: zeros that take no memory."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to zeros [B, N, C]."""
        return x.new_zeros(()).expand(*x.shape[:-1], self.channels)

    def extra_repr(self) -> str:
        """The channels."""
        return f"channels={self.channels}"


class FusedValue(nn.Module):
    """Stands where a fused projection was of whose output only v is read; the rest are zeros.

    Args:
        value: what makes v, [B, N, D] to [B, N, H * dh].
        heads: H.
        columns: where the heads of v are among the ``channels``.
        channels: C of the fused projection.
    """

    def __init__(self, value: nn.Module, heads: int, columns: Columns, channels: int) -> None:
        super().__init__()
        self.value = value
        self.heads, self.columns, self.channels = heads, columns, channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, N, C]."""
        v: Tensor = self.value(x)
        first, step = self.columns.first, self.columns.step
        if step * self.heads == v.shape[-1]:
            return F.pad(v, (first, self.channels - first - v.shape[-1]))
        v = v.unflatten(-1, (self.heads, -1))
        v = F.pad(v, (first, step - first - v.shape[-1])).flatten(-2)
        return F.pad(v, (0, self.channels - v.shape[-1]))


def linear_of_value(fused: Any, s: Structure) -> nn.Linear | None:
    """The part of a fused linear projection that makes v, as new weights; None if it is not linear.

    Transformers' ``Conv1D`` is a linear projection, too.
    """
    from transformers.pytorch_utils import Conv1D

    if not isinstance(fused, nn.Linear | Conv1D):
        return None
    weight = fused.weight if isinstance(fused, nn.Linear) else fused.weight.t()
    first, step = s.columns.first, s.columns.step
    starts = range(first, first + s.num_kv_heads * step, step)
    rows = torch.cat([torch.arange(start, start + s.head_dim, device="cpu") for start in starts])
    made = nn.Linear(weight.shape[1], len(rows), bias=fused.bias is not None, device="meta")
    for name, tensor in (("weight", weight), ("bias", fused.bias)):
        if tensor is not None:
            part = tensor.detach()[rows.to(tensor.device)].clone()
            setattr(made, name, nn.Parameter(part, requires_grad=tensor.requires_grad))
    return made.train(fused.training)


def replace(module: nn.Module, parts: Mapping[str, nn.Module]) -> None:
    """Put modules into ``module``, by path."""
    for path, part in parts.items():
        part.train(module.training)
        module.set_submodule(path, part)


def stand_ins(
    module: nn.Module, structure: Structure, *, keep_v: bool, sliced: bool = True
) -> dict[str, nn.Module]:
    """What takes the places of projections and norms when q and k are dropped, by path.

    With ``keep_v`` v stays, its part of a fused projection alone if ``sliced``; else the tokens
    take its place.
    """
    s = structure
    v = s.projections["v"]
    found: dict[str, nn.Module] = {}
    for part in "qk":
        path = s.projections[part]
        if path is not None and path != v:
            assert s.unread is not None
            found[path] = Unread(s.unread[part])
        for norm in s.norms[part] if path is not None else ():
            found[norm] = nn.Identity()
    if v is None:
        return found
    fused = v in (s.projections["q"], s.projections["k"])
    own = module.get_submodule(v)
    if isinstance(own, FusedValue):
        if not keep_v:
            found[v] = FusedValue(Tokens(), s.num_kv_heads, own.columns, own.channels)
    elif fused and (sliced or not keep_v):
        value = linear_of_value(own, s) if keep_v else Tokens()
        if value is not None:
            found[v] = FusedValue(value, s.num_kv_heads, s.columns, s.channels["v"])
    elif not keep_v:
        found[v] = Tokens()
    return found
