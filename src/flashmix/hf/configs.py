"""Reads a model's config before transformers does: no code from the hub runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from flashmix.errors import ArgumentError
from flashmix.hf.interface import SWAPPED, transformers
from flashmix.hf.saving import RECORD

HUB_OPTIONS = frozenset(
    {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}
)
"""Options that say which files are read: the same ones for the config and for the weights."""

BUILT_IN = {
    "attn_implementation": {"eager", "sdpa", "flex_attention", SWAPPED},
    "experts_implementation": {"eager", "batched_mm", "grouped_mm"},
}
"""What a config may choose; transformers fetches other implementations, as code, from the hub."""
_INTERNAL = {
    name: option for option in BUILT_IN for name in (option, f"_{option}", f"_{option}_internal")
}


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that say which files are read, and the others."""
    hub = {name: value for name, value in options.items() if name in HUB_OPTIONS}
    return hub, {name: value for name, value in options.items() if name not in hub}


def read_config(path: str | PathLike[str], **options: Any) -> tuple[Any, dict[str, Any]]:
    """The config of a model at a folder or a hub name, and the options that it did not take.

    Code that the config names (``auto_map``) is not known to transformers afterwards, and neither
    is the attention of a swapped model, which :func:`flashmix.swap` sets.

    Args:
        path: a folder that ``save_pretrained`` wrote, or a name on the hub.
        **options: those of HUB_OPTIONS, and values to set in the config, ``num_labels`` say.

    Raises:
        ArgumentError: no such folder, no model that transformers knows, or a config that asks for
            code from the hub, for pickled weights, or for the attention of an unknown swap.
        MissingDependencyError: transformers is not installed.
        OSError: there is no config.
    """
    package = transformers()
    if _is_path(path) and not Path(path).is_dir():
        raise ArgumentError(f"there is no folder {path}")
    hub, values = split_options(options)
    found, _ = package.PreTrainedConfig.get_config_dict(path, **hub)
    if not found:
        raise FileNotFoundError(f"there is no config.json in {path}")
    if not isinstance(found, dict):
        raise ArgumentError(f"the config of {path} is a {type(found).__name__}, expected a mapping")
    _check(path, found)
    kind = found.get("model_type")
    if kind not in package.CONFIG_MAPPING:
        own = " without code of its own (auto_map), which never runs" if "auto_map" in found else ""
        raise ArgumentError(
            f"{path} holds a model of type {kind!r}, which transformers {package.__version__} does "
            f"not know{own}"
        )
    return package.CONFIG_MAPPING[kind].from_dict(
        _cleaned(found), name_or_path=str(path), return_unused_kwargs=True, **values
    )


def _is_path(path: str | PathLike[str]) -> bool:
    """Whether ``path`` cannot be a name on the hub, as which transformers would look it up."""
    return isinstance(path, PathLike) or path.startswith((".", "/", "~"))


def _check(path: str | PathLike[str], found: dict[str, Any]) -> None:
    """Raise ArgumentError for what must not be loaded."""
    swapped = False
    for key, value in _entries(found):
        swapped |= key == RECORD
        option = _INTERNAL.get(key, "")
        for choice in _texts(value) if option else ():
            swapped |= choice == SWAPPED
            if str(choice) not in BUILT_IN[option]:
                raise ArgumentError(
                    f"the config of {path} asks for {option} {choice!r}, which transformers may "
                    "fetch from the hub as code; remove the entry, or write one of "
                    f"{', '.join(sorted(BUILT_IN[option] - {SWAPPED}))}"
                )
    weights = found.get("transformers_weights")
    if weights is not None and ".safetensors" not in Path(str(weights)).suffixes:
        raise ArgumentError(
            f"the config of {path} names {weights!r}; weights come from safetensors only"
        )
    if swapped and RECORD not in found:
        raise ArgumentError(
            f"{path} holds a model of which a submodel was swapped, saved by a version of flashmix "
            "that did not record which; swap that submodel of the original model again, and give "
            "it these weights with load_state_dict"
        )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All entries of nested mappings and lists."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _entries(inner)


def _texts(value: Any) -> Iterator[Any]:
    """The values of an option that may be given for each submodel, but for None."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif value is not None:
        yield value


def _cleaned(value: Any) -> Any:
    """``value`` without code from the hub and without the attention of a swapped model."""
    if isinstance(value, list):
        return [_cleaned(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _cleaned(inner)
        for key, inner in value.items()
        if key != "auto_map" and not (key in _INTERNAL and inner == SWAPPED)
    }
