"""The bytes that leave a rank are those that docs/parallel.md derives."""

from __future__ import annotations

import pytest

BYTES_OF = "parallel_volume.bytes_of"
BATCH, N, DIM, HEADS = 2, 64, 14, 2
"""Of each rank. D // 2 + 1 = 8 columns and B * H = 4 pairs part evenly among 2 and 4 ranks."""
SIZE = 4 * BATCH * N * DIM
"""Bytes of a rank's slice in float32."""


def dealt(ranks, times, size=SIZE):
    """``times`` ``size`` bytes cut among all ranks: all but a rank's own share leaves it."""
    return times * size * (ranks - 1) // ranks


def columns():
    """Bytes of the half spectrum, complex: D // 2 + 1 columns."""
    return 4 * BATCH * N * 2 * (DIM // 2 + 1)


def modes(count):
    """Bytes of complex modes."""
    return 4 * BATCH * count * DIM * 2


# For P ranks: bytes exchanged and reduced forward, and the same backward.
DERIVED = {
    "attention": lambda p: ((dealt(p, 4), 0), (dealt(p, 4), 0)),
    "topk(topk=4)": lambda p: ((dealt(p, 4), 0), (dealt(p, 4), 0)),
    "fourier": lambda p: ((dealt(p, 2), 0), (dealt(p, 2), 0)),
    "fnet": lambda p: ((dealt(p, 2, columns()), 0), (dealt(p, 2, columns()), 0)),
    "spectral(modes=3)": lambda p: ((0, modes(3)), (0, modes(3))),
}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("text", DERIVED)
def test_bytes_sent_are_those_derived(ranks_pool, text, ranks, masked):
    (exchanged, reduced), backward = DERIVED[text](ranks)
    metadata = (ranks - 1) * (8 * 8 + masked * BATCH * N)  # eight integers, and the mask
    for answer in ranks_pool.run(BYTES_OF, text, ranks, N, BATCH, DIM, HEADS, masked)[:ranks]:
        assert answer == ((exchanged + metadata, reduced), backward)


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_filter_of_all_modes_sends_each_token_there_and_back(ranks_pool, ranks):
    metadata = (ranks - 1) * 8 * 8
    answers = ranks_pool.run(BYTES_OF, "spectral(modes=300)", ranks, N, BATCH, 16, HEADS)
    size = 4 * BATCH * N * 16
    for answer in answers[:ranks]:
        assert answer == ((dealt(ranks, 2, size) + metadata, 0), (dealt(ranks, 2, size), 0))


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_ring_sends_every_key_and_value_to_every_rank(ranks_pool, ranks):
    metadata, size = (ranks - 1) * 8 * 8, 4 * N * DIM
    for answer in ranks_pool.run(BYTES_OF, "attention", ranks, N, 1, DIM, 1)[:ranks]:
        forward, backward = 2 * size * (ranks - 1), 2 * size * (2 * ranks - 1)
        assert answer == ((forward + metadata, 0), (backward, 0))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_a_window_sends_its_reach_to_the_neighbours_and_no_more(ranks_pool, ranks, causal):
    reach = 9 if causal else 5  # the last ten tokens, the query's own among them; window // 2
    metadata, halo = (ranks - 1) * 8 * 8, 2 * 4 * BATCH * reach * DIM  # keys and values
    text = f"local(window=10, causal={causal})"
    answers = ranks_pool.run(BYTES_OF, text, ranks, N, BATCH, DIM, HEADS)[:ranks]
    for rank, answer in enumerate(answers):
        before, after = rank > 0, rank < ranks - 1
        sent = after + (before and not causal)
        received = before + (after and not causal)
        assert answer == ((sent * halo + metadata, 0), (received * halo, 0))


@pytest.mark.parametrize(
    ("text", "modes_count", "gradients"),
    [
        ("spectral(modes=3)", 3, 0),
        ("spectral(modes=300)", 0, 2 * 300 * DIM + DIM),
        ("spectral(modes=300, unitary=True)", 0, 2 * 300 * DIM),
    ],
)
def test_a_filters_gradients_are_summed_at_once_or_with_its_modes(
    ranks_pool, text, modes_count, gradients
):
    answers = ranks_pool.run("parallel_volume.bytes_of_gradients", text, 2, N, DIM)[:2]
    assert answers == [modes(modes_count) // BATCH + 4 * gradients] * 2
