"""One sequence over several devices: the same mixers, each rank with a slice of the tokens.

    >>> from torch.distributed.device_mesh import init_device_mesh
    >>> from flashmix import parallel
    >>> mesh = init_device_mesh("cuda", (8,))
    >>> parallel.shard_sequence(model, mesh)
    >>> mine = parallel.local_slice(x.shape[1], mesh)
    >>> y = model(x[:, mine], mask[:, mine])  # that slice of what one device would compute

Collectives are PyTorch's, by gloo on CPUs and NCCL on GPUs; docs/parallel.md says what travels.
:func:`tp_plan` shares the heads instead, by PyTorch's tensor parallelism.
"""

from flashmix.parallel.classifiers import scale_gradient
from flashmix.parallel.shard import all_sum, local_slice, shard_sequence
from flashmix.parallel.tensor_parallel import tp_plan

__all__ = ["all_sum", "local_slice", "scale_gradient", "shard_sequence", "tp_plan"]
