"""Packed sequences: the tokens of S sequences one after another, without padding.

Sequence s is the tokens ``cu_seqlens[s]`` to ``cu_seqlens[s + 1]``, as in FlashAttention and
``torch.nn.attention.varlen``; ``max_seqlen`` is the length of the longest, or a bound of it.

Shapes: B batch, N tokens of a padded sequence, S sequences, T tokens of all of them, D width,
H heads, dh width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.errors import ArgumentError, ImplementationError
from flashmix.ops import _checks
from flashmix.ops._compile import traced
from flashmix.ops._dense import repeat_heads
from flashmix.ops._library import direction_of
from flashmix.ops.dispatch import Implementation, Operator, Signature


class Packed(NamedTuple):
    """The real tokens of a padded batch; see :func:`pack`."""

    tokens: Tensor
    """[T, ...], sequence after sequence."""
    cu_seqlens: Tensor
    """Where each sequence begins, and T: int32 [B + 1] on the device of the tokens."""
    max_seqlen: int
    """Tokens of the longest sequence."""
    indices: Tensor
    """Where each token stands in [B * N], int64 [T]."""
    padded_shape: tuple[int, int]
    """B and N."""


class Lengths(TypedDict, total=False):
    """How a mixer passes packed sequences on to an op; nothing where tokens are padded."""

    cu_seqlens: Tensor
    max_seqlen: int | None


def pack(x: Tensor, mask: Tensor | None = None) -> Packed:
    """The real tokens of a padded batch, one sequence after another.

        >>> packed = flashmix.pack(x, mask)
        >>> y = mixer(packed.tokens, cu_seqlens=packed.cu_seqlens, max_seqlen=packed.max_seqlen)
        >>> y = flashmix.unpack(y, packed)  # [B, N, D], zeros at padding

    Args:
        x: [B, N, ...].
        mask: bool [B, N], True = a real token, wherever padding stands; None where all are real.
            On a GPU its lengths are read once, which waits for the device; a mask on the CPU is
            read there, and nothing waits.

    Raises:
        ArgumentError: ``x`` or ``mask`` is something else.
    """
    if not isinstance(x, Tensor) or x.dim() < 2:
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentError(f"pack: x must be a tensor [B, N, ...], got {got}")
    _checks.check_dense("pack", "x", x)
    batch, n = x.shape[:2]
    if mask is None:
        cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device=x.device) * n
        indices = torch.arange(batch * n, device=x.device)
        return Packed(x.flatten(0, 1), cu_seqlens, n if batch else 0, indices, (batch, n))
    on_cpu = isinstance(mask, Tensor) and mask.device.type == "cpu"
    _checks.check_mask("pack", mask, x.new_empty(x.shape[:2], device="cpu") if on_cpu else x, n)
    lengths = mask.sum(1, dtype=torch.int32)
    counts: list[int] = lengths.tolist()
    cu_seqlens, indices = places(mask, lengths, sum(counts), x.device)
    tokens = x.flatten(0, 1).index_select(0, indices)
    return Packed(tokens, cu_seqlens, max(counts, default=0), indices, (batch, n))


def places(
    mask: Tensor, lengths: Tensor, total: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where sequences begin, int32 [B + 1], and real tokens stand, int64 [T], without waiting.

    Args:
        mask: bool [B, N].
        lengths: real tokens of each sequence, int32 [B] where ``mask`` is.
        total: T, the sum of ``lengths``.
        device: of the result.
    """
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)).to(device, non_blocking=True)
    return cu_seqlens, _where(mask.flatten(), total).to(device, non_blocking=True)


def lengths_readable() -> bool:
    """Whether the host may read lengths: not where a graph would keep them, or a mask is mapped."""
    return not (
        torch.compiler.is_compiling()
        or traced()
        or torch._C._are_functorch_transforms_active()
        or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )


