"""Which mixers a family of models takes, found by swapping them into a small model of it."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

from flashmix.errors import FlashmixError
from flashmix.hf.families import Family
from flashmix.hf.swap import swap

MIXERS = ("attention", "local", "topk", "fnet", "spectral", "fourier")
"""The mixers that are tried."""
UNPAD = "unpad"
"""Whether ``swap(..., unpad=True)`` is taken, as if it were a mixer."""
NO_PADDING = "its inputs have no padding"
"""Why unpadded execution of a model without attention_mask means nothing."""


def columns() -> tuple[str, ...]:
    """What is tried: the mixers, and unpadded execution."""
    return (*MIXERS, UNPAD) if UNPAD in inspect.signature(swap).parameters else MIXERS


def refusals(family: Family) -> dict[str, str]:
    """Why the family refuses what it does not take, by name; the others are taken.

    The errors of the swap, without their opening.
    """
    model = family.build()
    errors = {name: _error(family, model, name) for name in columns()}
    return {name: error for name, error in errors.items() if error is not None}


def _error(family: Family, model: Any, name: str) -> str | None:
    encoder = family.encoder(copy.deepcopy(model))
    options: dict[str, Any] = {"mixers": name}
    if name == UNPAD:
        options = {"mixers": "attention", UNPAD: True}
        images = encoder.main_input_name == "pixel_values"
        if images or "attention_mask" not in inspect.signature(encoder.forward).parameters:
            return NO_PADDING
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            swap(encoder, **options)
    except FlashmixError as error:
        opening = f"{type(encoder).__name__} cannot be swapped: "
        return str(error).removeprefix(opening).removeprefix("swap: ").rstrip(".")
    return None


def reasons(refused: dict[str, str]) -> list[str]:
    """The sentences of :func:`refusals` but NO_PADDING, each once, after the names that it is of.

    No names stand before one that is of everything.
    """
    names: dict[str, list[str]] = {}
    for name, error in refused.items():
        if error != NO_PADDING:
            error = error.replace(f"which {name} cannot", "which it cannot")
            names.setdefault(error, []).append(name)
    everything = [name for name in columns() if refused.get(name) != NO_PADDING]
    return [
        error if these == everything else f"{', '.join(these)}: {error}"
        for error, these in names.items()
    ]
