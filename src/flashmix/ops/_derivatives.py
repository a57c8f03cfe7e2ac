"""Nodes of autograd's graph for kernels, and derivatives by a formula instead of a kernel.

A kernel has a formula: a function of the same arguments that is composed of PyTorch's ops, so that
autograd follows it any number of times and in both modes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Any]


def vjp(function: Run, inputs: Sequence[Tensor], grad: Any) -> Any:
    """The gradients of ``inputs`` from ``grad``, that of ``function(*inputs)``.

    They can be differentiated again, by ``grad`` and by the inputs.
    """
    return torch.func.vjp(function, *inputs)[1](grad)


def save_arguments(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """A ``setup_context`` that saves all arguments; see :func:`saved_arguments`."""
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
    ctx.others = tuple(None if isinstance(x, Tensor) else x for x in inputs)


def gradient_of(formula: Run, inputs: int) -> Run:
    """The backward of ``formula`` with respect to the first ``inputs`` arguments.

    It takes what :func:`save_arguments` saved.
    """

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
        arguments = [other if tensor is None else tensor for tensor, other in pairs]
        wanted = [place for place in range(inputs) if ctx.needs_input_grad[place]]

        def run(*chosen: Tensor) -> Any:
            given = dict(zip(wanted, chosen, strict=True))
            return formula(*(given.get(place, x) for place, x in enumerate(arguments)))

        grad = grads if len(grads) > 1 else grads[0]
        found = vjp(run, [arguments[place] for place in wanted], grad)
        given = dict(zip(wanted, found, strict=True))
        return tuple(given.get(place) for place in range(len(arguments)))

    return backward


def node(name: str, forward: Run, setup_context: Run, backward: Run) -> type[Any]:
    """The function that autograd records. PyTorch is slow to bind arguments of the other form."""

    def run(ctx: Any, *arguments: Any) -> Any:
        output = forward(*arguments)
        setup_context(ctx, arguments, output)
        return output

    rules = {"forward": staticmethod(run), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), rules)


def transformable(
    name: str, forward: Run, setup_context: Run, backward: Run, vmap: Run
) -> type[Any]:
    """As :func:`node`, in the form that the transforms of ``torch.func`` take."""

    def run(*arguments: Any) -> Any:  # Dynamo takes no op for a function
        return forward(*arguments)

    rules = {
        "forward": run,
        "setup_context": setup_context,
        "backward": backward,
        "vmap": vmap,
    }
    methods = {key: staticmethod(rule) for key, rule in rules.items()}
    return type(name, (torch.autograd.Function,), methods)


def vmap_rule(op: Run, unbatched: Sequence[int], sums: bool) -> Run:
    """How ``op`` runs where ``torch.vmap`` maps arguments.

    Tensors have the batch first, which the mapped axis joins. Where an argument of ``unbatched``
    is mapped, or results are ``sums`` over the batch, each sample is a call of its own.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, int]:
        count, pairs = info.batch_size, list(zip(arguments, in_dims, strict=True))
        if sums or any(in_dims[place] is not None for place in unbatched):
            samples = [
                op(*(x if dim is None else x.select(dim, k) for x, dim in pairs))
                for k in range(count)
            ]
            if isinstance(samples[0], Tensor):
                return torch.stack(samples), 0
            return tuple(torch.stack(parts) for parts in zip(*samples, strict=True)), 0

        def joined(place: int, x: Any, dim: int | None) -> Any:
            if not isinstance(x, Tensor) or place in unbatched:
                return x
            return (x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)

        y = op(*(joined(place, *pair) for place, pair in enumerate(pairs)))
        if isinstance(y, Tensor):
            return y.unflatten(0, (count, -1)), 0
        return tuple(one.unflatten(0, (count, -1)) for one in y), 0

    return rule
