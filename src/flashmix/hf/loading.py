"""Loads what a swapped model's ``save_pretrained`` wrote."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from json import JSONDecodeError
from os import PathLike
from typing import Any

import torch
from torch import nn

from flashmix.errors import ArgumentError
from flashmix.hf.configs import HUB_OPTIONS, read_config, split_options
from flashmix.hf.interface import transformers
from flashmix.hf.pooling import POOLING, pool_mean
from flashmix.hf.saving import RECORD, SUBMODELS
from flashmix.hf.strictness import check_weights
from flashmix.hf.structure import Structure
from flashmix.hf.swap import repeat_swap
from flashmix.hf.unread import freeze

REFUSED = {
    "config": "it is the config that was saved; give values of it by name, num_labels=2 say",
    "state_dict": "the weights are those that were saved",
    RECORD: "the config records the swap",
    "trust_remote_code": "no code from the hub runs",
    "use_kernels": "no code from the hub runs",
    "kernel_config": "no code from the hub runs",
    "use_safetensors": "weights come from safetensors only",
    "attn_implementation": "the swap decides how each layer attends",
}
LOADING = frozenset(
    {
        "device_map",
        "disable_mmap",
        "ignore_mismatched_sizes",
        "key_mapping",
        "max_memory",
        "offload_buffers",
        "offload_folder",
        "output_loading_info",
        "quantization_config",
        "variant",
    }
)
"""Options of transformers' ``from_pretrained`` that only the weights need."""


def from_pretrained(
    path: str | PathLike[str], model_class: str | type | None = None, **options: Any
) -> Any:
    """Load a swapped model: builds the model, repeats the swap, then reads the weights.

        >>> model.save_pretrained("reviews-fnet")
        >>> model = flashmix.from_pretrained("reviews-fnet")

    Every weight of the model must be in the files and every weight of the files in the model,
    except for the head where ``model_class`` names another.

    Args:
        path: a folder that ``save_pretrained`` wrote, or a name on the hub.
        model_class: a class of transformers or its name, to load the encoder with another head,
            for example "AutoModelForSequenceClassification"; the class that was saved when None.
        **options: which files (``revision``, ``subfolder``, ``token``, ``cache_dir``,
            ``local_files_only``, ...), of the config and of the weights alike; values to set in the
            config, for example ``num_labels=2``; and how to load the weights (``dtype``,
            ``device_map``, ``ignore_mismatched_sizes`` for a head of other labels, ...).

    Returns:
        The model, in eval mode. Weights come from safetensors only, and no code from the hub runs.

    Raises:
        ArgumentError: there is no such folder, class or option, no swap in the config, the config
            asks for code from the hub, or the weights are not those of the model.
        ModelError: this version of transformers builds another model, in which the swap fails.
        MissingDependencyError: transformers is not installed.
        OSError: the files are missing.
    """
    for name, reason in REFUSED.items():
        if name in options:
            raise ArgumentError(f"from_pretrained: {name} cannot be set; {reason}")
    package = transformers()
    from safetensors import SafetensorError

    hub, rest = split_options(options)
    dtype = {name: rest.pop(name) for name in ("dtype", "torch_dtype") if name in rest}
    if len(dtype) == 2:
        raise ArgumentError("from_pretrained: dtype and torch_dtype are the same; set one of them")
    loading = {name: rest.pop(name) for name in LOADING & rest.keys()}
    # The revision may move to other files between reading the config and reading the weights.
    resolve = getattr(package.utils, "resolve_revision", None)  # transformers 5.17 has none
    if resolve is not None:
        where = {name: hub.get(name) for name in ("revision", "token", "cache_dir")}
        offline = hub.get("local_files_only", False)
        hub["revision"] = resolve(path, **where, local_files_only=offline) or "main"
    config, rest = read_config(path, **hub, **rest)
    parts = _recorded_parts(path, config)
    if not parts and not hasattr(config, POOLING):
        raise ArgumentError(
            f"from_pretrained: {str(path)!r} holds no swapped model; load it with transformers, "
            "then call flashmix.swap"
        )
    saved = (config.architectures or [None])[0]
    kind = _concrete(_named(model_class or saved), config)
    _check_options(rest, kind, config)

    class Swapped(kind):  # type: ignore[valid-type, misc]
        def __init__(self, config: Any, *args: Any, **keywords: Any) -> None:
            super().__init__(config, *args, **keywords)
            for where, part in parts.items():
                repeat_swap(_part(self, where), part["mixers"], part["known"], part["unpad"])

    Swapped.__module__, Swapped.__name__ = kind.__module__, kind.__name__
    forgiving = loading.pop("ignore_mismatched_sizes", False)
    report = loading.pop("output_loading_info", False)
    try:
        model, info = Swapped.from_pretrained(
            path,
            config=config,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **hub,
            **loading,
            **dtype,
            **rest,
        )
    except (SafetensorError, JSONDecodeError) as error:
        raise ArgumentError(
            f"from_pretrained: a file of the weights of {path} is not whole ({error}); save or "
            "download it again"
        ) from None
    model.__class__ = kind
    for place, swapped in parts.items():
        freeze(_part(model, place), swapped["frozen"])  # loading lets all weights train
    head = saved if saved not in (None, kind.__name__) else None
    plain = None if head is None else _named(head)
    check_weights(path, model, info, plain, forgiving)
    if getattr(config, POOLING, None) == "mean":
        pool_mean(model)
    return (model, info) if report else model


