"""Refuses weights that are not those of the model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import torch

from flashmix.errors import ArgumentError
from flashmix.hf.attention import mixer_of


def check_weights(
    path: str | PathLike[str],
    model: Any,
    info: Mapping[str, Iterable[Any]],
    saved_class: Any,
    forgiving: bool,
) -> None:
    """Raise ArgumentError unless the files held the weights of ``model``, and no others.

    Args:
        path: the folder or the hub name, for the message.
        model: the loaded model of transformers.
        info: "missing_keys", "unexpected_keys" and "mismatched_keys" (each with the two shapes).
        saved_class: the class that was saved where ``model`` is of another, whose head may be new
            and whose own head may be left out; None where it is the same.
        forgiving: weights of another shape are left out, as ``ignore_mismatched_sizes`` asks.
    """
    layers = tuple(
        f"{path}." for path, module in model.named_modules() if mixer_of(module) is not None
    )
    base = f"{model.base_model_prefix}."

    def bare(key: str) -> str:
        return key.removeprefix(base)

    known: set[str] = set()
    if saved_class is not None and (info["missing_keys"] or info["unexpected_keys"]):
        config = copy.deepcopy(model.config)
        config._attn_implementation = "eager"  # a model that is not swapped may refuse the other
        with torch.device("meta"):
            known = {bare(key) for key in saved_class(config).state_dict()}

    missing = [
        key
        for key in info["missing_keys"]
        if saved_class is None or bare(key) in known or key.startswith(layers)
    ]
    surplus = [
        key
        for key in info["unexpected_keys"]
        if saved_class is None or bare(key) not in known or key.startswith(layers)
    ]
    others = [
        entry for entry in info["mismatched_keys"] if not forgiving or entry[0].startswith(layers)
    ]
    faults = []
    if missing:
        faults.append(f"{min(missing)} is missing{_more(missing)}")
    if surplus:
        faults.append(f"{min(surplus)} is not in the model{_more(surplus)}")
    if others:
        key, found, expected = min(others)
        faults.append(f"{key} has shape {list(found)}, expected {list(expected)}{_more(others)}")
        if not any(name.startswith(layers) for name, _found, _expected in others):
            faults.append("ignore_mismatched_sizes=True starts these anew")
    if faults:
        raise ArgumentError(
            f"from_pretrained: the weights of {path} are not those of a swapped "
            f"{type(model).__name__}: {'; '.join(faults)}; save the model again"
        )


def _more(keys: list[Any]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
