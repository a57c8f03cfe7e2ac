"""What is shown: mixers by name, untrained, trained on digits, or with weights from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError, FlashmixError, missing_extra
from flashmix.mixers import Mixer, parse_layers
from flashmix.models import SequenceClassifier, TextClassifier
from flashmix.tasks.digits import CLASSES, TOKENS, fit_digits
from flashmix.visualize import frequencies, tokens
from flashmix.visualize.inputs import Input
from flashmix.visualize.layers import (
    Layer,
    layer_names,
    mixer_layer,
    mixer_layers,
    whole_mixers,
)
from flashmix.visualize.picture import Picture, Shown

BYTES = 256


@dataclass(frozen=True, eq=False)
class Subject:
    """Layers with their tokens, and what captions say of them."""

    layers: list[Layer]
    shown: Shown

    def pictures(self) -> Iterator[Picture]:
        """Every picture, one at a time."""
        for layer in self.layers:
            yield from tokens.layer_pictures(layer, self.shown)
        yield frequencies.spectrum_picture(self.layers, self.shown)
        yield from frequencies.heads_pictures(self.layers, self.shown)


def mixer_subject(
    mixers: str,
    given: Input,
    *,
    dim: int = 64,
    num_heads: int | None = None,
    seed: int = 0,
    weights: Path | None = None,
) -> Subject:
    """Mixers in a model whose embedding is untrained; noise goes to them directly.

    Args:
        mixers: a mixer, or a pattern over layers: "fnet", "local(window=16)", "fnet*2,attention".
        given: what the model is shown.
        dim: width D.
        num_heads: heads of the mixers that have them; heads of width 64 by default.
        seed: of the untrained weights.
        weights: a safetensors file with the weights of the mixers, see :func:`load_mixers`.

    Raises:
        ArgumentError: the mixers, the width or the file do not fit.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _untrained(mixers, given, dim, num_heads)
    noise = given.kind == "noise"
    if weights is None:
        what = f"Mixers{'' if noise else ' and embedding'} are untrained (seed {seed})."
    else:
        load_mixers(model, weights)
        what = f"Weights of the mixers from {weights.name}"
        what += "." if noise else f"; the embedding is untrained (seed {seed})."
    if noise:
        found = list(whole_mixers(model).values())
        names = layer_names(len(found))
        layers = [
            mixer_layer(mixer, given.values, name) for mixer, name in zip(found, names, strict=True)
        ]
    else:
        layers = mixer_layers(model, lambda: model(given.values))
    return Subject(layers, _shown(mixers, given, what))


def compare_weights(
    mixers: Sequence[str], given: Input, *, dim: int = 64, seed: int = 0
) -> Picture:
    """Who attends to whom for several attentions side by side, of one head with the same weights.

    Args:
        mixers: attentions, for example ("attention", "local(window=32)", "topk(topk=32)").
        given: what they are shown.
        dim: width D.
        seed: of the untrained weights, the same for all.

    Raises:
        ArgumentError: a mixer that does not exist or has no attention weights.
    """
    subjects = [mixer_subject(name, given, dim=dim, num_heads=1, seed=seed) for name in mixers]
    layers = [subject.layers[0] for subject in subjects]
    shown = replace(subjects[0].shown, title="")
    return tokens.weights_side_by_side(layers, mixers, shown)


def _untrained(mixers: str, given: Input, dim: int, num_heads: int | None) -> nn.Module:
    specs = parse_layers(mixers)
    n = given.values.shape[1]
    if given.kind == "noise":
        return nn.ModuleList(spec.build(dim, num_heads=num_heads) for spec in specs).eval()
    depth = len(specs)
    if given.kind == "bytes":
        return TextClassifier(
            BYTES, n, 2, dim=dim, depth=depth, mixers=mixers, num_heads=num_heads
        ).eval()
    return SequenceClassifier(
        1, n, CLASSES, dim=dim, depth=depth, mixers=mixers, num_heads=num_heads
    ).eval()


