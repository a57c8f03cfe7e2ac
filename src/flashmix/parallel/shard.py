"""Sharding a model's sequence: :func:`shard_sequence`, and what its users need beside it."""

from __future__ import annotations

import copy
import sys
import zlib
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from flashmix.errors import ArgumentError, FlashmixError
from flashmix.mixers import Mixer
from flashmix.ops import _checks
from flashmix.parallel.classifiers import MODEL_STRATEGIES
from flashmix.parallel.comm import collectives as _collectives
from flashmix.parallel.comm.ranks import Ranks, even_split, offsets_of
from flashmix.parallel.strategies import find_strategy
from flashmix.parallel.strategy import MixerStrategy, ShardedModule

Model = TypeVar("Model", bound=nn.Module)

MIX_TOKENS = (
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
)
"""Modules of PyTorch that reach across tokens, and would reach those of their slice only."""

MODEL_METADATA = ("number of tensors", "model")
"""What the ranks compare of their models."""


def shard_sequence(model: Model, mesh: DeviceMesh, *, sum_gradients: bool = True) -> Model:
    """Shard the sequence of ``model`` across the ranks of ``mesh``, in place.

    Afterwards each rank calls the model with its slice of the tokens, x [B, n, D] and mask [B, n],
    and gets that slice of what one device would compute from all tokens. Slices follow each other
    in the order of the ranks and may differ in length. Classes and parameter names stay as they
    are; all ranks take the first rank's values.

    The loss is the sum of the ranks' losses: divide by the tokens of all ranks, not of one. The
    classifiers of :mod:`flashmix.models` return the same logits on every rank; compute the same
    loss on each.

    Args:
        model: a mixer, or a model whose mixers are flashmix's or subclasses of them, and whose
            other modules treat each token alone.
        mesh: a device mesh with one dimension; of a larger mesh pass ``mesh["name"]``.
        sum_gradients: sum the gradients of parameters across the ranks. False where DDP or FSDP
            spans these ranks too and does so (they average: scale the loss by P).

    Returns:
        ``model`` itself.

    Raises:
        ArgumentError: the mesh or a module does not fit; the model is unchanged then.
        ImplementationError: a mixer's ``impl``, or a subclass, cannot be sharded.
        ParallelError: on every rank, where the ranks' models differ.
    """
    _checks.check_flag("shard_sequence", "sum_gradients", sum_gradients)
    ranks = Ranks(mesh)
    try:
        strategies = _modules_to_shard(model)
    except FlashmixError as error:
        ranks.broadcast_error(str(error), len(MODEL_METADATA))
        raise
    ranks.check_consistent("shard_sequence", _model_metadata(model))
    summing = _modules_that_sum(model, strategies) if sum_gradients else set()
    for name, module in model.named_modules():
        if module not in strategies:
            continue
        strategy = strategies[module](module, ranks, name)
        if isinstance(strategy, MixerStrategy):
            strategy.sum_gradients = module in summing
        strategy.attach(module)
        if not _of_flashmix(module):
            strategy.guard(module)
    _broadcast_values(model, ranks)
    if sum_gradients:
        summed = {id(p) for module in summing for p in module.parameters(recurse=False)}
        _sum_gradients(model, ranks, summed)
    return model


def local_slice(seq_len: int, mesh: DeviceMesh) -> slice:
    """The calling rank's slice of ``seq_len`` tokens, which are split as evenly as can be.

    Args:
        seq_len: tokens N of all ranks.
        mesh: a device mesh with one dimension.

    Raises:
        ArgumentError: a bad mesh, or fewer tokens than ranks.
    """
    ranks = Ranks(mesh)
    _checks.check_count("local_slice", "seq_len", seq_len)
    if seq_len < ranks.size:
        raise ArgumentError(
            f"local_slice: every rank needs a token, but {ranks.size} ranks share {seq_len}"
        )
    sizes = even_split(seq_len, ranks.size)
    start = offsets_of(sizes)[ranks.rank]
    return slice(start, start + sizes[ranks.rank])


