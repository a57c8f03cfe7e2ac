"""What a swap kept, dropped and added, in parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flashmix.errors import ArgumentError
from flashmix.hf.finding import find_layers
from flashmix.hf.real_tokens import unpads
from flashmix.hf.saving import RECORD
from flashmix.hf.swap import is_swapped


@dataclass(frozen=True, kw_only=True)
class SwappedLayer:
    """One layer: its module, its mixer, the projections it keeps, and parameters."""

    path: str
    mixer: str
    keeps: tuple[str, ...]
    dropped: int
    added: int


@dataclass(frozen=True, kw_only=True)
class SwapReport:
    """The parameters of a swapped model, by layer and in all; print it for a table."""

    layers: tuple[SwappedLayer, ...]
    parameters: int
    unpad: bool = False
    """Whether padding is removed before the first layer and put back after the last."""

    @property
    def dropped(self) -> int:
        """Parameters of projections that went."""
        return sum(layer.dropped for layer in self.layers)

    @property
    def added(self) -> int:
        """Parameters of mixers that came."""
        return sum(layer.added for layer in self.layers)

    @property
    def parameters_before(self) -> int:
        """Parameters of the model before the swap."""
        return self.parameters + self.dropped - self.added

    def __str__(self) -> str:
        rows = [("layer", "mixer", "keeps", "dropped", "added")]
        for index, one in enumerate(self.layers):
            keeps = ", ".join(one.keeps) or "-"
            rows.append((f"{index}", one.mixer, keeps, f"{one.dropped:,}", f"{one.added:,}"))
        rows.append(("all", "", "", f"{self.dropped:,}", f"{self.added:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if index > 2 else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        before, now = self.parameters_before, self.parameters
        lines.append(f"parameters: {before:,} before, {now:,} now ({now / before - 1:+.1%})")
        if self.unpad:
            lines.append("padding is removed before the first layer and put back after the last")
        return "\n".join(lines)


def swap_report(model: Any) -> SwapReport:
    """Tell what :func:`flashmix.swap` kept, dropped and added in ``model``.

    Raises:
        ArgumentError: the model was not swapped.
    """
    record = getattr(getattr(model, "config", None), RECORD, None)
    found = find_layers(model) if record else []
    if record is None or not is_swapped(found):
        raise ArgumentError(
            f"swap_report: this {type(model).__name__} was not swapped; call flashmix.swap, or "
            "load a swapped one with flashmix.from_pretrained"
        )
    layers = [
        SwappedLayer(
            path=layer.path,
            mixer=mixer,
            keeps=tuple(dict.fromkeys(name for name in layer.projections.values() if name)),
            dropped=dropped,
            added=sum(p.numel() for p in layer.module.get_submodule("mixer").parameters()),
        )
        for layer, mixer, dropped in zip(found, record["mixers"], record["dropped"], strict=True)
    ]
    return SwapReport(
        layers=tuple(layers),
        parameters=sum(p.numel() for p in model.parameters()),
        unpad=unpads(model),
    )
