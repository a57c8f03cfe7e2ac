"""Tensor parallelism: the plan by which PyTorch shards the projections of a model by heads.

The rows of the fused ``qkv`` are those of q, then k, then v: a plain shard of them would hold only
rows of q on the first ranks. :class:`HeadsParallel` gives each rank the rows of q, k and v of its
heads. They become parameters of their own, ``weight_q`` to ``bias_v``, as PyTorch's checkpoints and
FSDP2 need.

Shapes: B batch, N tokens, D width, H heads, dh width of a head, P ranks.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

from flashmix.errors import ArgumentError, ImplementationError
from flashmix.mixers import FourierAttention
from flashmix.mixers._base import QKVMixer
from flashmix.models import Block


def tp_plan(model: nn.Module) -> dict[str, ParallelStyle]:
    """The plan of tensor parallelism for ``model``, a mixer or whatever holds mixers and blocks.

        >>> from torch.distributed.tensor.parallel import parallelize_module
        >>> parallelize_module(model, mesh, parallel.tp_plan(model))

    Mixers with projections are sharded by heads, and the MLP of a :class:`Block` by its hidden
    channels; each needs one all-reduce in the forward and one in the backward. All other modules,
    ``fnet`` and ``spectral`` included, are computed by every rank alike. Inputs and outputs are
    equal on all ranks. Parameters keep their names except in ``qkv``, whose q, k and v become
    parameters of their own; an unsharded mixer loads their gathered state dict.

    Args:
        model: not sharded yet; FSDP2 across other ranks may follow.

    Returns:
        A style for each projection, by the name of its module; empty where nothing can be sharded.

    Raises:
        ArgumentError: ``model`` is no module, or was given to :func:`shard_sequence`.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"tp_plan: model must be an nn.Module, got {type(model).__name__}")
    plan: dict[str, ParallelStyle] = {}
    for name, module in model.named_modules():
        place = f"{name}." if name else ""
        if getattr(module, "sharding", None) is not None:
            raise ArgumentError(
                f"tp_plan: the sequence of {name or 'the model'} is sharded across ranks, which "
                "cannot be combined with tensor parallelism; choose one"
            )
        if isinstance(module, QKVMixer) and hasattr(module, "qkv"):
            plan[f"{place}qkv"] = HeadsParallel(
                module.num_heads, fused=True, num_kv_heads=module.num_kv_heads
            )
            plan[f"{place}out"] = RowwiseParallel()
        elif isinstance(module, FourierAttention) and hasattr(module, "value"):
            plan[f"{place}value"] = HeadsParallel(module.num_heads, fused=False)
            plan[f"{place}out"] = RowwiseParallel()
        elif isinstance(module, Block):
            plan[f"{place}mlp.0"] = ColwiseParallel()
            plan[f"{place}mlp.2"] = RowwiseParallel()
    return plan


class HeadsParallel(ColwiseParallel):
    """Shards an ``nn.Linear`` by heads; a ``fused`` one by the heads of q, k and v separately.

    The input [..., D] is equal on all ranks; the output holds the rank's heads, [..., D / P], or
    [..., 3 * D / P] of a fused layer.

    Args:
        num_heads: H, a multiple of the ranks.
        fused: whether the layer's rows are those of q, then k, then v.
        num_kv_heads: heads of k and v in a fused layer, a multiple of the ranks; H when None.
    """

    def __init__(self, num_heads: int, *, fused: bool, num_kv_heads: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.fused = fused

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if type(module) is not nn.Linear:
            raise ImplementationError(
                "HeadsParallel: only an nn.Linear can be sharded by heads, got "
                f"{type(module).__name__}; shard the projections before they are wrapped"
            )
        for name in ("num_heads", "num_kv_heads"):
            if getattr(self, name) % device_mesh.size():
                raise ArgumentError(
                    f"HeadsParallel: {name} must be a multiple of the {device_mesh.size()} ranks "
                    f"that hold them, got {getattr(self, name)}"
                )
        if not self.fused:
            return super()._apply(module, device_mesh)
        for name, whole in list(module.named_parameters()):
            delattr(module, name)
            head = len(whole) // (self.num_heads + 2 * self.num_kv_heads)
            counts = [head * n for n in (self.num_heads, self.num_kv_heads, self.num_kv_heads)]
            for part, rows in zip("qkv", whole.detach().split(counts), strict=True):
                shard = distribute_tensor(
                    rows, device_mesh, [Shard(0)], src_data_rank=self.src_data_rank
                )
                parameter = nn.Parameter(shard, requires_grad=whole.requires_grad)
                module.register_parameter(f"{name}_{part}", parameter)
        # In place: the module stays the one that its parent and parallelize_module hold.
        module.sharded_by_heads = True  # type: ignore[assignment]
        module.forward = MethodType(_forward_heads, module)  # type: ignore[method-assign]
        module.reset_parameters = MethodType(_reset_heads, module)  # type: ignore[method-assign]
        return module


def _forward_heads(module: nn.Linear, x: Tensor) -> Tensor:
    """The own heads' q, k and v [..., 3 D / P] of ``x`` [..., D], which is equal on all ranks."""
    weights, biases = _parts(module, "weight"), _parts(module, "bias")
    whole: Any = DTensor.from_local(x, weights[0].device_mesh, [Replicate()], run_check=False)
    # The gradient of x that a rank computes is the part of its heads in a sum.
    own = whole.to_local(grad_placements=[Partial()])
    bias = torch.cat([part.to_local() for part in biases]) if biases else None
    return F.linear(own, torch.cat([part.to_local() for part in weights]), bias)


def _reset_heads(module: nn.Linear) -> None:
    """As ``nn.Linear.reset_parameters``."""
    for weight in _parts(module, "weight"):
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    for bias in _parts(module, "bias"):
        nn.init.uniform_(bias, -(module.in_features**-0.5), module.in_features**-0.5)


def _parts(module: nn.Linear, name: str) -> list[Any]:
    """The shards of q, k and v."""
    return [p for key, p in module.named_parameters() if key.startswith(name)]
