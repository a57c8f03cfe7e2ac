"""Finds which of an attention layer's modules make its q, k and v, from one recorded call.

From each of the three the autograd graph is followed back to the layer's parameters. The modules
whose parameters all lie on the way to q are q's: the first to be called is its projection, and the
others (a norm of each head, say) go with it. What happens in between, such as rotation, scaling or
cutting into heads, needs no name. v must be its projection cut into heads and nothing else: the
gradient of marked elements of v says which channel each of them is, and their values are compared.

Shapes: B batch, N tokens, C channels of a projection, K heads of v, dh width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ModelError
from flashmix.hf.probe import Call
from flashmix.hf.structure import Columns


@dataclass(frozen=True)
class Source:
    """The modules of an attention layer that make one of q, k and v, by path.

    ``others`` come after the projection; ``parameters`` are of the layer itself, in no module.
    """

    projection: str | None
    others: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


def trace(module: nn.Module, call: Call) -> dict[str, Source]:
    """The sources of q, k and v of a recorded call."""
    reached = {part: leaves(tensor) for part, tensor in call.qkv.items()}
    return {part: _source(module, call, leaves) for part, leaves in reached.items()}


def leaves(tensor: Tensor) -> set[int]:
    """The ids of the parameters from which ``tensor`` was computed."""
    found: set[int] = set()
    seen: set[object] = set()
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting.extend(inner for inner, _ in node.next_functions)
    return found


def _source(module: nn.Module, call: Call, leaves: set[int]) -> Source:
    paths: list[str] = []
    for path, part in module.named_modules():
        own = {id(p) for p in part.parameters() if p.is_floating_point()}
        if path and own and own <= leaves and not path.startswith(tuple(f"{p}." for p in paths)):
            paths.append(path)
    order = {path: index for index, path in enumerate(call.outputs)}
    paths.sort(key=lambda path: order.get(path, len(order)))
    loose = [name for name, p in module.named_parameters(recurse=False) if id(p) in leaves]
    return Source(paths[0] if paths else None, tuple(paths[1:]), tuple(loose))


def find_columns(where: str, call: Call, part: str, source: Source) -> Columns:
    """Which channels of its projection v is; ``part`` says "v", or that it is asked of q or k.

    Raises:
        ModelError: it is something else than channels of one projection, cut into heads.
    """
    v = call.qkv[part]
    y = None if source.projection is None else call.outputs.get(source.projection)
    if y is None or source.others or source.parameters:
        raise _unlike(where, part, v, y)
    heads, width = v.shape[1], v.shape[3]
    if y.dim() != 3 or (y.shape[0], y.shape[1]) != (v.shape[0], v.shape[2]):
        raise _unlike(where, part, v, y)
    if y.is_meta:  # values are not to be had, and whether it is v's own projection is
        if y.shape[2] != heads * width:
            raise ModelError(
                f"{where}: on the meta device its v cannot be found within the fused projection "
                f"{source.projection}; swap the model where its weights are"
            )
        return Columns(0, width)
    marks = (torch.arange(1, count + 1) for count in (heads, width))
    marked = [mark.to(v) for mark in marks]
    by_head = _channels(v, y, marked[0][:, None].expand(heads, width))
    by_width = _channels(v, y, marked[1].expand(heads, width))
    at = [(by_head == h + 1).nonzero().flatten() for h in range(heads)]
    if any(len(one) != width for one in at) or not all(
        torch.equal(by_width[one], marked[1]) for one in at
    ):
        raise _unlike(where, part, v, y)
    firsts = [int(one[0]) for one in at]
    step = firsts[1] - firsts[0] if heads > 1 else width
    if firsts != [firsts[0] + h * step for h in range(heads)] or any(
        int(one[-1] - one[0]) != width - 1 for one in at
    ):
        raise _unlike(where, part, v, y)
    cut = torch.stack([y[..., first : first + width] for first in firsts], 1)
    if not torch.equal(cut.to(v.dtype), v):
        raise _unlike(where, part, v, y)
    return Columns(firsts[0], step)


def _channels(v: Tensor, y: Tensor, marks: Tensor) -> Tensor:
    """The mark [C] of each channel of ``y`` by which it is an element of ``v``, 0 for none."""
    heads = marks[None, :, None, :].expand(v.shape)
    (gradient,) = torch.autograd.grad(v, y, heads, retain_graph=True, allow_unused=True)
    gradient = torch.zeros_like(y) if gradient is None else gradient
    first: Tensor = gradient[0, 0]
    return first if bool((gradient == first).all()) else torch.zeros_like(first)


def _unlike(where: str, part: str, v: Tensor, y: Tensor | None) -> ModelError:
    channels = "one projection" if y is None else f"the projection to {y.shape[-1]} channels"
    return ModelError(
        f"{where}: its {part} {list(v.shape)} is not the output of {channels} cut into heads"
    )
