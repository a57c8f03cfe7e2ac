"""Refuses models and calls that would ignore a mixer, or give it more than a layer's own tokens."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from flashmix.errors import ModelError

NAMES: set[str] = set()
"""The ``attn_implementation`` names whose attention is a mixer."""
OTHER_TOKENS = frozenset(
    {
        *("key_value_states", "encoder_hidden_states", "cross_attention_states"),
        *("key_hidden_states", "context_hidden_states", "context"),
        *("keys", "key", "k", "key_tensor"),
    }
)
"""What attention modules call the tokens to attend to, where these may be other than the asking."""
_GUARDED = "_flashmix_guarded"


def calls_interface(module: nn.Module) -> bool:
    """Whether the module calls transformers' attention interface, which a mixer stands behind."""
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def uninterfaced(model: nn.Module) -> str:
    """Why no attention of the model reaches the interface, naming its first one."""
    for path, module in model.named_modules():
        if "attention" in type(module).__name__.lower():
            return (
                f"{path} ({type(module).__name__}) never calls transformers' attention interface, "
                "behind which mixers stand; flashmix list --models lists models that do"
            )
    return "it has no attention; flashmix list --models lists models that do"


def may_take_other_tokens(module: nn.Module) -> bool:
    """Whether an attention module may be given keys of other tokens, as in cross-attention."""
    return not OTHER_TOKENS.isdisjoint(inspect.signature(module.forward).parameters)


def refuse_other_tokens(module: nn.Module) -> None:
    """Let an attention module raise ModelError when it is called as cross-attention.

    Its queries and keys may agree in shape, so that the mixer behind the interface cannot tell.
    """
    if may_take_other_tokens(module) and not hasattr(module, _GUARDED):
        setattr(module, _GUARDED, True)
        names = tuple(inspect.signature(module.forward).parameters)
        hook = functools.partial(_refuse_other_tokens, names)
        module.register_forward_pre_hook(hook, with_kwargs=True)


def _refuse_other_tokens(
    names: tuple[str, ...], module: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    if module.config._attn_implementation not in NAMES:
        return
    given = {**dict(zip(names, args, strict=False)), **options}
    for name in names[1:]:
        other = given.get(name)
        if name in OTHER_TOKENS and other is not None and other is not given.get(names[0]):
            raise ModelError(
                f"{type(module).__name__}: this is cross-attention (it got {name}), and mixers mix "
                "the tokens themselves; use one of transformers' own attn_implementation for this "
                "model, such as 'sdpa' or 'eager'"
            )


def guard_models() -> None:
    """Let models of transformers raise ModelError where they would ignore a mixer by name.

    They are checked when they are built, and when ``set_attn_implementation`` is called.
    """
    from transformers import PreTrainedModel

    build: Any = PreTrainedModel.post_init
    choose: Any = PreTrainedModel.set_attn_implementation
    if hasattr(build, _GUARDED):
        return

    @functools.wraps(build)
    def post_init(self: Any, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        # A part without attention, such as a backbone of convolutions, has nothing to ignore.
        if self.config._attn_implementation in NAMES and _has_attention(self):
            _check(self, self.config._attn_implementation)

    @functools.wraps(choose)
    def set_attn_implementation(
        self: Any, attn_implementation: Any, *args: Any, **options: Any
    ) -> None:
        for part, name in _chosen(self, attn_implementation):
            if part is self or _has_attention(part):
                _check(part, name)
        choose(self, attn_implementation, *args, **options)

    setattr(post_init, _GUARDED, True)
    setattr(PreTrainedModel, build.__name__, post_init)
    setattr(PreTrainedModel, choose.__name__, set_attn_implementation)


def _chosen(model: Any, requested: Any) -> Iterator[tuple[Any, str]]:
    """The parts to which ``set_attn_implementation`` would give a mixer, and its name."""
    from transformers import PreTrainedModel

    wanted = {id(config): name for config, name in _wanted(model.config, requested)}
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            name = wanted.get(id(part.config), wanted[id(model.config)])
            if name in NAMES:
                yield part, name


def _wanted(config: Any, requested: Any) -> Iterator[tuple[Any, Any]]:
    """A config and those within it, each with the name that is requested for it, or None."""
    by_part = requested if isinstance(requested, dict) else None
    yield config, requested if by_part is None else by_part.get("")
    for key in config.sub_configs:
        if (inner := getattr(config, key, None)) is not None:
            yield from _wanted(inner, requested if by_part is None else by_part.get(key))


def _has_attention(model: nn.Module) -> bool:
    return any("attention" in type(module).__name__.lower() for module in model.modules())


def _check(model: nn.Module, name: str) -> None:
    """Raise ModelError if no attention of ``model`` reaches a mixer; prepare its layers for one."""
    layers = [module for module in model.modules() if calls_interface(module)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} would ignore attn_implementation {name!r}: "
            f"{uninterfaced(model)}; use one of transformers' own, such as 'eager'"
        )
    for layer in layers:
        refuse_other_tokens(layer)