def all_sum(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum of ``x`` across the ranks of ``mesh``; gradients are summed across them too.

    For what reaches across tokens outside a mixer, such as the mean of all tokens.

    Args:
        x: of any shape, the same on all ranks.
        mesh: a device mesh with one dimension.
    """
    return _collectives.all_sum(x, Ranks(mesh))


def _modules_to_shard(model: nn.Module) -> dict[nn.Module, type[ShardedModule]]:
    """The modules that need a strategy, each with its own."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"shard_sequence: model must be an nn.Module, got {type(model).__name__}"
        )
    strategies: dict[nn.Module, type[ShardedModule]] = {}
    for name, module in model.named_modules():
        where = f"{name} ({type(module).__name__})" if name else type(module).__name__
        if getattr(module, "sharding", None) is not None:
            raise ArgumentError(f"shard_sequence: {where} is sharded already")
        if isinstance(module, MIX_TOKENS):
            raise ArgumentError(
                f"shard_sequence: {where} reaches across tokens and cannot be sharded; replace it "
                "by a flashmix mixer or keep it out of the model"
            )
        base: type[nn.Module] | None
        if isinstance(module, Mixer):
            base, strategies[module] = find_strategy(type(module), f"shard_sequence: {where}")
        else:
            base = next((kind for kind in type(module).__mro__ if kind in MODEL_STRATEGIES), None)
            if base is None:
                continue
            strategies[module] = MODEL_STRATEGIES[base]
        strategies[module].check_supported(module, base, where)
    if not strategies:
        raise ArgumentError(
            f"shard_sequence: {type(model).__name__} holds no flashmix mixer; there is nothing to "
            "shard"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ArgumentError(
                f"shard_sequence: {name} is on the meta device; give the model its values first"
            )
        if _is_dtensor(tensor):
            raise ArgumentError(
                f"shard_sequence: {name} is sharded already; call shard_sequence first, then "
                "FSDP2. Tensor parallelism cannot be combined with a sequence across ranks"
            )
    return strategies


def _of_flashmix(module: nn.Module) -> bool:
    """Whether its class is one of this package, not a user's."""
    return type(module).__module__.partition(".")[0] == "flashmix"


def _is_dtensor(tensor: Tensor) -> bool:
    """Whether it is a DTensor, whose module takes seconds to import and may not be imported yet."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _model_metadata(model: nn.Module) -> dict[str, int]:
    """The size and a hash of names, shapes, dtypes and classes, equal on all ranks."""
    tensors = [
        f"{name} {list(tensor.shape)} {tensor.dtype} {tensor.requires_grad}"
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ]
    modules = [f"{name} {type(module).__name__}" for name, module in model.named_modules()]
    digest = zlib.crc32("\n".join(tensors + modules).encode())
    return dict(zip(MODEL_METADATA, (len(tensors), digest), strict=True))


def _broadcast_values(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank the first rank's parameters and buffers."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(ranks.broadcast(tensor))


def _modules_that_sum(
    model: nn.Module, strategies: dict[nn.Module, type[ShardedModule]]
) -> set[nn.Module]:
    """The modules that sum the gradients of their own parameters, which no other module shares.

    Not users' classes, whose own parameters may be used otherwise.
    """
    able = {
        module
        for module, strategy in strategies.items()
        if _of_flashmix(module) and issubclass(strategy, MixerStrategy) and strategy.sums_gradients
    }
    others = {
        id(parameter)
        for module in model.modules()
        if module not in able
        for parameter in module.parameters(recurse=False)
    }
    while mixed := {m for m in able if any(id(p) in others for p in m.parameters(recurse=False))}:
        able -= mixed
        others |= {id(p) for module in mixed for p in module.parameters(recurse=False)}
    return able


class _GradientSums:
    """Sums the gradients of parameters across the ranks as soon as they are computed.

    PyTorch's deep copies of a parameter lose its hooks; those of this object register them again.
    """

    def __init__(self, parameters: list[nn.Parameter], ranks: Ranks) -> None:
        self.parameters, self.ranks = parameters, ranks
        for parameter in parameters:
            parameter.register_hook(ranks.all_reduce)

    def __deepcopy__(self, memo: dict[int, Any]) -> _GradientSums:
        return _GradientSums(copy.deepcopy(self.parameters, memo), self.ranks)


def _sum_gradients(model: nn.Module, ranks: Ranks, done: set[int]) -> None:
    """Sum gradients of the parameters across the ranks, except those whose ids are ``done``."""
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in done]
        done |= {id(parameter) for parameter in own}
        if own:
            # Kept by the module, so that it is copied with it.
            module.gradient_sums = _GradientSums(own, ranks)  # type: ignore[assignment]
