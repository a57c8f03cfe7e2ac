"""Argument checks, made once at the public boundary of every op and mixer.

Each error names the function, the argument, what it got and what it needs.

Shapes: B batch, N tokens, D width, H heads, dh width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.errors import ArgumentError

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_dense(where: str, name: str, tensor: Tensor) -> None:
    """``tensor`` has an element at every index: it is neither nested nor sparse."""
    if tensor.is_nested:
        raise ArgumentError(
            f"{where}: {name} must be one padded tensor, got a nested tensor; pass "
            f"torch.nested.to_padded_tensor({name}, 0.0), and its real tokens as a mask [B, N]"
        )
    if tensor.layout is not torch.strided:
        raise ArgumentError(
            f"{where}: {name} must be a dense tensor, got layout {tensor.layout}; "
            f"pass {name}.to_dense()"
        )


def check_device(where: str, name: str, tensor: Tensor, like: Tensor) -> None:
    """``tensor`` is on the device of the input ``like``."""
    if tensor.device != like.device:
        raise ArgumentError(
            f"{where}: {name} must be on {like.device} like the input, got {tensor.device}"
        )


def check_floating(where: str, name: str, tensor: Tensor, legend: str) -> None:
    """``tensor`` is a floating tensor whose axes are those of ``legend``, for example "B, N, D"."""
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{where}: {name} must be a tensor, got {type(tensor).__name__}")
    check_dense(where, name, tensor)
    if tensor.dim() != legend.count(",") + 1:
        raise ArgumentError(
            f"{where}: {name} must have {legend.count(',') + 1} axes [{legend}], "
            f"got shape {list(tensor.shape)}"
        )
    if tensor.dtype not in FLOATING:
        raise ArgumentError(
            f"{where}: {name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}"
        )
    sizes = tensor.shape[1:]
    if 0 in sizes:
        axis = legend.split(", ")[1 + sizes.index(0)]
        raise ArgumentError(
            f"{where}: {name} must have at least one element along {axis} of [{legend}], "
            f"got shape {list(tensor.shape)}"
        )


def check_mask(where: str, mask: Tensor | None, tensor: Tensor, seq_len: int) -> None:
    """``mask`` is None or bool [B, N] on the device of ``tensor``; True marks a real token."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise ArgumentError(f"{where}: mask must be a tensor or None, got {type(mask).__name__}")
    check_dense(where, "mask", mask)
    if mask.dtype != torch.bool:
        raise ArgumentError(
            f"{where}: mask must be bool with True at real tokens, got {mask.dtype}; "
            "pass mask.bool()"
        )
    want = [tensor.shape[0], seq_len]
    if list(mask.shape) != want:
        raise ArgumentError(f"{where}: mask must be [B, N] = {want}, got {list(mask.shape)}")
    check_device(where, "mask", mask, tensor)


def check_tokens(where: str, x: Tensor, mask: Tensor | None, dim: int | None = None) -> None:
    """``x`` is [B, N, D] (D = ``dim`` when given) and ``mask`` fits it."""
    check_floating(where, "x", x, "B, N, D")
    if dim is not None and x.shape[2] != dim:
        raise ArgumentError(f"{where}: x must have width D = {dim}, got shape {list(x.shape)}")
    check_mask(where, mask, x, x.shape[1])


def check_qkv(
    where: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    grouped: bool = False,
    legend: str = "B, H, N, dh",
) -> None:
    """``q``, ``k`` and ``v`` have the axes of ``legend``, alike in shape, dtype and device.

    Where ``grouped``, k and v may have fewer heads, as many as divide H.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_floating(where, name, tensor, legend)
        like, shape, note = "q", list(q.shape), ""
        if grouped and name == "k":
            note = " (or fewer heads, a divisor of H)"
            if k.shape[1] and q.shape[1] % k.shape[1] == 0:
                shape[1] = k.shape[1]
        elif grouped and name == "v":
            like, shape = "k", list(k.shape)
        for what, got, need in (
            ("shape", list(tensor.shape), shape),
            ("dtype", tensor.dtype, q.dtype),
            ("device", tensor.device, q.device),
        ):
            if got != need:
                tail = note if what == "shape" else ""
                raise ArgumentError(
                    f"{where}: {name} must have {like}'s {what} {need}{tail}, got {got}"
                )
    if mask is not None:
        check_mask(where, mask, q, q.shape[2])


def check_count(where: str, name: str, value: object) -> None:
    """``value`` is an integer of at least one."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt) or value < 1:
        raise ArgumentError(f"{where}: {name} must be an integer >= 1, got {value!r}")


def check_flag(where: str, name: str, value: object) -> None:
    """``value`` is True or False."""
    if not isinstance(value, bool):
        raise ArgumentError(f"{where}: {name} must be True or False, got {value!r}")


def check_choice(where: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    """``value`` is one of ``choices``."""
    if value not in choices:
        raise ArgumentError(
            f"{where}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
        )
