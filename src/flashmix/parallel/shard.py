"""The one call: a model's mixers take to a sequence that is spread across ranks."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from flashmix.errors import ArgumentError, FlashmixError
from flashmix.mixers import Mixer
from flashmix.ops import _checks
from flashmix.parallel.classifiers import MODELS
from flashmix.parallel.comm import collectives as _collectives
from flashmix.parallel.comm.ranks import Ranks, even_split, offsets_of
from flashmix.parallel.mixers import MIXERS
from flashmix.parallel.sharded import ShardedModule

Model = TypeVar("Model", bound=nn.Module)

MIX_TOKENS = (
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
)
"""Modules of PyTorch that reach across tokens and would see their slice alone."""

MODEL_METADATA = ("number of tensors", "model")
"""What the ranks tell each other about their models."""

FORMS: dict[type[nn.Module], type[ShardedModule]] = {**MIXERS, **MODELS}


def shard_sequence(model: Model, mesh: DeviceMesh, *, sum_gradients: bool = True) -> Model:
    """Spread the tokens of ``model`` across the ranks of ``mesh``; in place.

    From then on each rank calls it with its slice of the tokens, [B, n, D] and mask [B, n], slices
    lying end to end in the order of the ranks, and gets that slice of the result that one device
    would compute. Slices may differ in length. Parameters keep their names; the first rank's
    values are taken on all.

    The loss is the sum of the ranks' losses: divide by the tokens of all ranks, not of one. The
    classifiers of :mod:`flashmix.models` return the same logits on every rank; compute the same
    loss on each.

    Args:
        model: a mixer, or a model whose mixers are flashmix's and whose other modules treat each
            token alone.
        mesh: a device mesh with one dimension; of a larger one pass ``mesh["name"]``.
        sum_gradients: sum each parameter's gradient across the ranks in the backward. False where DDP
            or FSDP spans these ranks too and does so (they average: scale the loss by P).

    Returns:
        ``model`` itself.

    Raises:
        ArgumentError: a mesh or a module that does not fit; nothing is changed then.
        ImplementationError: a mixer's ``impl`` has no sharded form.
        ParallelError: on every rank, where the ranks hold different models.
    """
    _checks.check_flag("shard_sequence", "sum_gradients", sum_gradients)
    ranks = Ranks(mesh)
    try:
        found = _modules_to_shard(model)
    except FlashmixError as error:
        ranks.broadcast_error(str(error), len(MODEL_METADATA))
        raise
    ranks.check_consistent("shard_sequence", _model_metadata(model))
    sum_themselves = _sum_themselves(model) if sum_gradients else set()
    for name, module in found.items():
        kind = type(module)
        module.__class__ = FORMS[kind]
        module.sum_gradients = module in sum_themselves  # type: ignore[assignment]
        module.attach(ranks, name, kind.__name__)  # type: ignore[operator]
    _same_values(model, ranks)
    if sum_gradients:
        summed = {id(p) for module in sum_themselves for p in module.parameters(recurse=False)}
        _sum_gradients([p for p in model.parameters() if id(p) not in summed], ranks)
    return model


def local_slice(seq_len: int, mesh: DeviceMesh) -> slice:
    """Where the calling rank's tokens stand when ``seq_len`` are cut as evenly as can be.

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
    """The sum of ``x`` across the ranks of ``mesh``, on each; gradients are summed back.

    For what reaches across tokens outside a mixer, the mean of all tokens say.
    """
    return _collectives.all_sum(x, Ranks(mesh))


def _modules_to_shard(model: nn.Module) -> dict[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"shard_sequence: model must be an nn.Module, got {type(model).__name__}"
        )
    found = {}
    for name, module in model.named_modules():
        place = f"{name} ({type(module).__name__})" if name else type(module).__name__
        if isinstance(module, ShardedModule):
            raise ArgumentError(f"shard_sequence: {place} is sharded already")
        if isinstance(module, MIX_TOKENS):
            raise ArgumentError(
                f"shard_sequence: {place} reaches across tokens and has no sharded form; swap it "
                "for a flashmix mixer or keep it out of the model"
            )
        if type(module) in FORMS:
            FORMS[type(module)].check_supported(module, place)
            found[name] = module
        elif isinstance(module, Mixer):
            raise ArgumentError(
                f"shard_sequence: {place} has no sharded form; those that have one: "
                + ", ".join(kind.__name__ for kind in MIXERS)
            )
    if not found:
        raise ArgumentError(
            f"shard_sequence: {type(model).__name__} holds no flashmix mixer; there is nothing to "
            "spread"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ArgumentError(
                f"shard_sequence: {name} is on the meta device; give the model its values first"
            )
        if isinstance(tensor, DTensor):
            raise ArgumentError(
                f"shard_sequence: {name} is sharded already; spread the tokens first, then use "
                "FSDP2. Tensor parallelism does not go together with a sequence across ranks"
            )
    return found


def _model_metadata(model: nn.Module) -> dict[str, int]:
    """What must be the same on all ranks: names, shapes, dtypes and classes."""
    tensors = [
        f"{name} {list(tensor.shape)} {tensor.dtype} {tensor.requires_grad}"
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ]
    modules = [f"{name} {type(module).__name__}" for name, module in model.named_modules()]
    digest = zlib.crc32("\n".join(tensors + modules).encode())
    return dict(zip(MODEL_METADATA, (len(tensors), digest), strict=True))


def _same_values(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank the first one's parameters and buffers."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(ranks.broadcast(tensor))


def _sum_themselves(model: nn.Module) -> set[nn.Module]:
    """The modules whose calls sum the gradients of their parameters, which no others hold."""
    able = {module for module in model.modules() if _sums_own(module)}
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


def _sums_own(module: nn.Module) -> bool:
    form = FORMS.get(type(module))
    return form is not None and form.sums_gradients


def _sum_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Sum each one's gradient across the ranks as it comes."""

    def summed(grad: Tensor) -> Tensor:
        return ranks.all_reduce(grad)

    for parameter in parameters:
        if parameter.requires_grad:
            parameter.register_hook(summed)
