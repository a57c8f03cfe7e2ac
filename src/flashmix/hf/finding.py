"""Finds the attention layers of a model, and what they are like.

Layers are found by what they do and not by their names: the model runs once with tiny inputs (see
:mod:`flashmix.hf.probe`), and what reaches transformers' attention interface is traced back to the
modules that made it (see :mod:`flashmix.hf.tracing`). Then each layer is called again with what it
was given, with its projections of q and k replaced by zeros: whether the rest of its code takes
that, and the tokens themselves in place of v, decides what mixers without q and k can drop.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace as replace_fields
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ModelError
from flashmix.hf.adapters import Adapter, adapted
from flashmix.hf.guard import calls_interface, may_take_other_tokens, uninterfaced
from flashmix.hf.interface import TAKEN
from flashmix.hf.masks import CAUSAL, FULL, Reach
from flashmix.hf.probe import TOKENS, Call, call_alone, record_calls, width
from flashmix.hf.projections import replace, stand_ins
from flashmix.hf.saving import structure_of
from flashmix.hf.structure import Layer, Structure
from flashmix.hf.tracing import Source, find_columns, trace
from flashmix.hf.untouched import untouched

KNOWN_OPTIONS = TAKEN | {"dropout", "scaling", "sliding_window"}
"""What a swapped layer may give its attention: its window is known from its mask."""


class _ConfigError(ModelError):
    """The config of a model does not apply to its attention alone; that of a submodel may."""


def find_layers(
    model: Any,
    example: Mapping[str, Any] | None = None,
    known: list[Structure] | None = None,
) -> list[Layer]:
    """The self-attention layers of a transformers model, in order.

    Args:
        model: a model of transformers, swapped or not.
        example: inputs to run it with instead of made ones.
        known: the structures of its layers, if they are known already.

    Raises:
        ModelError: a module that could not be understood, which is named.
    """
    try:
        return _find_layers(model, example, known)
    except _ConfigError as error:
        raise ModelError(f"{error}; {_submodels_instead(model)}") from None


def _find_layers(
    model: Any, example: Mapping[str, Any] | None, known: list[Structure] | None
) -> list[Layer]:
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False) and has_decoder(model):
        raise _ConfigError(
            f"{name} cannot be swapped: its config has is_encoder_decoder=True, and the swap takes "
            "one of the two, part='encoder' say"
        )
    modules = {
        path: one
        for path, module in model.named_modules()
        if (one := _interfaced(module, model.config)) is not None
    }
    if not modules:
        raise ModelError(f"{name} cannot be swapped: {uninterfaced(model)}")
    for path, module in modules.items():
        if getattr(module, "config", None) is not model.config:
            raise _ConfigError(f"{_where(model, path, module)} has a config of its own")
    found = dict(zip(modules, known or (), strict=False)) if _fit(modules, known) else {}
    for path, module in modules.items():
        if (recorded := structure_of(module)) is not None:
            found[path] = recorded
    missing = {path: module for path, module in modules.items() if path not in found}
    if missing:
        kind = "cpu" if model.device.type == "meta" else model.device.type
        with untouched(model, missing.values()), torch.autocast(kind, enabled=False):
            calls = record_calls(model, missing, example)
            for path, module in missing.items():
                found[path] = _understand(model, path, module, calls.get(path), bool(calls))
    return [
        Layer(
            path, module, name, next(iter((*module.parameters(), *model.parameters()))), found[path]
        )
        for path, module in modules.items()
    ]


def check_order(model: Any, layers: list[Layer], example: Mapping[str, Any] | None) -> None:
    """Raise ModelError where layers that read no q and k would leave the model without positions.

    The model runs on the same token everywhere: where its first layer's tokens are all alike,
    rotation of q and k, or what is added to scores, is all that tells positions apart.
    """
    if any(layer.structure.gone for layer in layers) or any(p.is_meta for p in model.parameters()):
        return
    modules = {layer.path: layer.module for layer in layers[:1]}
    with untouched(model, modules.values()), torch.autocast(model.device.type, enabled=False):
        calls = record_calls(model, modules, example, alike=True)
    for path, call in calls.items():
        x, q, k = call.tokens, call.qkv["q"].transpose(1, 2), call.qkv["k"].transpose(1, 2)
        if x is None or x.dim() != 3 or not _alike(x):
            return
        structure = layers[0].structure
        scored = structure.relative and not structure.absolute
        if scored or not (_alike(q) and _alike(k)):
            only = "are added to scores" if scored else "are rotations of q and k"
            raise ModelError(
                f"{type(model).__name__}: its only positions {only} ({path}), "
                "which fourier does not read; in every layer it could not tell left from right. "
                "Keep another mixer in some layers, as in 'fourier*2,local*2', or say "
                "allow_unordered=True"
            )


def _alike(x: Tensor) -> bool:
    """Whether two tokens in the middle of ``x`` [B, N, ...] are the same."""
    if x.shape[1] < 3:
        return False
    one, other = x[:, x.shape[1] // 2].double(), x[:, x.shape[1] // 2 + 1].double()
    return bool((one - other).norm() <= max(1e-4, 8 * torch.finfo(x.dtype).eps) * one.norm())


def has_decoder(model: nn.Module) -> bool:
    """Whether the model, or the one within its head, has a decoder beside its encoder."""
    base = getattr(model, "base_model", model)
    return any(
        hasattr(one, "decoder") and hasattr(one, "encoder")
        for one in (model, base, getattr(base, "model", base))
    )


def _interfaced(module: nn.Module, config: Any) -> nn.Module | None:
    """``module`` where it calls the attention interface, or else one in its place that does."""
    if isinstance(module, Adapter) or calls_interface(module):
        return module
    return adapted(module, config)


def _fit(modules: Mapping[str, nn.Module], known: list[Structure] | None) -> bool:
    """Whether each module has what its structure names; another version may have other modules."""
    if known is None or len(known) != len(modules):
        return False
    for module, structure in zip(modules.values(), known, strict=True):
        paths = [*structure.projections.values(), *structure.norms["q"], *structure.norms["k"]]
        parts = {path for path, _ in module.named_modules()}
        if not parts.issuperset(path for path in paths if path is not None):
            return False
    return True


def _where(model: nn.Module, path: str, module: nn.Module) -> str:
    return f"{type(model).__name__} cannot be swapped: {path} ({type(module).__name__})"


def _understand(
    model: Any, path: str, module: nn.Module, call: Call | None, ran: bool
) -> Structure:
    where = _where(model, path, module)
    if call is None and ran and may_take_other_tokens(module):
        raise ModelError(
            f"{where} was not called when the model ran, and may be cross-attention, which mixers "
            "cannot take the place of; give swap example=, a dict of the model's inputs"
        )
    if call is None:
        call = _alone(where, module, model.config)
    if not call.reached:
        raise ModelError(f"{where} does not reach transformers' attention interface")
    _check_options(where, call)
    q, k, v = (call.qkv[part] for part in "qkv")
    if any(one.dim() != 4 for one in (q, k, v)) or k.shape != v.shape or q.shape[3] != v.shape[3]:
        raise ModelError(
            f"{where} gives its attention q {list(q.shape)}, k {list(k.shape)} and v "
            f"{list(v.shape)}, which mixers take as [B, H, N, dh] with one width of a head"
        )
    if q.shape[2] != k.shape[2] or q.shape[1] % k.shape[1]:
        raise ModelError(
            f"{where} attends from {q.shape[2]} tokens to {k.shape[2]} others: this is "
            "cross-attention, and mixers mix the tokens themselves"
        )
    sources = trace(module, call)
    given = {part: call.inputs.get(sources[part].projection or "") for part in "qk"}
    if isinstance(given["q"], Tensor) and not _same(given["q"], given["k"]):
        raise ModelError(
            f"{where} makes k of other tokens than q: this is cross-attention, and mixers mix the "
            "tokens themselves"
        )
    columns = find_columns(where, call, "v", sources["v"])
    reach, biased = _reach(where, module, call)
    made = {part: call.outputs.get(source.projection or "") for part, source in sources.items()}
    structure = Structure(
        projections={part: source.projection for part, source in sources.items()},
        norms={"q": sources["q"].others, "k": (*sources["k"].others, *_positional(module))},
        num_heads=q.shape[1],
        num_kv_heads=v.shape[1],
        head_dim=v.shape[3],
        columns=columns,
        channels={part: 0 if y is None else y.shape[-1] for part, y in made.items()},
        reach=reach,
        relative=call.taken.get("position_bias") is not None,
        absolute=isinstance(module, Adapter) and module.absolute,
        biased=biased,
    )
    plain = not structure.relative and not biased and len({*structure.projections.values()}) == 3
    for part in "qk" if plain else "":
        try:
            find_columns(where, call, part, sources[part])
        except ModelError:
            plain = False
    structure = replace_fields(structure, plain=plain)
    return _with_replays(model, module, call, sources, structure)


def _positional(module: nn.Module) -> list[str]:
    """Modules of an adapter that go with q and k."""
    names = module.positional if isinstance(module, Adapter) else ()
    return [name for name in names if hasattr(module, name)]


def _alone(where: str, module: nn.Module, config: Any) -> Call:
    """The call of a layer with random tokens and nothing else."""
    dim = width(module)
    if dim is None:
        raise ModelError(f"{where} has no linear projections")
    weight = next(module.parameters())
    try:
        return call_alone(module, (torch.randn(1, TOKENS, dim).to(weight),), {}, config)
    except Exception as error:
        raise ModelError(
            f"{where} needs more than hidden states, and the inputs of the model are not known "
            f"({type(error).__name__}: {error}); give swap example=, a dict of the model's inputs"
        ) from error


def _check_options(where: str, call: Call) -> None:
    """Raise ModelError for an option of its attention that mixers do not take."""
    given = {name for name, value in call.taken.items() if value is not None and value is not False}
    if unknown := given - KNOWN_OPTIONS:
        raise ModelError(
            f"{where} gives its attention {', '.join(sorted(unknown))}, which mixers do not take"
        )


def _reach(where: str, module: nn.Module, call: Call) -> tuple[Reach, bool]:
    """How far the tokens of a layer see, and whether its mask adds to scores."""
    mask, reach = call.mask, call.reach
    if isinstance(reach, str):
        raise ModelError(
            f"{where} asks for another mask ({reach}) than mixers have: all tokens, those before, "
            "or a window"
        )
    if mask is None:
        causal = call.taken.get("is_causal")
        causal = getattr(module, "is_causal", False) if causal is None else causal
        alone = getattr(getattr(module, "config", None), "is_causal", True)
        return (CAUSAL if causal and alone is not False else FULL), False
    if reach is not None:
        return reach, False
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.is_floating_point():
        return FULL, mask.shape[2] > 1
    if isinstance(mask, Tensor) and (mask.dim() == 2 or mask.shape[1:-1].numel() == 1):
        return FULL, False
    shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    raise ModelError(
        f"{where} gives its attention attention_mask {shape} of its own, which may hold more than "
        "padding"
    )


def _with_replays(
    model: Any, module: nn.Module, call: Call, sources: Mapping[str, Source], structure: Structure
) -> Structure:
    """``structure`` with what the layer takes in place of q and k, and of v."""
    if any(sources[part].projection is None or sources[part].parameters for part in "qk"):
        return structure
    given = [call.inputs.get(sources[part].projection or "") for part in "qkv"]
    if any(isinstance(one, Tensor) and not _same(one, given[2]) for one in given[:2]):
        return structure  # what makes the tokens of q and k, elsewhere, would be left unread
    one_head = dict.fromkeys("qk", structure.head_dim)
    for unread in (one_head, {part: structure.channels[part] for part in "qk"}):
        tried = replace_fields(structure, unread=unread)
        if _replays(model, module, call, tried, call.qkv["v"]):
            break
    else:
        return structure
    x = call.tokens
    if x is None or x.shape[-1] != structure.dim:
        return tried
    fused = structure.projections["v"] in (structure.projections["q"], structure.projections["k"])
    if fused and structure.num_kv_heads != structure.num_heads:
        return tried
    tokens = x.unflatten(-1, (-1, structure.head_dim)).transpose(1, 2)
    wanted = replace_fields(tried, tokens=True)
    return wanted if _replays(model, module, call, wanted, tokens) else tried


def _same(x: Tensor, tokens: Any) -> bool:
    if not isinstance(tokens, Tensor) or x.shape != tokens.shape:
        return False
    return x.is_meta or x.data_ptr() == tokens.data_ptr() or torch.equal(x, tokens)


def _replays(model: Any, module: nn.Module, call: Call, structure: Structure, want: Tensor) -> bool:
    """Whether ``want`` reaches the interface as v when the projections are dropped."""
    with untouched(module), torch.no_grad():
        replace(module, stand_ins(module, structure, keep_v=not structure.tokens, sliced=False))
        try:
            again = call_alone(module, call.args, call.options, model.config, structure.dim)
        except Exception:
            return False
        got = again.qkv.get("v")
        return (
            got is not None and got.shape == want.shape and (got.is_meta or torch.equal(got, want))
        )


def _submodels_instead(model: nn.Module) -> str:
    """Which parts of a model may be swapped, where it cannot be as a whole."""
    from transformers import PreTrainedModel

    found: dict[str, str] = {}
    for path, part in model.named_modules():
        if path and isinstance(part, PreTrainedModel) and not path.startswith((*found,)):
            with suppress(ModelError):
                _find_layers(part, None, None)
                found[f"{path}."] = f"{path} ({type(part).__name__})"
    if not found:
        return "none of its submodels can be swapped either"
    return f"submodels that may be swapped instead: {', '.join(found.values())}"
