"""Training with each sequence spread over processes, beside other sequences on others.

Of W processes, P that follow each other share their sequences; W / P such rows share a batch.

Shapes: B batch, N tokens, n of this process, C classes.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from flashmix import parallel
from flashmix.errors import ArgumentError
from flashmix.hf.pooling import sum_means_by
from flashmix.parallel import all_sum, scale_gradient
from flashmix.tasks import distributed
from flashmix.tasks.batches import Batch
from flashmix.tasks.encoders import Classifier


class SpreadClassifier(Classifier):
    """A classifier whose mixers work over processes; each is called with whole batches.

    Every process of a row gives the logits of all its tokens. Gradients are to be summed over all
    processes.

    Args:
        encoder: a classifier of transformers, swapped to flashmix's mixers, its pooling the mean.
        size: processes P that share a sequence.
        device: "cpu" or "cuda".

    Raises:
        ArgumentError: the encoder takes no positions.
        ImplementationError: a mixer has no form across ranks.
    """

    def __init__(self, encoder: Any, size: int, device: str) -> None:
        super().__init__(encoder)
        base = encoder.base_model
        if "position_ids" not in inspect.signature(type(base).forward).parameters:
            raise ArgumentError(
                f"{type(base).__name__} takes no positions for a part of its tokens "
                "(position_ids), which --sequence-parallel needs"
            )
        rows = distributed.world() // size
        mesh = init_device_mesh(device, (rows, size), mesh_dim_names=("data", "sequence"))
        self._mesh = mesh["sequence"]
        self._size = size
        self._padding = _padding_of(base)
        parallel.shard_sequence(encoder, self._mesh, sum_gradients=False)
        sum_means_by(encoder, lambda x: all_sum(x, self._mesh))

    def logits(self, batch: Batch) -> Tensor:
        """[B, C], of all tokens."""
        ids, mask = _long_enough(batch.ids, batch.mask, self._size)
        mine = parallel.local_slice(ids.shape[1], self._mesh)
        logits = self.encoder(
            input_ids=ids[:, mine],
            attention_mask=None if mask is None else mask[:, mine],
            position_ids=self._positions(ids)[:, mine],
        ).logits
        return scale_gradient(logits, self._size)

    def _positions(self, ids: Tensor) -> Tensor:
        if self._padding is None:
            return torch.arange(ids.shape[1], device=ids.device)[None]
        real = ids != self._padding
        return real.cumsum(1) * real + self._padding


def _padding_of(base: Any) -> int | None:
    """The padding token behind which positions begin in RoBERTa and models like it; else None."""
    embeddings = getattr(base, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return padding


def _long_enough(ids: Tensor, mask: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
    """At least a token for each process: sequences shorter than that get padding."""
    short = size - ids.shape[1]
    if short <= 0:
        return ids, mask
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    return F.pad(ids, (0, short)), F.pad(mask, (0, short))


def check_processes(size: int) -> None:
    """Raise ArgumentError unless sequences can be spread over ``size`` of the processes."""
    world = distributed.launched_world()
    if size > 1 and world % size:
        raise ArgumentError(
            f"--sequence-parallel {size} must divide the number of processes, which is {world}; "
            f"start them with: torchrun --nproc-per-node {size} -m flashmix finetune ..."
        )
