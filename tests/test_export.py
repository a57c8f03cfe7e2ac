"""Graphs that torch.export and torch.jit.trace keep are right for other calls, or refused.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

from flashmix.errors import ImplementationError
from helpers import OPS, assert_close, each_impl, right_padding

CALLS = [(2, 1), (1, 3), (3, 70)]


def arguments(case, batch, n, masked):
    tokens, parameters = case.inputs(batch, n)
    return *tokens, *parameters, *([right_padding(batch, n)] if masked else [])


def function(case, impl, masked):
    def run(*given):
        *tensors, mask = given if masked else (*given, None)
        return case.run(*tensors, mask=mask, impl=impl)

    return run


def reads_lengths(case, impl):
    return impl == "reference" and case.operator not in (
        "attention",
        "local_attention",
        "topk_attention",
    )


@pytest.mark.parametrize(("traced", "masked"), [(2, False), (2, True), (150, True)])
@each_impl()
def test_a_trace_is_right_at_any_length_and_mask_or_refused(case, impl, traced, masked):
    run = function(case, impl, masked)
    inputs = arguments(case, 2, traced, masked)
    if reads_lengths(case, impl):
        with pytest.raises(ImplementationError, match=r"torch\.jit\.trace.*impl='auto'"):
            torch.jit.trace(run, inputs, check_trace=False)
        return
    graph = torch.jit.trace(run, inputs, check_trace=False)
    for batch, n in CALLS:
        given = arguments(case, batch, n, masked)
        assert_close(graph(*given), run(*given))


class Module(torch.nn.Module):
    """A function of tensors, as torch.export takes it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *given):
        return self.function(*given)


def exported(case, impl, masked):
    """A graph for any batch and length, from an example of another."""
    given, (batch, n) = arguments(case, 3, 9, masked), (Dim("batch", max=64), Dim("n", max=512))
    shapes = [{0: batch, case.token_axis: n}] * case.tokens
    shapes += [None] * len(case.parameters(8))
    shapes += [{0: batch, 1: n}] * masked
    run = function(case, impl, masked)
    return torch.export.export(Module(run), given, dynamic_shapes=(tuple(shapes),)).module()


EXPORTED = [one for one in OPS if "-" not in one.name]


@each_impl(EXPORTED, without=("reference",))
def test_an_exported_graph_is_right_at_any_batch_and_length_or_refused(case, impl):
    if case.name == "block":
        with pytest.raises(ImplementationError, match="export with a fixed N"):
            exported(case, impl, masked=True)
        return
    graph, run = exported(case, impl, masked=True), function(case, impl, masked=True)
    for batch, n in CALLS:
        given = arguments(case, batch, n, masked=True)
        assert_close(graph(*given), run(*given))


@pytest.mark.parametrize("case", [one for one in EXPORTED if reads_lengths(one, "reference")])
def test_a_formula_that_reads_lengths_is_not_exported_for_any(case):
    with pytest.raises(ImplementationError):
        exported(case, "reference", masked=False)
