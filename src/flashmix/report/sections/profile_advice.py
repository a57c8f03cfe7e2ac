"""Suite profile: what its rows say to do first, what that saves, and what is not known."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from flashmix.bench.stats import Interval
from flashmix.bench.store import Row
from flashmix.report import tables
from flashmix.report.analysis import profile
from flashmix.report.analysis.models import VANILLA
from flashmix.report.analysis.profile import Group
from flashmix.report.analysis.timings import time_ratio
from flashmix.report.tables import Finding

HOW = {
    "compile": "torch.compile(model)",
    "reduce-overhead": "torch.compile(model, mode='reduce-overhead')",
    "int8": "torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})",
    "onnx": "torch.onnx.export, then ONNX Runtime",
    "onnx-int8": "torch.onnx.export, then ONNX Runtime's quantize_dynamic",
    "openvino": "torch.onnx.export, then OpenVINO",
}
ABSENT = "MissingDependencyError: "
"""Before a sentence that says all by itself."""
UNPAD = "flashmix.swap(model, 'attention', unpad=True), which changes no output"


def statements(rows: Sequence[Row]) -> list[str]:
    """The ceiling, what needs no training, the swaps, what to do, and what is not known."""
    groups = profile.compared(rows)
    found = []
    for group in groups:
        if group.base is None:
            found.append(f"{group.name}: the vanilla model was not measured: nothing is compared.")
            continue
        said = (*_ceiling(group), *_untrained(group), *_swapped(group))
        found += [f"{group.name}: {sentence}" for sentence in said]
    if groups:
        found += [*_by_length(rows), *_advice(groups[0]), *_unknown(groups)]
    return found


def findings(rows: Sequence[Row]) -> list[Finding]:
    """The ceiling, the fastest without training, and the fastest swap, of what was profiled."""
    group = next(iter(profile.compared(rows)), None)
    if group is None or group.base is None:
        return []
    named = (
        (group.ceiling, "if mixing were free: no swap can give more"),
        (group.untrained, "without any training"),
        (group.best_swap, "the fastest swap, which must be trained"),
    )
    found = []
    for row, what in named:
        if row is not None and (value := group.speed(row)) is not None:
            text = f"as fast as {group.base['label']}: {row['label']}, {what} ({group.name})."
            found.append(Finding(f"{tables.number(value.value)}x", text, (row, group.base)))
    return found


def _vanilla(group: Group) -> str:
    assert group.base is not None
    return str(group.base["label"])


def _ceiling(group: Group) -> Iterator[str]:
    """The most that any swap could give, measured; else from the parts of the time."""
    free = group.ceiling
    if free is None:
        yield from _estimated_ceiling(group)
        return
    value = group.speed(free)
    assert value is not None
    if value.low > 1:
        yield (
            f"if mixing were free ({free['label']}), the model would be {tables.interval(value)} "
            f"as fast as {_vanilla(group)}; no swap can give more."
        )
    elif value.high < 1:
        yield (
            f"free mixing is slower than {_vanilla(group)}, {tables.interval(value)} as fast: no "
            "swap can make the model faster here."
        )
    else:
        yield (
            f"free mixing and {_vanilla(group)} show no significant difference "
            f"({tables.interval(value)}): these rows do not bear out that any swap could help."
        )
    swap = profile.fastest(group.swaps)
    if swap is None:
        return
    over = time_ratio(free, swap)
    if over.low > 1:
        yield (
            f"{swap['label']} was measured {tables.interval(over)} as fast as free mixing, which "
            "cannot be: these times were disturbed; measure again on a quiet machine."
        )
    elif over.value > 1:
        yield (
            f"{swap['label']} and free mixing show no significant difference "
            f"({tables.interval(over)}): it gives all that a swap can."
        )


def _estimated_ceiling(group: Group) -> Iterator[str]:
    shares = (group.base or {}).get("parts")
    if not shares:
        yield "the ceiling is not known: free mixing was not measured, nor the parts of the time."
        return
    most = min(0.999, shares["mixing"] + shares["projections"])
    yield (
        "the ceiling was not measured, since free mixing could not be swapped in. Mixing and its "
        f"projections take {100 * most:.0f} % of the time, so that no swap can make the model more "
        f"than {tables.number(1 / (1 - most))}x as fast (from the parts alone, without interval)."
    )


def _untrained(group: Group) -> Iterator[str]:
    """What keeps the weights as they are, the fastest first."""
    others = [row for row in group.ok if not profile.needs_training(row) and row is not group.base]
    others.sort(key=lambda row: float(row["median_ms"]))
    if others:
        each = (f"{row['label']} {tables.interval(group.speed(row))}" for row in others)
        yield f"without training, against {_vanilla(group)}: {'; '.join(each)}."
    else:
        yield "nothing that needs no training was measured."


def _swapped(group: Group) -> Iterator[str]:
    """The fastest swap against the fastest that needs no training."""
    swap, kept, free = group.best_swap, group.untrained, group.ceiling
    if swap is None or kept is None:
        yield "no swap was measured."
        return
    value = time_ratio(kept, swap)
    what = f"the fastest swap, {swap['label']},"
    if value.high < 1:
        yield f"{what} loses to {kept['label']}: {tables.interval(value)} as fast."
    elif value.low > 1:
        yield f"{what} is {tables.interval(value)} as fast as {kept['label']}, the best without."
    else:
        yield (
            f"{what} and {kept['label']}, the best without training, show no significant "
            f"difference ({tables.interval(value)})."
        )
    if free is not None and (bound := time_ratio(kept, free)).high < 1:
        yield (
            f"{kept['label']} beats even free mixing, which is {tables.interval(bound)} as fast: "
            "no swap that runs in eager PyTorch can pass it at this shape."
        )


def _by_length(rows: Sequence[Row]) -> Iterator[str]:
    """From which N a swap has something to give, and can pass what needs no training."""
    measured = profile.by_length(rows)
    if len(measured) < 2:
        return
    lengths = ", ".join(f"{group.case.seq_len:,}" for group in measured)
    base = VANILLA if any(group.named(VANILLA) for group in measured) else profile.EAGER
    worth = profile.ceiling_passes(rows, base, profile.WORTH)
    yield (
        f"Full batches, N = {lengths}: free mixing is {profile.WORTH}x as fast as {base} or "
        f"faster: {tables.crossover(worth)}."
    )
    if any(group.named(profile.INT8) for group in measured):
        passes = profile.ceiling_passes(rows, profile.INT8)
        yield (
            f"Full batches, N = {lengths}: free mixing is faster than {profile.INT8}: "
            f"{tables.crossover(passes)}."
        )


def _advice(group: Group) -> Iterator[str]:
    """What to do first, what it saves, and whether a swap is worth its training after that."""
    kept, swap = group.untrained, group.best_swap
    if kept is None or group.base is None:
        return
    gain = group.speed(kept)
    if gain is not None and gain.low > 1:
        how = UNPAD if kept["unpad"] else HOW.get(kept["mode"], "attn_implementation='eager'")
        yield (
            f"Do first: {kept['label']} ({how}). It saves {_saved(gain)} of the time of "
            f"{group.shape} and needs no training."
        )
    else:
        yield (
            "Do first: nothing; of what needs no training, nothing is faster than "
            f"{_vanilla(group)} by more than the intervals."
        )
    if swap is None:
        return
    against = time_ratio(kept, swap)
    if against.low > 1:
        model = shlex.quote(str(swap["model"]))
        yield (
            f"Then, if you can train: {swap['label']} saves {_saved(against)} of what is left. The "
            "model must be fine-tuned with it: flashmix finetune --model "
            f"{model} --mixers {shlex.quote('attention; ' + str(swap['mixer']))}."
        )
    else:
        yield (
            f"A swap is not worth its training for speed at this shape: {swap['label']} is "
            f"{tables.interval(against)} as fast as {kept['label']}."
        )


def _saved(gain: Interval) -> str:
    """The share of the time that a speed-up saves."""
    share = [100 * (1 - 1 / bound) for bound in (gain.value, gain.low, gain.high)]
    return f"{share[0]:.0f} % ({share[1]:.0f} to {share[2]:.0f})"


def _unknown(groups: Sequence[Group]) -> Iterator[str]:
    """What these rows do not say, and what could not be measured, with its reason."""
    if any(group.best_swap for group in groups):
        yield (
            "Not known: what accuracy a swap keeps on your task, which flashmix finetune measures "
            "with your data; weights here are random."
        )
    if any("int8" in row["mode"] for group in groups for row in group.ok):
        yield "Not known: how far int8 changes your model's outputs; compare them on your data."
    failed: dict[str, list[str]] = {}
    for group in groups:
        for row in group.rows:
            if row["status"] != "ok":
                reason = str(row.get("error", row["status"])).removeprefix(ABSENT)
                failed.setdefault(reason, []).append(row["label"])
    for reason, labels in failed.items():
        yield f"Not measured: {', '.join(dict.fromkeys(labels))} ({reason.rstrip('.')})."
