"""Gradients against finite differences, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from helpers import OPS, each_impl, skip_unless_runs

pytestmark = pytest.mark.usefixtures("small_blocks")

each_masking = pytest.mark.parametrize("masked", [False, True])
TWICE = [
    (case, impl)
    for case in OPS
    for impl in ("reference", *(["torch"] if case.operator == "fnet" else []))
]


def function_and_inputs(case, impl, masked, device):
    """Six tokens of width four, so that four-token blocks meet; holes and an all-padding row."""
    skip_unless_runs(case.operator, impl, torch.float64, device)
    tokens, parameters = case.inputs(2, 6, 4, device=device)
    mask = None
    if masked:
        rows = [[True, False, True, True, False, True], [False] * 6]
        mask = torch.tensor(rows, device=device)

    def function(*inputs):
        return case.run(*inputs, mask=mask, impl=impl)

    return function, [x.requires_grad_() for x in (*tokens, *parameters)]


@each_impl()
@each_masking
def test_gradients_are_those_of_finite_differences(case, impl, masked, device):
    function, inputs = function_and_inputs(case, impl, masked, device)
    assert gradcheck(function, inputs)


@pytest.mark.parametrize(("case", "impl"), TWICE, ids=[f"{c.name}-{i}" for c, i in TWICE])
@each_masking
def test_second_gradients_are_those_of_finite_differences(case, impl, masked, device):
    function, inputs = function_and_inputs(case, impl, masked, device)
    assert gradgradcheck(function, inputs)