def trained_subject(
    mixers: str,
    given: Input,
    *,
    steps: int,
    dim: int = 64,
    num_heads: int | None = None,
    seed: int = 0,
    on_step: Callable[[], object] = lambda: None,
) -> Subject:
    """Mixers after training on the handwritten digits, shown held-out ones.

    Args:
        mixers: as for :func:`mixer_subject`.
        given: images of N = 64 pixels.
        steps: of training, see :func:`flashmix.tasks.fit_digits`.
        dim, num_heads, seed: of the model.
        on_step: called after every step.
    """
    if given.values.shape[1:] != (TOKENS, 1):
        raise ArgumentError(
            f"trained mixers are shown digits of N = {TOKENS} pixels; leave --text, --input and "
            "--seq-len away"
        )
    model, reached = fit_digits(
        mixers,
        steps=steps,
        seed=seed,
        dim=dim,
        depth=len(parse_layers(mixers)),
        num_heads=num_heads,
        on_step=on_step,
    )
    what = (
        f"Trained on the digits for {steps:,} steps (seed {seed}): "
        f"{100 * reached['accuracy']:.1f} % of the held-out ones right."
    )
    return Subject(mixer_layers(model, lambda: model(given.values)), _shown(mixers, given, what))


def _shown(title: str, given: Input, weights: str) -> Shown:
    return Shown(title=title, one=given.one, all=given.all, weights=weights, labels=given.labels)


def load_mixers(model: nn.Module, path: Path) -> None:
    """Give the mixers of ``model`` their weights from a safetensors file.

    The file holds the state of one mixer, or of a model in which the mixers stand, in order, under
    any path: they are known by the names and shapes of their parameters.

    Raises:
        ArgumentError: the file does not hold exactly as many matching mixers as the model has.
        FlashmixError: the file cannot be read.
        MissingDependencyError: safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise missing_extra("safetensors", "hf", "reading a checkpoint") from None
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FlashmixError(f"{path} is not a readable safetensors file: {error}") from None
    kinds: dict[tuple[object, ...], list[Mixer]] = {}
    for mixer in whole_mixers(model).values():
        state = mixer.state_dict()
        kinds.setdefault((*((key, value.shape) for key, value in state.items()),), []).append(mixer)
    for shapes, mixers in kinds.items():
        state = mixers[0].state_dict()
        places = _places(state, tensors) if shapes else []
        if shapes and len(places) != len(mixers):
            raise ArgumentError(_unmatched(path, len(mixers), mixers[0], places, tensors))
        for mixer, place in zip(mixers, places, strict=False):
            mixer.load_state_dict({key: tensors[place + key] for key in state})


def _places(state: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    """The paths in the file under which all of ``state`` stands in the same shapes, in order."""
    first = next(iter(state))
    found = []
    for name in tensors:
        place = name.removesuffix(first)
        if name.endswith(first) and (not place or place.endswith(".")):
            there = (tensors.get(place + key) for key in state)
            wanted = (value.shape for value in state.values())
            if all(t is not None and t.shape == s for t, s in zip(there, wanted, strict=True)):
                found.append(place)
    return sorted(found, key=_by_number)


def _by_number(path: str) -> list[tuple[int, str]]:
    """Sorts "blocks.10" after "blocks.2"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def _unmatched(
    path: Path, count: int, mixer: Mixer, places: list[str], tensors: dict[str, Tensor]
) -> str:
    state = mixer.state_dict()
    need = ", ".join(f"{key} {list(value.shape)}" for key, value in state.items())
    last = next(iter(state)).rpartition(".")[2]
    there = [f"{key} {list(value.shape)}" for key, value in tensors.items() if key.endswith(last)]
    has = f"{len(places)} of them ({', '.join(places)})" if places else "none"
    return (
        f"{path}: {count} x {type(mixer).__name__} of width {mixer.dim} was asked for, each with "
        f"{need}; the file has {has}, among {', '.join(there or list(tensors)[:5])}. Name as many "
        'layers as it has ("spectral*2"), with their options, width and heads'
    )
