"""Tensor parallelism: the plan by which PyTorch shards the projections of a model by heads.

A column shard of the fused ``qkv``, whose rows are those of q, then k, then v, would hold rows of q
alone on the first ranks. :class:`HeadsParallel` gives each rank those of q, k and v of its heads.

Shapes: B batch, N tokens, D width, H heads, dh width of a head, P ranks.
"""

from __future__ import annotations

import math
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
from flashmix.parallel.sharded import ShardedModule


def tp_plan(model: nn.Module) -> dict[str, ParallelStyle]:
    """The plan of tensor parallelism for ``model``, a mixer or whatever holds mixers and blocks.

        >>> from torch.distributed.tensor.parallel import parallelize_module
        >>> parallelize_module(model, mesh, parallel.tp_plan(model))

    Mixers with projections share their heads among the ranks, and the MLP of a :class:`Block` its
    hidden channels; each takes two sums across the ranks, one forward and one backward. All else,
    ``fnet`` and ``spectral`` too, is computed by every rank alike. Inputs and outputs are whole on
    every rank. Parameters keep their names but for ``qkv``, whose q, k and v become parameters of
    their own; a whole mixer loads what is gathered of them.

    Args:
        model: before it is sharded in any way; FSDP2 over other ranks may follow.

    Returns:
        A style for each projection, by the name of its module; empty where nothing can be shared.

    Raises:
        ArgumentError: ``model`` is no module, or :func:`shard_sequence` has spread its tokens.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"tp_plan: model must be an nn.Module, got {type(model).__name__}")
    plan: dict[str, ParallelStyle] = {}
    for name, module in model.named_modules():
        place = f"{name}." if name else ""
        if isinstance(module, ShardedModule):
            raise ArgumentError(
                f"tp_plan: the tokens of {name or 'the model'} are spread across ranks, which does "
                "not go together with tensor parallelism; choose one"
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
    """Shards an ``nn.Linear`` by heads: q, k and v each by itself where it is ``fused``.

    The input is whole on every rank; the output holds the rank's heads, [..., 3 * D / P] of a fused
    layer and else [..., D / P].

    Args:
        num_heads: H, a multiple of the ranks.
        fused: the layer's rows are those of q, then k, then v.
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
                    f"that share them, got {getattr(self, name)}"
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
        module.__class__ = HeadsLinear
        return module


class HeadsLinear(nn.Linear):
    """A fused projection of which each rank holds the rows of q, k and v of its heads.

    They are parameters of their own, ``weight_q`` to ``bias_v``, so that each is sharded as
    PyTorch's checkpoints and FSDP2 know it.
    """

    sharded_by_heads = True

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., D], the same on all ranks, to [..., 3 * D / P]."""
        weights, biases = self._parts("weight"), self._parts("bias")
        whole: Any = DTensor.from_local(x, weights[0].device_mesh, [Replicate()], run_check=False)
        # A rank's gradient is the part that its heads have in the whole.
        own = whole.to_local(grad_placements=[Partial()])
        bias = torch.cat([one.to_local() for one in biases]) if biases else None
        return F.linear(own, torch.cat([one.to_local() for one in weights]), bias)

    def reset_parameters(self) -> None:
        """As ``nn.Linear``'s own."""
        for weight in self._parts("weight"):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        for bias in self._parts("bias"):
            nn.init.uniform_(bias, -(self.in_features**-0.5), self.in_features**-0.5)

    def _parts(self, name: str) -> list[Any]:
        return [p for key, p in self.named_parameters() if key.startswith(name)]
