"""One sequence sharded over several devices: the same model, each rank with a slice of the tokens.

    >>> from torch.distributed.device_mesh import init_device_mesh
    >>> from flashmix import parallel
    >>> mesh = init_device_mesh("cuda", (8,))
    >>> parallel.shard_sequence(model, mesh)
    >>> mine = parallel.local_slice(x.shape[1], mesh)
    >>> y = model(x[:, mine], mask[:, mine])  # that slice of what one device would compute

Collectives are PyTorch's, over gloo on CPUs and NCCL on GPUs. :func:`tp_plan` shards the heads
instead, by PyTorch's tensor parallelism.

A mixer's class names its strategy: :class:`HeadExchange` serves any whose heads mix apart from each
other; others derive from :class:`MixerStrategy`.
"""

from typing import TYPE_CHECKING, Any

from flashmix.parallel.attention.strategy import HeadExchange
from flashmix.parallel.classifiers import scale_gradient
from flashmix.parallel.shard import all_sum, local_slice, shard_sequence
from flashmix.parallel.strategy import MixerStrategy

if TYPE_CHECKING:
    from flashmix.parallel.tensor_parallel import tp_plan

__all__ = [
    "HeadExchange",
    "MixerStrategy",
    "all_sum",
    "local_slice",
    "scale_gradient",
    "shard_sequence",
    "tp_plan",
]


def __getattr__(name: str) -> Any:
    if name == "tp_plan":  # PyTorch's tensor parallelism takes seconds to import
        from flashmix.parallel.tensor_parallel import tp_plan

        return tp_plan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
