"""Sliding-window attention in native code: blocks of queries as vector lanes, nothing copied.

The forward saves the logarithm of each query's sum of exponentials, the backward computes the
weights again from it.

Shapes: B batch, H heads, N tokens, dh width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.ops._cpu.heads import packed_shape_of, shape_of, strides, widen
from flashmix.ops._cpu.library import DATA, INT, ROWS, SHAPE, STRIDES, Kernel, Shape
from flashmix.ops._derivatives import vjp
from flashmix.ops._library import kernel_op
from flashmix.ops._packed import through_padding
from flashmix.ops._precision import transform_dtype
from flashmix.ops.attention import torch_impl
from flashmix.ops.local_attention.reference import widened
from flashmix.ops.local_attention.window import sees_all

_QKV, _OUT = (ROWS, ROWS, ROWS), (DATA, DATA, DATA)
_forward = Kernel("local_forward", SHAPE, INT, INT, *_QKV, STRIDES, DATA, DATA)
_backward = Kernel("local_backward", SHAPE, INT, INT, ROWS, *_QKV, STRIDES, DATA, *_OUT)


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, before: int, after: int
) -> Tensor:
    """Attention within the window, [B, H, N, dh]."""
    if sees_all(q.shape[2], before, after):
        return torch_impl.attention(q, k, v, mask, after == 0)
    y: Tensor = _op(q, k, v, mask, before, after)[0]
    return y


def packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int | None,
    before: int,
    after: int,
) -> Tensor:
    """Attention within the window in packed sequences, [T, H, dh]."""
    if max_seqlen is not None and sees_all(max_seqlen, before, after):
        return torch_impl.packed(q, k, v, cu_seqlens, max_seqlen, after == 0)
    y: Tensor = _packed(q, k, v, cu_seqlens, before, after)[0]
    return y


def _reach(before: int, after: int, n: int) -> tuple[int, int]:
    return min(before, n), min(after, n)


def _run(
    q: Tensor, k: Tensor, v: Tensor, shape: Shape, before: int, after: int
) -> tuple[Tensor, Tensor]:
    dtype = q.dtype
    q, k, v = widen(q, k, v)
    y = torch.empty(q.shape, dtype=q.dtype)
    logarithm = torch.empty(q.shape[:3], dtype=q.dtype)
    reach = _reach(before, after, q.shape[2])
    _forward(q.dtype, shape, *reach, q, k, v, strides(q, k, v), y, logarithm)
    return y.to(dtype), logarithm


def _run_backward(
    shape: Shape,
    logarithm: Tensor,
    before: int,
    after: int,
    *xs: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    q = xs[1]
    wide = widen(*xs)
    grads = [torch.empty(q.shape, dtype=logarithm.dtype) for _ in range(3)]
    reach = _reach(before, after, q.shape[2])
    saved = logarithm.contiguous()
    _backward(saved.dtype, shape, *reach, *wide, strides(*wide), saved, *grads)
    grad_q, grad_k, grad_v = (x.to(q.dtype) for x in grads)
    return grad_q, grad_k, grad_v


@kernel_op("local_attention_cpu", key="CPU")
def _op(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, before: int, after: int
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of each query's sum of exponentials [B, H, N]."""
    shape, _alive = shape_of(q.shape, mask)
    return _run(q, k, v, shape, before, after)


@_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, before: int, after: int
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=transform_dtype(q.dtype))


_op.register_formula(widened)


@kernel_op("local_attention_cpu_backward", key="CPU")
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logarithm: Tensor,
    mask: Tensor | None,
    before: int,
    after: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v, [B, H, N, dh] each."""
    shape, _alive = shape_of(q.shape, mask)
    return _run_backward(shape, logarithm, before, after, grad, q, k, v)


@_backward_op.register_fake
def _(grad: Tensor, q: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _backward_formula(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, logarithm: Tensor, *options: Any
) -> Any:
    return vjp(lambda *qkv: widened(*qkv, *options), (q, k, v), grad)


_backward_op.register_formula(_backward_formula, inputs=4)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *qkv, mask, ctx.before, ctx.after = inputs
    ctx.save_for_backward(*qkv, output[1], mask)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *saved, mask = ctx.saved_tensors
    return *_backward_op(grad, *saved, mask, ctx.before, ctx.after), None, None, None


_op.register_autograd(_gradients, setup_context=_setup)


@kernel_op("local_attention_cpu_packed", key="CPU", sums=True)
def _packed(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, before: int, after: int
) -> tuple[Tensor, Tensor]:
    """The output [T, H, dh], and the logarithm of each query's sum of exponentials [H, T]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    shape, _alive = packed_shape_of(q.shape[1:], cu_seqlens)
    y, logarithm = _run(q, k, v, shape, before, after)
    return y[0].transpose(0, 1), logarithm[0]


def _like(q: Tensor) -> Tensor:
    return q.new_empty((q.shape[1], q.shape[0], q.shape[2])).transpose(0, 1)


@_packed.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, before: int, after: int
) -> tuple[Tensor, Tensor]:
    sizes = (q.shape[1], q.shape[0])
    return _like(q), q.new_empty(sizes, dtype=transform_dtype(q.dtype))


def _packed_formula(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, before: int, after: int
) -> Tensor:
    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return widened(q, k, v, mask, before, after)

    return through_padding(run, cu_seqlens, None, q, k, v)


_packed.register_formula(_packed_formula)


@kernel_op("local_attention_cpu_packed_backward", key="CPU", sums=True)
def _packed_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logarithm: Tensor,
    cu_seqlens: Tensor,
    before: int,
    after: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v, [T, H, dh] each."""
    xs = [x.transpose(0, 1)[None] for x in (grad, q, k, v)]
    shape, _alive = packed_shape_of(xs[0].shape[1:], cu_seqlens)
    grads = _run_backward(shape, logarithm[None], before, after, *xs)
    grad_q, grad_k, grad_v = (x[0].transpose(0, 1) for x in grads)
    return grad_q, grad_k, grad_v


@_packed_backward.register_fake
def _(grad: Tensor, q: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q), _like(q), _like(q)


def _packed_backward_formula(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, logarithm: Tensor, *options: Any
) -> Any:
    return vjp(lambda *qkv: _packed_formula(*qkv, *options), (q, k, v), grad)


_packed_backward.register_formula(_packed_backward_formula, inputs=4)


def _packed_gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *saved, cu_seqlens = ctx.saved_tensors
    grads = _packed_backward(grad, *saved, cu_seqlens, ctx.before, ctx.after)
    return *grads, None, None, None


_packed.register_autograd(_packed_gradients, setup_context=_setup)
