"""Finds a model's attention layers and their projections, by what they do and not by their names.

Each module that calls transformers' attention interface is called once with zeros; what reaches
the interface is traced back to the child modules that made it.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ModelError
from flashmix.hf.attention import mixer_of
from flashmix.hf.guard import calls_interface, uninterfaced
from flashmix.hf.relative import RelativeSelfAttention, adapted

PROBE = "mixers_probe"
TOKENS = 2
KNOWN_OPTIONS = {"dropout", "scaling", "is_causal", "position_bias"}

POSITIONS = {"position_embeddings", "relative_position_embeddings", "freqs_ci"}
"""What attention modules call the positions that they apply, by rotation mostly."""


@dataclass(frozen=True)
class Layer:
    """An attention module, as :func:`find_layers` understood it.

    ``module`` calls the attention interface; it is to stand at ``path``, where it may not be yet.
    ``projections`` are its children that make q, k and v, None for one that is gone. ``weight`` is
    a parameter in or near it, by whose device and dtype a mixer goes. ``relative`` tells that it
    adds relative positions to its scores, ``absolute`` that the model has absolute ones besides.
    """

    path: str
    module: nn.Module
    projections: dict[str, str | None]
    num_heads: int
    dim: int
    weight: Tensor
    relative: bool
    absolute: bool


class _ReachedError(Exception):
    """Ends a probe at the attention interface."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> None:
        super().__init__("a probe reached the attention interface")
        self.qkv = {"q": q, "k": k, "v": v}
        self.options = {
            name for name, value in options.items() if value is not None and value is not False
        }


def _reach(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    **options: Any,
) -> Any:
    raise _ReachedError(query, key, value, {"attention_mask": attention_mask, **options})


class _ConfigError(ModelError):
    """The config of a model does not apply to its attention alone; that of a submodel may."""


def find_layers(model: Any) -> list[Layer]:
    """The self-attention layers of a transformers encoder, in order.

    Raises:
        ModelError: no encoder, or a module that could not be understood, which is named.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PROBE, _reach)
    try:
        return _find_layers(model)
    except _ConfigError as error:
        raise ModelError(f"{error}; {_submodels_instead(model)}") from None


def _find_layers(model: Any) -> list[Layer]:
    name = type(model).__name__
    for entry in ("is_encoder_decoder", "is_decoder"):
        if getattr(model.config, entry, False):
            raise _ConfigError(
                f"{name} cannot be swapped: its config has {entry}=True, and the swap takes "
                "encoders with a config of their own"
            )
    layers = [
        _probe(model, path, one)
        for path, module in model.named_modules()
        if (one := _interfaced(module, model.config)) is not None
    ]
    if not layers:
        raise ModelError(f"{name} cannot be swapped: {uninterfaced(model)}")
    return layers


def _interfaced(module: nn.Module, config: Any) -> nn.Module | None:
    """``module`` where it calls the attention interface, or else one in its place that does."""
    if isinstance(module, RelativeSelfAttention) or calls_interface(module):
        return module
    return adapted(module, config)


def _probe(model: Any, path: str, module: nn.Module) -> Layer:
    where = f"{type(model).__name__} cannot be swapped: {path} ({type(module).__name__})"
    config = getattr(module, "config", None)
    if config is not model.config:
        raise _ConfigError(f"{where} has a config of its own")
    if getattr(module, "is_causal", False) and getattr(config, "is_causal", True) is not False:
        raise ModelError(f"{where} is causal; flashmix swaps the mixing of encoders")
    dim = _width(module)
    if dim is None:
        raise ModelError(f"{where} has no linear projections")
    weight = next(iter((*module.parameters(), *model.parameters())))
    x = torch.zeros(1, TOKENS, dim).to(weight)
    made: dict[str, Tensor] = {}
    hooks = [
        child.register_forward_hook(lambda _, __, y, name=name: made.update({name: y}))
        for name, child in module.named_children()
    ]
    before = config._attn_implementation
    config._attn_implementation = PROBE
    try:
        with torch.no_grad():
            module(x)
    except _ReachedError as reached:
        qkv, options = reached.qkv, reached.options
    except Exception as error:
        if positions := POSITIONS & inspect.signature(module.forward).parameters.keys():
            raise ModelError(
                f"{where} is given positions ({', '.join(positions)}) to apply to q and k, which "
                "the swap does not support yet; flashmix.register_attention mixes after that, with "
                "all weights kept, if the model masks padding alone"
            ) from error
        raise ModelError(f"{where} needs more than hidden states: {error}") from error
    else:
        raise ModelError(f"{where} does not reach transformers' attention interface")
    finally:
        config._attn_implementation = before
        for hook in hooks:
            hook.remove()
    if unknown := options - KNOWN_OPTIONS:
        raise ModelError(
            f"{where} gives its attention {', '.join(sorted(unknown))}, which mixers do not take"
        )
    return Layer(
        path=path,
        module=module,
        projections={part: _source(where, part, qkv[part], made, x) for part in "qkv"},
        num_heads=qkv["q"].shape[1],
        dim=dim,
        weight=weight,
        relative="position_bias" in options or isinstance(module, RelativeSelfAttention),
        absolute=isinstance(module, RelativeSelfAttention),
    )


def _submodels_instead(model: nn.Module) -> str:
    """Which parts of a model may be swapped, where it cannot be as a whole."""
    from transformers import PreTrainedModel

    found: dict[str, str] = {}
    for path, part in model.named_modules():
        if path and isinstance(part, PreTrainedModel) and not path.startswith((*found,)):
            with suppress(ModelError):
                _find_layers(part)
                found[f"{path}."] = f"{path} ({type(part).__name__})"
    if not found:
        return "none of its submodels can be swapped either"
    return f"submodels that may be swapped instead: {', '.join(found.values())}"


def _width(module: nn.Module) -> int | None:
    """Width of the tokens that an attention module takes, by its mixer or a projection."""
    if (mixer := mixer_of(module)) is not None:
        return mixer.dim
    for child in module.children():
        if isinstance(child, nn.Linear):
            return child.in_features
    return None


def _source(where: str, part: str, heads: Tensor, made: dict[str, Tensor], x: Tensor) -> str | None:
    """The child whose output is ``heads``, cut into heads and nothing else; None for ``x``."""
    if heads.dim() == 4 and heads.shape[1] * heads.shape[3] == x.shape[2]:
        for name, y in {**made, "": x}.items():
            cut = y.unflatten(-1, (heads.shape[1], heads.shape[3])) if y.shape == x.shape else y
            if _same(cut.transpose(1, 2), heads):
                return None if _same(y, x) else name
    raise ModelError(
        f"{where}: its {part} {list(heads.shape)} is not the output of one projection of the "
        f"{x.shape[2]} channels cut into heads"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same elements in memory."""
    return (
        a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.storage_offset() == b.storage_offset()
    )
