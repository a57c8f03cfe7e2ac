"""What the tests of kernels for sequences of any lengths share."""

from __future__ import annotations

import torch

from flashmix.ops._triton.sequences import sequences
from helpers import randn, relative_error
from triton_helpers import DEVICE

# None, the shortest, odd, prime, and several tiles of 64 folded tokens.
LENGTHS = (0, 1, 2, 149, 150)


def scattered(lengths):
    """A mask [S, N] of as many real tokens a sequence, with padding anywhere among them."""
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for row, length in zip(mask, lengths, strict=True):
        row[torch.randperm(len(row), generator=generator)[:length]] = True
    return mask.to(DEVICE)


def tokens(lengths, *rest, dtype=torch.float32, seed=0):
    """Tokens [S, N, ...] with NaN at the padding of :func:`scattered`, and that mask."""
    mask = scattered(lengths)
    x = randn(*mask.shape, *rest, seed=seed, dtype=dtype, device=DEVICE)
    return x.masked_fill(~mask.view(*mask.shape, *(1 for _ in rest)), float("nan")), mask


def offsets_of(lengths):
    """``cu_seqlens`` of packed tokens."""
    ends = torch.tensor((0, *lengths)).cumsum(0)
    return ends.to(DEVICE, torch.int32)


def check(got, want, dtype):
    """Each result is near its float64 value: float32 to 1e-6, half types to 2.5 roundings."""
    for place, (one, exact) in enumerate(zip(got, want, strict=True)):
        limit = 1e-6
        if dtype != torch.float32:
            # A handful of numbers can be unlucky: allow them the worst case, not the average.
            least = torch.finfo(dtype).eps / 5
            limit = 2.5 * max(relative_error(exact.detach().to(dtype), exact), least)
        error = relative_error(one, exact)
        assert error <= limit, f"result {place}: {error:.2e} exceeds {limit:.2e}"


def check_layouts(run, count, *rest):
    """``run(where, *xs)`` has the same bits for padded, packed and lone sequences of ``count`` xs.

    Neighbours of NaN change none, and padding of NaN is zero in the result, which is as xs[0].
    """
    lengths, longest = (0, 2, 131, 1), 2
    pairs = [tokens(lengths, *rest, seed=seed) for seed in range(count)]
    mask = pairs[0][1]
    flat = [x[mask] for x, _ in pairs]
    padded = run(sequences(pairs[0][0], mask, None), *(x for x, _ in pairs))
    offsets = offsets_of(lengths)
    packed = run(sequences(flat[0], None, offsets), *flat)
    assert not padded[~mask].any()
    assert torch.equal(packed, padded[mask])
    own = slice(sum(lengths[:longest]), sum(lengths[: longest + 1]))
    alone = [x[own][None] for x in flat]
    assert torch.equal(run(sequences(alone[0], None, None), *alone)[0], packed[own])
    others = torch.ones(len(flat[0]), dtype=torch.bool, device=DEVICE)
    others[own] = False
    spoilt = [x.masked_fill(others.view(-1, *(1 for _ in rest)), float("nan")) for x in flat]
    assert torch.equal(run(sequences(spoilt[0], None, offsets), *spoilt)[own], packed[own])
