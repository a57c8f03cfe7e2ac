"""Loads what a swapped model's ``save_pretrained`` wrote."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch

from flashmix.errors import ArgumentError
from flashmix.hf.interface import register_swapped, transformers
from flashmix.hf.pooling import POOLING, pool_mean
from flashmix.hf.swap import RECORD, swap

REFUSED = {
    "trust_remote_code": "no code from the hub runs",
    "use_safetensors": "weights come from safetensors only",
    "attn_implementation": "the swap decides how each layer attends",
}


def from_pretrained(
    path: str | PathLike[str], model_class: str | type | None = None, **options: Any
) -> Any:
    """Load a swapped model: builds the model, repeats the swap, then reads the weights.

        >>> model.save_pretrained("reviews-fnet")
        >>> model = flashmix.from_pretrained("reviews-fnet")

    Args:
        path: a folder that ``save_pretrained`` wrote, or a name on the hub.
        model_class: a class of transformers or its name, to load the encoder with another head,
            for example "AutoModelForSequenceClassification"; the class that was saved when None.
        **options: for the class's own ``from_pretrained``, for example ``num_labels=2``.

    Returns:
        The model, in eval mode. Weights come from safetensors only, and no code from the hub runs.

    Raises:
        ArgumentError: there is no such folder or class, or no swap in the config.
        MissingDependencyError: transformers is not installed.
        OSError: the files are missing.
    """
    package = transformers()
    for name, reason in REFUSED.items():
        if name in options:
            raise ArgumentError(f"from_pretrained: {name} cannot be set; {reason}")
    _check_folder(path)
    register_swapped()  # the config asks for it
    # The config would take them; the model's own from_pretrained understands them.
    kept = {name: options[name] for name in options.keys() & {"dtype", "torch_dtype"}}
    taken = {name: value for name, value in options.items() if name not in kept}
    config, rest = package.AutoConfig.from_pretrained(
        path, return_unused_kwargs=True, trust_remote_code=False, **taken
    )
    record: Any = getattr(config, RECORD, None)
    if record is None:
        raise ArgumentError(
            f"from_pretrained: {str(path)!r} holds no swapped model; load it with transformers, "
            "then call flashmix.swap"
        )
    kind = _concrete(_named(model_class or (config.architectures or [None])[0]), config)

    class Swapped(kind):  # type: ignore[valid-type, misc]
        def __init__(self, config: Any, *args: Any, **keywords: Any) -> None:
            super().__init__(config, *args, **keywords)
            swap(self, dict(enumerate(record["mixers"])))

    Swapped.__module__, Swapped.__name__ = kind.__module__, kind.__name__
    loaded = Swapped.from_pretrained(path, config=config, use_safetensors=True, **rest, **kept)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.__class__ = kind
    if getattr(config, POOLING, None) == "mean":
        pool_mean(model)
    return loaded


def load(path: str | PathLike[str]) -> Any:
    """Load a model of transformers, swapped or not, as the class that was saved.

    Raises:
        MissingDependencyError: transformers is not installed.
        ArgumentError: there is no such folder.
        OSError: the files are missing.
    """
    package = transformers()
    _check_folder(path)
    config = package.AutoConfig.from_pretrained(path, trust_remote_code=False)
    if getattr(config, RECORD, None) is not None:
        return from_pretrained(path)
    kind = _named((config.architectures or ["AutoModel"])[0])
    return kind.from_pretrained(path, use_safetensors=True)


def _check_folder(path: str | PathLike[str]) -> None:
    """Raise ArgumentError for a missing folder, which would pass for a bad name on the hub."""
    is_path = isinstance(path, PathLike) or path.startswith((".", "/", "~"))
    if is_path and not Path(path).is_dir():
        raise ArgumentError(f"there is no folder {path}")


def _named(model_class: Any) -> Any:
    package = transformers()
    if isinstance(model_class, str):
        if (found := getattr(package, model_class, None)) is None:
            raise ArgumentError(f"from_pretrained: transformers has no class {model_class!r}")
        return found
    if model_class is None:
        raise ArgumentError(
            "from_pretrained: the config names no architecture; say which with "
            "model_class='AutoModelForSequenceClassification' or another class of transformers"
        )
    return model_class


def _concrete(kind: Any, config: Any) -> Any:
    """The model class itself; an auto class is asked to build an empty model of the config."""
    if issubclass(kind, transformers().PreTrainedModel):
        return kind
    with torch.device("meta"):
        return type(kind.from_config(config, trust_remote_code=False))