def _where(real: Tensor, count: int) -> Tensor:
    """The ``count`` positions where ``real`` [R] is set, int64, without waiting for a device."""
    if real.device.type == "cpu":
        return real.nonzero().squeeze(1)
    places = torch.where(real, real.cumsum(0) - 1, count)
    positions = torch.arange(len(real), device=real.device)
    return positions.new_empty(count + 1).scatter_(0, places, positions)[:count]


def unpack(tokens: Tensor, packed: Packed) -> Tensor:
    """Undo :func:`pack` for ``tokens`` [T, ...]: [B, N, ...] with zeros at padding.

    Raises:
        ArgumentError: ``packed`` has another number of tokens.
    """
    if not isinstance(tokens, Tensor) or tokens.dim() < 1 or len(tokens) != len(packed.indices):
        got = list(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ArgumentError(
            f"unpack: tokens must be [T, ...] with T = {len(packed.indices)} as packed, got {got}"
        )
    return scatter_rows(tokens, packed.indices, packed.padded_shape)


def scatter_rows(tokens: Tensor, indices: Tensor, padded_shape: tuple[int, int]) -> Tensor:
    """``tokens`` [T, ...] at ``indices`` of [B * N], as [B, N, ...] with zeros elsewhere."""
    batch, n = padded_shape
    rows = tokens.new_zeros((batch * n, *tokens.shape[1:]))
    return rows.index_copy(0, indices, tokens).unflatten(0, (batch, n))


def check_offsets(
    where: str, mask: Tensor | None, cu_seqlens: Tensor | None, max_seqlen: int | None, x: Tensor
) -> tuple[Tensor, int | None]:
    """``cu_seqlens`` and ``max_seqlen`` of tokens ``x`` [T, ...], once they fit.

    On the CPU the offsets' values are checked, and the longest length is returned where none was
    given. On other devices to read them would make the host wait: there they are taken as they are.
    """
    if cu_seqlens is None:
        raise ArgumentError(f"{where}: max_seqlen is for packed tokens; pass cu_seqlens with it")
    if mask is not None:
        raise ArgumentError(
            f"{where}: mask is for padded tokens and cu_seqlens for packed ones; pass one of them"
        )
    if not isinstance(cu_seqlens, Tensor):
        raise ArgumentError(
            f"{where}: cu_seqlens must be an int32 tensor [S + 1], got {type(cu_seqlens).__name__}"
        )
    _checks.check_dense(where, "cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype != torch.int32:
        raise ArgumentError(
            f"{where}: cu_seqlens must be int32, got {cu_seqlens.dtype}; pass cu_seqlens.int()"
        )
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 1:
        raise ArgumentError(
            f"{where}: cu_seqlens must be [S + 1], where each sequence begins and T, "
            f"got shape {list(cu_seqlens.shape)}"
        )
    _checks.check_device(where, "cu_seqlens", cu_seqlens, x)
    if max_seqlen is not None and (
        isinstance(max_seqlen, bool)
        or not isinstance(max_seqlen, int | torch.SymInt)
        or max_seqlen < 0
    ):
        raise ArgumentError(
            f"{where}: max_seqlen must be an integer >= 0 or None, got {max_seqlen!r}"
        )
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        longest = longest_of(where, cu_seqlens, len(x))
        if max_seqlen is None:
            max_seqlen = longest
        elif longest > max_seqlen:
            raise ArgumentError(
                f"{where}: max_seqlen must be at least the longest sequence, {longest} tokens, "
                f"got {max_seqlen}"
            )
    return cu_seqlens, max_seqlen


def longest_of(where: str, cu_seqlens: Tensor, total: int) -> int:
    """The longest length of offsets on the CPU that rise from 0 to ``total``."""
    offsets: list[int] = cu_seqlens.tolist()
    if offsets[0] != 0 or offsets[-1] != total:
        raise ArgumentError(
            f"{where}: cu_seqlens must begin with 0 and end with T = {total}, got "
            f"{offsets[0]} and {offsets[-1]}"
        )
    lengths = [end - begin for begin, end in pairwise(offsets)]
    if lengths and min(lengths) < 0:
        at = next(i for i, length in enumerate(lengths) if length < 0)
        raise ArgumentError(
            f"{where}: cu_seqlens must not fall, got {offsets[at]} and then {offsets[at + 1]} at "
            f"index {at + 1}"
        )
    return max(lengths, default=0)


def run_packed(
    operator: Operator,
    impl: str,
    cu_seqlens: Tensor,
    max_seqlen: int | None,
    tokens: Sequence[Tensor],
    *,
    parameters: Sequence[Tensor | None] = (),
    rest: Sequence[Any] = (),
    options: Mapping[str, int | bool] | None = None,
) -> Tensor:
    """An op of packed tokens, by what ``impl`` names or ``auto`` chooses.

    Args:
        operator: the op.
        impl: as in the op.
        cu_seqlens, max_seqlen: as :func:`check_offsets` returns them.
        tokens: [T, D] or [T, H, dh] each.
        parameters: what stands between tokens and mask in the arguments of ``run``.
        rest: what stands behind the mask.
        options: of the signature.
    """
    first = tokens[0]
    longest = max(1, len(first) if max_seqlen is None else max_seqlen)
    shape = (len(cu_seqlens) - 1, *first.shape[1:-1], longest, first.shape[-1])
    signature = Signature(
        shape,
        first.dtype,
        first.device,
        {**(options or {}), "masked": True, "packed": True},
        direction_of(*tokens, *parameters),
    )
    chosen: Implementation = operator.select(impl, signature).implementation
    if len(tokens) == 3 and not chosen.grouped_heads:
        tokens = (tokens[0], *repeat_heads(*tokens))
    if chosen.packed is not None:
        y: Tensor = chosen.packed(*tokens, *parameters, cu_seqlens, max_seqlen, *rest)
        return y

    def run(*padded: Tensor) -> Tensor:
        *tokens, mask = padded
        y: Tensor = chosen.run(*tokens, *parameters, mask, *rest)
        return y

    return through_padding(run, cu_seqlens, max_seqlen, *tokens)


def through_padding(
    run: Callable[..., Tensor], cu_seqlens: Tensor, max_seqlen: int | None, *tokens: Tensor
) -> Tensor:
    """``run(*padded, mask)`` of packed tokens, scattered to padded ones, and its result gathered.

    Packed [T, D] are padded to [S, n, D] and [T, H, dh] to [S, H, n, dh], where n is ``max_seqlen``
    or, where that is None, the longest length, which the host waits for.
    """
    if traced():
        raise ImplementationError(
            "torch.jit.trace: packed tokens are padded to lengths that Python reads, and the trace "
            "would keep them for every call; use torch.export or torch.compile"
        )
    total, count, device = len(tokens[0]), len(cu_seqlens) - 1, cu_seqlens.device
    lengths = cu_seqlens.diff()
    if max_seqlen is None:
        max_seqlen = int(lengths.max()) if count else 0
    n = max(1, max_seqlen)
    if device.type == "cuda" and not torch.compiler.is_compiling():
        fits = ((lengths >= 0) & (lengths <= n)).all() & (cu_seqlens[0] == 0)
        torch._assert_async(fits & (cu_seqlens[-1] == total))
    token = torch.arange(total, dtype=torch.int32, device=device)
    sequence = torch.searchsorted(cu_seqlens[1:], token, right=True)
    rows = sequence * n + token - cu_seqlens[sequence]
    mask = torch.arange(n, device=device) < lengths[:, None]
    heads = tokens[0].dim() == 3

    def padded(x: Tensor) -> Tensor:
        spread = x.new_zeros((count * n, *x.shape[1:])).index_copy(0, rows, x)
        spread = spread.unflatten(0, (count, n))
        return spread.transpose(1, 2) if heads else spread

    y = run(*map(padded, tokens), mask)
    return (y.transpose(1, 2) if heads else y).flatten(0, 1).index_select(0, rows)
