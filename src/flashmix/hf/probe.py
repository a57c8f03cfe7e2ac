"""Runs a model once on tiny inputs, and records what each attention layer was given and gave.

The layers get the positions, masks and options that the model itself makes. Where it is not known
which inputs a model takes, each layer is called alone, with zeros for its tokens.

Shapes: B batch, N tokens, D width, H heads, K heads of k and v, dh width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.hf.attention import mixer_of
from flashmix.hf.masks import FULL, Reach, mask_reach
from flashmix.hf.tiny import tiny_inputs

PROBE = "mixers_probe"
"""The ``attn_implementation`` under which a model is recorded."""
TOKENS = 2
"""Tokens of a layer that is called alone."""


@dataclass
class Call:
    """The first call of an attention layer, and what reached the attention interface in it.

    ``args`` and ``options`` are what the layer was given, ``tokens`` [B, N, D] the first of them.
    ``outputs`` are those of the modules within it, by path, in the order of their calls, and
    ``inputs`` what these were given. ``qkv`` are [B, H, N, dh] and twice [B, K, N, dh], with the
    graph from the layer's parameters to them.
    """

    args: tuple[Any, ...]
    options: dict[str, Any]
    tokens: Tensor | None
    outputs: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    qkv: dict[str, Tensor] = field(default_factory=dict)
    mask: Any = None
    reach: Reach | str | None = None
    taken: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether the layer called the interface."""
        return bool(self.qkv)


class _Recorder:
    """The calls of some modules, while it is active."""

    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}
        self.masks: list[tuple[Tensor, Reach | str]] = []
        self.dim: int | None = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Note a call before it runs; from here the graph is the module's own."""
        if id(module) in self.calls:
            return None
        args, options = _detached(args), _detached(options)
        values = (*args, *options.values())
        tokens = next((value for value in values if isinstance(value, Tensor)), None)
        self.calls[id(module)] = Call(args, options, tokens)
        torch.set_grad_enabled(True)
        return args, options

    def output(self, module: nn.Module, path: str, args: tuple[Any, ...], y: Any) -> None:
        """Note the input and the output of a module within one that is recorded."""
        call = self.calls.get(id(module))
        if call is not None and not call.reached and isinstance(y, Tensor):
            call.outputs.setdefault(path, y)
            call.inputs.setdefault(path, args[0] if args else None)

    def reach(self, mask: Any) -> Reach | str | None:
        """What a mask that the interface made lets a token see, also where it was cut since."""
        if not isinstance(mask, Tensor):
            return None
        for made, reach in self.masks:
            if made.untyped_storage()._cdata == mask.untyped_storage()._cdata:
                return reach
        others = (reach for _, reach in self.masks if reach != FULL)
        return None if next(others, None) is None else "computed from one of those it asked for"

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, options: dict[str, Any]
    ) -> Tensor:
        """Note what reached the interface; gives v, which has an attention's shape."""
        call = self.calls.get(id(module))
        if call is not None and not call.reached:
            call.qkv = {"q": q, "k": k, "v": v}
            call.mask, call.taken = mask, options
            call.reach = FULL if mask is None else self.reach(mask)
            torch.set_grad_enabled(False)
        heads = q.shape[1] if self.dim is None else self.dim // v.shape[3]
        wide = v.detach().repeat_interleave(max(1, heads // v.shape[1]), 1)
        return wide.transpose(1, 2).contiguous()


_active: _Recorder | None = None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    **options: Any,
) -> Any:
    assert _active is not None
    return _active.attend(module, query, key, value, attention_mask, options), None


def _mask(
    attention_mask: Tensor | None = None,
    mask_function: Any = None,
    batch_size: int = 1,
    kv_length: Any = None,
    device: Any = None,
    **_: Any,
) -> Tensor:
    """The padding as bool [B, 1, 1, N], by which the layers that get it are recognised."""
    assert _active is not None
    if attention_mask is None:
        attention_mask = torch.ones(batch_size, int(kv_length), device=device)
    made = attention_mask.bool()[:, None, None, :]
    _active.masks.append((made, mask_reach(mask_function)))
    return made


@contextmanager
def _recording(modules: Mapping[str, nn.Module]) -> Iterator[_Recorder]:
    """Record the first call of each module; PROBE must be the model's attention."""
    from transformers import AttentionInterface, AttentionMaskInterface

    global _active
    AttentionInterface.register(PROBE, _attend)
    AttentionMaskInterface.register(PROBE, _mask)
    recorder = _Recorder()
    hooks = []
    for module in {id(one): one for one in modules.values()}.values():
        hooks.append(module.register_forward_pre_hook(recorder.begin, with_kwargs=True))
        for path, part in module.named_modules():
            if path:
                note = _noting(recorder, module, path)
                hooks.append(part.register_forward_hook(note))
    before, _active = _active, recorder
    try:
        with torch.no_grad():
            yield recorder
    finally:
        _active = before
        for hook in hooks:
            hook.remove()


def _noting(recorder: _Recorder, module: nn.Module, path: str) -> Any:
    def note(_: nn.Module, args: tuple[Any, ...], y: Any) -> None:
        recorder.output(module, path, args, y)

    return note


def record_calls(
    model: Any,
    modules: Mapping[str, nn.Module],
    example: Mapping[str, Any] | None,
    alike: bool = False,
) -> dict[str, Call]:
    """The first call of each module in a run of ``model``, by path; none where it did not run.

    With ``alike`` all tokens, pixels or samples of its input are the same, and none is padding.

    The caller keeps the model untouched. Afterwards the modules stand in it, in eval mode, and
    every parameter is part of the graph.
    """
    for path, module in modules.items():
        if model.get_submodule(path) is not module:
            model.set_submodule(path, module)
    for part in model.modules():
        part.training = False
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    model.config._attn_implementation = PROBE
    model.config.use_cache = False
    for inputs in tiny_inputs(model) if example is None else (example,):
        inputs = _uniform(model, inputs) if alike else inputs
        with _recording(modules) as recorder:
            try:
                model(**inputs)
            except Exception:
                continue
        found = {path: recorder.calls.get(id(module)) for path, module in modules.items()}
        return {path: call for path, call in found.items() if call is not None}
    return {}


def call_alone(
    module: nn.Module,
    args: tuple[Any, ...],
    options: dict[str, Any],
    config: Any,
    dim: int | None = None,
) -> Call:
    """The call of an attention module by itself; the caller keeps it untouched.

    Its attention's output is ``dim`` wide, as that of its q where None.

    Raises:
        Exception: whatever the module raises.
    """
    before, config._attn_implementation = config._attn_implementation, PROBE
    try:
        with _recording({"": module}) as recorder:
            recorder.dim = dim
            module(*args, **options)
    finally:
        config._attn_implementation = before
    return recorder.calls[id(module)]


def width(module: nn.Module) -> int | None:
    """Width of the tokens that an attention module takes, by its mixer or a projection."""
    if (mixer := mixer_of(module)) is not None:
        return mixer.dim
    for child in module.children():
        if isinstance(child, nn.Linear):
            return child.in_features
    return None


def _uniform(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    main, mask = inputs.get(model.main_input_name), inputs.get("attention_mask")
    made = dict(inputs)
    if isinstance(main, Tensor):
        made[model.main_input_name] = torch.full_like(main, main.flatten()[0].item())
    if isinstance(mask, Tensor):
        made["attention_mask"] = torch.ones_like(mask)
    return made


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        # A mask must stay the very tensor that the interface made.
        return value.detach() if value.requires_grad else value
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_detached(one) for one in value)
    if isinstance(value, dict):
        return {key: _detached(one) for key, one in value.items()}
    return value
