"""Finds a model's attention layers and their projections, by what they do and not by their names.

Each module that calls transformers' attention interface is called once with zeros; what reaches
the interface is traced back to the child modules that made it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from flashmix.errors import ModelError
from flashmix.hf.attention import mixer_of
from flashmix.hf.relative import RelativeSelfAttention, adapted

PROBE = "mixers_probe"
TOKENS = 2
KNOWN_OPTIONS = {"dropout", "scaling", "is_causal", "position_bias"}


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


def find_layers(model: Any) -> list[Layer]:
    """The self-attention layers of a transformers encoder, in order.

    Raises:
        ModelError: no encoder, or a module that could not be understood, which is named.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PROBE, _reach)
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False) or getattr(
        model.config, "is_decoder", False
    ):
        raise ModelError(
            f"{name} cannot be swapped: its config is that of a decoder or an encoder-decoder "
            "(is_decoder, is_encoder_decoder), and the swap takes encoders with a config of their "
            "own, such as T5EncoderModel"
        )
    layers = [
        _probe(model, path, one)
        for path, module in model.named_modules()
        if (one := _interfaced(module, model.config)) is not None
    ]
    if not layers:
        _refuse_unknown(model)
    return layers


def _interfaced(module: nn.Module, config: Any) -> nn.Module | None:
    """``module`` where it calls the attention interface, or else one in its place that does."""
    if isinstance(module, RelativeSelfAttention) or _calls_interface(module):
        return module
    return adapted(module, config)


def _calls_interface(module: nn.Module) -> bool:
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _refuse_unknown(model: nn.Module) -> NoReturn:
    name, what = type(model).__name__, "it has no attention"
    for path, module in model.named_modules():
        if "attention" in type(module).__name__.lower():
            what = f"{path} ({type(module).__name__}) never calls transformers' attention interface"
            break
    raise ModelError(f"{name} cannot be swapped: {what}")


def _probe(model: Any, path: str, module: nn.Module) -> Layer:
    where = f"{type(model).__name__} cannot be swapped: {path} ({type(module).__name__})"
    config = getattr(module, "config", None)
    if getattr(module, "is_causal", False) and getattr(config, "is_causal", True) is not False:
        raise ModelError(f"{where} is causal; flashmix swaps the mixing of encoders")
    if config is not model.config:
        raise ModelError(f"{where} has a config of its own; {_owner(model, path, config)}")
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
        if "position_embeddings" in inspect.signature(module.forward).parameters:
            raise ModelError(
                f"{where} rotates q and k by its positions, which the swap does not support yet; "
                "flashmix.register_attention mixes what was rotated, with all weights kept"
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


def _owner(model: nn.Module, path: str, config: Any) -> str:
    """What to do with an attention at ``path`` whose ``config`` is not the model's."""
    from transformers import PreTrainedModel

    parts = path.split(".")
    for end in range(1, len(parts)):
        owner = ".".join(parts[:end])
        part = model.get_submodule(owner)
        if isinstance(part, PreTrainedModel) and part.config is config:
            return f"swap the submodel that it belongs to, {owner} ({type(part).__name__})"
    return "no submodel of transformers has that config, so nothing of this model can be swapped"


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
