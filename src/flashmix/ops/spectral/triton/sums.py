"""Gradients summed over the groups of sequences that a backward takes one after the other."""

from __future__ import annotations

from torch import Tensor


class Sums:
    """The gradients of W, [M, D, 2], and of a bias, [D], float32, added up in the order they come.

    The first group's tensors are kept and written to.
    """

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor] | None = None

    def add(self, weight: Tensor, bias: Tensor) -> None:
        """Take the next group's gradients."""
        if self._sums is None:
            self._sums = weight, bias
        else:
            self._sums[0].add_(weight)
            self._sums[1].add_(bias)

    def of(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Both sums for the filter ``weight``: zero where there was no sequence."""
        if self._sums is None:
            return weight.new_zeros(weight.shape), weight.new_zeros(weight.shape[1])
        return self._sums
