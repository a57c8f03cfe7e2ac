"""The padding law, in one place: an op acts as if the padding had been removed.

Shapes: B batch, N tokens, ... any trailing axes. ``mask`` is [B, N] bool, True = a real token.
Tokens stand on axis 1 throughout this file.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.errors import ImplementationError
from flashmix.ops._compile import exported_for_any, traced


def real_rank(mask: Tensor) -> Tensor:
    """Position of each token among the real tokens of its sequence, int64 [B, N]."""
    return mask.cumsum(1) - 1


def real_first(mask: Tensor) -> Tensor:
    """Token positions, real ones first and each part in order, contiguous int64 [B, N]."""
    # A sort keeps the strides of what it sorts, and kernels take the result by its address.
    return torch.argsort(~mask.contiguous(), dim=1, stable=True)


def _index(order: Tensor, x: Tensor) -> Tensor:
    return order.reshape(order.shape + (1,) * (x.dim() - 2)).expand_as(x)


def pack(x: Tensor, order: Tensor) -> Tensor:
    """Move the tokens of ``x`` [B, N, ...] into ``order``."""
    return x.gather(1, _index(order, x))


def unpack(y: Tensor, order: Tensor) -> Tensor:
    """Undo :func:`pack`."""
    return torch.zeros_like(y).scatter(1, _index(order, y), y)


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` [B, N, ...] with zeros at the padding, whatever stood there (NaN included)."""
    if mask is None:
        return x
    # One pass; masked_fill copies first.
    return torch.where(mask.reshape(mask.shape + (1,) * (x.dim() - 2)), x, 0.0)


def zero_head_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """As :func:`zero_padding`, for ``x`` [B, H, N, ...]."""
    return x if mask is None else torch.where(mask[:, None, :, None], x, 0.0)


def _unpadded(run: Callable[..., Tensor], *xs: Tensor) -> Tensor:
    """``run(*xs)``; an empty batch borrows a sequence of zeros, since MKL's FFT refuses none."""
    if xs[0].shape[0]:
        return run(*xs)
    return run(*(F.pad(x, (0, 0) * (x.dim() - 1) + (0, 1)) for x in xs))[:0]


def refuse_graphs(x: Tensor, mask: Tensor | None) -> None:
    """Raise where a graph would keep, for all calls, the batch and the lengths of this one."""
    refuse_trace()
    if torch.compiler.is_exporting() and (mask is not None or exported_for_any(*x.shape)):
        raise _kept_by("torch.export")


def refuse_trace() -> None:
    """Raise where ``torch.jit.trace`` would keep lengths that Python reads."""
    if traced():
        raise _kept_by("torch.jit.trace")


def _kept_by(where: str) -> ImplementationError:
    return ImplementationError(
        f"{where}: the formula reads batch and lengths in Python, and the graph would keep them "
        "for every call; use impl='auto', or any but 'reference'"
    )


def each_sequence(run: Callable[[Tensor], Tensor], x: Tensor, mask: Tensor | None) -> Tensor:
    """Apply ``run`` to every sequence of ``x`` [B, N, ...] with its padding removed.

    The law itself, written as a loop; references use it.
    """
    refuse_graphs(x, mask)
    if mask is None:
        return _unpadded(run, x)
    out = zero_padding(x, torch.zeros_like(mask))
    for row in range(x.shape[0]):
        try:
            (real,) = mask[row].nonzero(as_tuple=True)
        except RuntimeError as error:
            if not torch._C._are_functorch_transforms_active():
                raise
            raise ImplementationError(
                "torch.vmap: the formula finds real tokens on the host, which cannot read a mask "
                "that is mapped; loop over the samples, or map tokens of one mask"
            ) from error
        if real.numel():
            y = run(x[row : row + 1, real])[0]
            out = out.index_put((torch.tensor(row, device=x.device), real), y)
    return out


def each_length(run: Callable[..., Tensor], mask: Tensor | None, *xs: Tensor) -> Tensor:
    """``run(*xs)`` without padding: one batched call for each distinct true length.

    Every tensor of ``xs`` is [B, N, ...]; ``run`` returns one of the first one's shape. The
    result is contiguous, as fake kernels promise; an FFT's own strides are not.
    """
    if mask is None:
        return _unpadded(run, *xs).contiguous()
    order, lengths = real_first(mask), mask.sum(1)
    packed = [pack(x, order) for x in xs]
    out = torch.zeros_like(packed[0])
    for length in lengths.unique().tolist():
        if length:
            rows = (lengths == length).nonzero().squeeze(1)
            out[rows, :length] = run(*(x[rows, :length] for x in packed))
    return unpack(out, order)
