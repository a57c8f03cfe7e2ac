"""Registration with ``torch.library``: of compositions of PyTorch's ops, and of kernels.

A composition shows as one node in a profile or an exported graph, and autograd, ``torch.compile``
and fake tensors see through it. A kernel, native or in Triton or with a backward of its own, is a
:class:`KernelOp`: where no gradient is needed a call costs 2 us, and one of
``torch.library.custom_op`` 9, since autograd's part and a check of the result for aliases are
written in Python.

Kernels compute outputs and first gradients. Every other derivative is that of a formula, composed
of PyTorch's ops, which each of them has beside it: second derivatives, and all of forward mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from flashmix.errors import ImplementationError
from flashmix.ops import _derivatives
from flashmix.ops._launcher import replay
from flashmix.ops.dispatch.signature import Direction

_LIBRARY = torch.library.Library("flashmix", "FRAGMENT")


_LIBRARY.define(replay.SCHEMA)
_LIBRARY.impl("_launcher_backward", replay.run_backward, "CompositeImplicitAutograd")


def _define(schema: str) -> str:
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    return schema.split("(")[0]


def needs_gradient(*arguments: Any) -> bool:
    """Whether autograd must record a call with these arguments.

    Tensors do not show what an outer transform of ``torch.func`` asks of them, nor what will be
    asked of an exported graph.
    """
    if not torch.is_grad_enabled():
        return False
    for one in arguments:
        if isinstance(one, Tensor) and one.requires_grad:
            return True
    return torch._C._are_functorch_transforms_active() or torch.compiler.is_exporting()


def direction_of(*arguments: Any) -> Direction:
    """What a call with these arguments is chosen an implementation for."""
    return "training" if needs_gradient(*arguments) else "forward"


class CompositeOp:
    """The op ``flashmix::NAME`` of a function of PyTorch's ops, and the formula of its tangents."""

    def __init__(
        self, name: str, function: Callable[..., Any], formula: Callable[..., Any]
    ) -> None:
        _LIBRARY.impl(name, function, "CompositeImplicitAutograd")
        self.op: Callable[..., Any] = getattr(torch.ops.flashmix, name).default
        self._function, self._formula = function, formula

    def __call__(self, *arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            return self._formula(*arguments)  # fused attention has no tangent
        if torch._C._are_functorch_transforms_active():
            return self._function(*arguments)  # they would take the op for a kernel
        return self.op(*arguments)


def composite_op(
    schema: str, formula: Callable[..., Any]
) -> Callable[[Callable[..., Any]], CompositeOp]:
    """Register a function as the op ``flashmix::<schema>``; ``formula`` computes the same."""
    name = _define(schema)
    return lambda function: CompositeOp(name, function, formula)


class KernelOp:
    """The op ``flashmix::NAME`` of a typed function, which autograd does not see into.

    Give it a fake kernel, then its formula, and last, where kernels compute its gradient, its
    autograd. A call that needs no gradient goes to ``<NAME>_forward``, the same kernel past
    autograd's part.
    """

    def __init__(
        self,
        name: str,
        kernel: Callable[..., Any],
        key: str,
        unbatched: Sequence[str],
        sums: bool,
        composed: bool,
    ) -> None:
        self._name, self.kernel, self._key, self._sums = name, kernel, key, sums
        self._signature = torch.library.infer_schema(kernel, mutates_args=())
        self.op = self._add(name, kernel)
        self._forward = self._add(f"{name}_forward", kernel)
        self._add(f"{name}_python", self._run)
        self._backward: replay.Backward | None = None
        self._on_cpu: bool | None = False if composed else None
        self._on_cuda: bool | None = self._on_cpu
        replay.register(name, kernel)
        schema = self.op._schema  # type: ignore[attr-defined]
        self._several = len(schema.returns) > 1
        self._unbatched = [i for i, one in enumerate(schema.arguments) if one.name in unbatched]
        self.__doc__ = kernel.__doc__

    def _run(self, *arguments: Any) -> Any:
        return replay.run(self._name, self.kernel, self._backward, arguments)

    def _add(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        _define(name + self._signature)
        _LIBRARY.impl(name, kernel, self._key)
        op: Callable[..., Any] = getattr(torch.ops.flashmix, name).default
        return op

    def register_fake(self, fake: Callable[..., Any]) -> None:
        """Take ``fake`` for outputs of the right shapes, dtypes and strides."""
        for name in (self._name, f"{self._name}_forward"):
            torch.library.register_fake(f"flashmix::{name}", fake, lib=_LIBRARY)

    def register_formula(self, formula: Callable[..., Any], *, inputs: int | None = None) -> None:
        """Take ``formula``, of the same arguments, for derivatives that kernels do not compute.

        Args:
            formula: composed of PyTorch's ops. Of several results it may leave the last ones out,
                those without a derivative.
            inputs: where the op has no autograd, how many of its first arguments have a gradient,
                which is that of the formula.
        """
        self._formula = formula
        if inputs is not None:
            backward = _derivatives.gradient_of(formula, inputs)
            self.register_autograd(backward, setup_context=_derivatives.save_arguments)

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., None]
    ) -> None:
        """See ``torch.library.register_autograd``."""
        node = _derivatives.node(self._name, self._below, setup_context, backward)
        rule = _derivatives.vmap_rule(self, self._unbatched, self._sums)
        rules = self._forward, setup_context, backward, rule
        self._transformable = _derivatives.transformable(self._name, *rules)
        self._backward = replay.Backward(self._name, setup_context, backward)

        def autograd(*arguments: Any) -> Any:
            if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
                raise self._not_in_graphs()
            return (node.apply if needs_gradient(*arguments) else self._below)(*arguments)

        _LIBRARY.impl(self._name, autograd, "Autograd")
        _define(f"{self._name}_autograd{self._signature}")
        _LIBRARY.impl(f"{self._name}_autograd", autograd, "CompositeImplicitAutograd")

    def _not_in_graphs(self) -> ImplementationError:
        return ImplementationError(
            f"{self._name}: a compiled or exported graph holds a kernel, which has no tangent and "
            "no transforms of torch.func there; call what is not compiled (without fullgraph "
            "torch.compile does), or use impl='reference'"
        )

    def _below(self, *arguments: Any) -> Any:
        """The kernel past autograd's part, where no gradient is recorded."""
        return (self.op if self._launches(arguments[0]) else self._forward)(*arguments)

    def _launches(self, x: Tensor) -> bool:
        """Whether the launcher runs it on the device of its first argument ``x``."""
        if torch.compiler.is_compiling():
            return False
        if x.is_cuda:
            if self._on_cuda is None:
                self._on_cuda = replay.take(self._name, "cuda")
            return self._on_cuda
        if self._on_cpu is None:
            self._on_cpu = x.device.type == "cpu" and replay.take(self._name, "cpu")
        return self._on_cpu

    def __call__(self, *arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            y = self._formula(*arguments)
            return (y,) if self._several and isinstance(y, Tensor) else y
        if not torch._C._are_functorch_transforms_active() and self._launches(arguments[0]):
            return self.op(*arguments)
        if not needs_gradient(*arguments):
            return self._forward(*arguments)
        if torch._C._are_functorch_transforms_active():
            if torch.compiler.is_compiling():
                raise self._not_in_graphs()
            return self._transformable.apply(*arguments)
        return self.op(*arguments)


def kernel_op(
    name: str,
    *,
    key: str = "CompositeExplicitAutograd",
    unbatched: Sequence[str] = (),
    sums: bool = False,
    composed: bool = False,
) -> Callable[[Callable[..., Any]], KernelOp]:
    """Register a function as an op: on every device, or that of a dispatch ``key`` ("CPU").

    Args:
        name: in the namespace ``flashmix``.
        key: of PyTorch's dispatcher.
        unbatched: the tensors without a batch axis, which is the first one of all others.
        sums: whether results are sums over the batch.
        composed: whether it calls PyTorch's ops, which no launch plan holds: its calls always run
            in Python.
    """
    return lambda kernel: KernelOp(name, kernel, key, unbatched, sums, composed)
