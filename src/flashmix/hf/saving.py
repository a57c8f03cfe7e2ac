"""What a model records of the swaps within it, wherever it is saved from."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from flashmix.hf.interface import SWAPPED, register_swapped
from flashmix.hf.real_tokens import unpads
from flashmix.hf.structure import Structure
from flashmix.hf.unread import frozen

RECORD = "flashmix"
"""The entry of a model's config that records the swap."""
SUBMODELS = "submodels"
"""The entry of the record that holds those of swapped submodels, by path."""
_LAYER, _MODEL = "_flashmix_layer", "_flashmix_swapped"


@dataclass(frozen=True)
class LayerSwap:
    """What swaps did to one layer: its mixer as text, the parameters dropped, what is left.

    It lies on the layer, so that an unpickled model finds its attention in a new process too.
    """

    mixer: str
    dropped: int
    whole: Structure | None = None
    """What the layer was like before any swap; models pickled by older versions lack it."""
    gone: str = ""
    """Which of q, k and v it has no longer."""

    @property
    def structure(self) -> Structure | None:
        """What the layer is like now."""
        return None if self.whole is None else self.whole.without(*self.gone)

    def __reduce__(self) -> Any:
        return _restore, (self.mixer, self.dropped, self.whole, self.gone)


def _restore(mixer: str, dropped: int, *structure: Any) -> LayerSwap:
    prepare()
    return LayerSwap(mixer, dropped, *structure)


def prepare() -> None:
    """Register what swapped models need of transformers: their attention, and their saving."""
    register_swapped()
    _record_on_save()


def record_layer(
    module: nn.Module, mixer: str, dropped: int, structure: Structure, gone: str
) -> None:
    """Note on a layer that it was swapped to ``mixer``, and ``dropped`` more parameters.

    ``structure`` is what it was like before, ``gone`` which of q, k and v it has no longer.
    """
    before = getattr(module, _LAYER, LayerSwap(mixer, 0, structure))
    whole = before.whole or structure
    setattr(module, _LAYER, LayerSwap(mixer, before.dropped + dropped, whole, gone))


def structure_of(module: nn.Module) -> Structure | None:
    """What a swapped layer is like now; None for one that was not swapped."""
    found: LayerSwap | None = getattr(module, _LAYER, None)
    return None if found is None else found.structure


def layer_mixer(module: nn.Module) -> str | None:
    """The mixer to which a layer was swapped, as text; None for one that was not."""
    found: LayerSwap | None = getattr(module, _LAYER, None)
    return None if found is None else found.mixer


def record_model(model: nn.Module) -> None:
    """Note on a model, and in its config, what was swapped in it."""
    setattr(model, _MODEL, True)
    config: Any = model.config
    _write(config, _record(model))
    config._attn_implementation = SWAPPED


def _record(model: nn.Module) -> dict[str, Any]:
    found: list[LayerSwap | None] = [getattr(part, _LAYER, None) for part in model.modules()]
    layers = [layer for layer in found if layer is not None]
    record: dict[str, Any] = {
        "mixers": [layer.mixer for layer in layers],
        "dropped": [layer.dropped for layer in layers],
        "layers": [asdict(layer.whole) for layer in layers if layer.whole is not None],
    }
    record |= {"unpad": True} if unpads(model) else {}
    return {**record, "frozen": names} if (names := frozen(model)) else record


def _write(config: Any, record: dict[str, Any]) -> None:
    setattr(config, RECORD, record)
    # Saved with the config, which the private name is not: transformers' own from_pretrained then
    # refuses the folder, or its layers do, and never attends where a mixer should mix.
    config.attn_implementation = SWAPPED


def _swapped_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The models that were given to ``swap`` within ``model``, by path; none within another."""
    parts: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if hasattr(module, _MODEL) and not any(
            path.startswith(f"{outer}.") for outer in parts if outer
        ):
            parts[path] = module
            if not path:
                break
    return parts


def _record_on_save() -> None:
    """Let ``save_pretrained`` of every model record the swaps within it.

    The config of a swapped submodel may be a copy that the outer model, which writes the folder,
    does not hold; and only there is it known how the outer model's weights are written.
    """
    from transformers import PreTrainedModel

    plain: Any = PreTrainedModel.save_pretrained
    if hasattr(plain, _MODEL):
        return

    @functools.wraps(plain)
    def save_pretrained(self: Any, *args: Any, **options: Any) -> Any:
        parts = _swapped_parts(self)
        if parts and _has_converters(self):
            options["save_original_format"] = False
        with _recorded(self, parts):
            return plain(self, *args, **options)

    setattr(save_pretrained, _MODEL, True)
    setattr(PreTrainedModel, plain.__name__, save_pretrained)


@contextmanager
def _recorded(model: Any, parts: dict[str, nn.Module]) -> Iterator[None]:
    """The config of ``model`` holds what was swapped in it, as long as it is written."""
    if not parts:
        yield
        return
    config, names = model.config, (RECORD, "attn_implementation")
    before = {name: vars(config)[name] for name in names if name in vars(config)}
    records = {path: _record(part) for path, part in parts.items()}
    _write(config, records.get("", {SUBMODELS: records}))
    try:
        yield
    finally:
        for name in names:
            vars(config).pop(name, None)
        vars(config).update(before)


def _has_converters(model: Any) -> bool:
    """Whether transformers writes several weights as one, which needs those that a swap dropped."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        conversions = get_model_conversion_mapping(model, add_legacy=False)
    return any(isinstance(conversion, WeightConverter) for conversion in conversions)
