"""Sequences across ranks that hold nothing real, and batches without a sequence, give zeros."""

from __future__ import annotations

import pytest

from helpers import FLOAT64_BUDGET, MIXERS

TEXTS = [text for text in MIXERS if "fnet(impl" not in text]
# One that is summed across ranks, since it keeps few modes of these tokens.
TEXTS += ["spectral(modes=1)", "spectral(modes=1, unitary=True)"]
COUNTS = (5, 4, 3)
NOTHING, SOME = [False] * 12, [True] * 9 + [False] * 3


@pytest.mark.parametrize(
    ("batch", "mask"),
    [(2, [NOTHING, NOTHING]), (2, [NOTHING, SOME]), (0, None), (0, [])],
    ids=["all padding", "one sequence of padding", "no sequence", "no sequence and a mask"],
)
def test_nothing_to_mix_gives_what_one_device_gives(batch, mask, ranks_pool):
    answers = ranks_pool.run("module_cases.errors_of_nothing", TEXTS, COUNTS, batch, mask)
    assert len(answers[0]) > 2 * len(TEXTS)
    for errors in answers:
        assert all(error <= FLOAT64_BUDGET for error in errors.values()), errors