def load(path: str | PathLike[str]) -> Any:
    """Load a model of transformers, swapped or not, as the class that was saved.

    Raises:
        MissingDependencyError: transformers is not installed.
        ArgumentError: there is no such folder, or its config asks for code from the hub.
        OSError: the files are missing.
    """
    config, _ = read_config(path)
    if hasattr(config, RECORD) or hasattr(config, POOLING):
        return from_pretrained(path)
    kind = _named((config.architectures or ["AutoModel"])[0])
    return kind.from_pretrained(path, config=config, use_safetensors=True)


def _recorded_parts(path: str | PathLike[str], config: Any) -> dict[str, dict[str, Any]]:
    """What :func:`repeat_swap` takes of each swapped part of the model, by path, of the config."""
    record: Any = vars(config).pop(RECORD, None)
    try:
        parts = {} if record is None else record.get(SUBMODELS, {"": record})
        found = {
            where: {
                "mixers": part["mixers"],
                "known": _structures(part),
                "unpad": part.get("unpad", False),
                "frozen": [str(name) for name in part.get("frozen", [])],
            }
            for where, part in parts.items()
        }
        if all(
            isinstance(part["mixers"], list)
            and {type(text) for text in part["mixers"]} == {str}
            and part["unpad"] in (0, 1)
            for part in found.values()
        ):
            return found
    except (AttributeError, KeyError, TypeError, ArgumentError):
        pass
    raise ArgumentError(
        f"the config of {path} has a broken entry {RECORD!r}, expected the mixers of each layer; "
        "save the model again"
    )


def _structures(part: Mapping[str, Any]) -> list[Structure] | None:
    """What the layers of a swapped part are like; None where an older version saved it."""
    if "layers" not in part:
        return None
    return [Structure.from_dict(values) for values in part["layers"]]


def _part(model: Any, where: str) -> nn.Module:
    """The part of ``model`` that was swapped at ``where``, with another head maybe."""
    base = model.base_model_prefix
    for path in (where, f"{base}.{where}", f"{where}.".removeprefix(f"{base}.").removesuffix(".")):
        try:
            part = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(part, transformers().PreTrainedModel):
            return part
    raise ArgumentError(
        f"from_pretrained: {where!r} was swapped, which a {type(model).__name__} has not; "
        "load the class that was saved"
    )


def _check_options(options: dict[str, Any], kind: Any, config: Any) -> None:
    """Raise ArgumentError for an option that neither the config nor the model takes."""
    unknown = options.keys() - inspect.signature(kind.__init__).parameters.keys()
    if unknown:
        raise ArgumentError(
            f"from_pretrained: unknown option {min(unknown)!r}, which is no entry of a "
            f"{type(config).__name__} either; options are dtype, "
            f"{', '.join(sorted(HUB_OPTIONS | LOADING))}"
        )


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
