"""What models cost beside their accuracy, measured one at a time and interleaved.

Inference at several lengths with its peak memory, and training steps on the task's own batches,
for every pattern and for the vanilla model with eager and with fused attention.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flashmix.bench import memory, stats
from flashmix.bench.timing import WallClock, interleave
from flashmix.tasks import encoders
from flashmix.tasks.batches import Batch, MaskedBatches, TrainingBatches
from flashmix.tasks.finetuning import FinetuneConfig, TaskData
from flashmix.tasks.loop import Recipe, Trainer, autocast
from flashmix.tasks.pretraining import Corpus, PretrainConfig, training_batches

STEPS = {"cuda": 24, "cpu": 6}
ROUNDS = {"cuda": 7, "cpu": 3}
SECONDS_EACH = 0.3
NOWHERE = Path("nowhere")


def finetune_costs(
    config: FinetuneConfig, sources: Mapping[str, str], data: TaskData, lengths: Sequence[int]
) -> dict[str, Any]:
    """Per label of ``sources`` (mixers and vanilla): step_ms, params, peak memory, inference.

    Inference is of ``config.batch_size`` examples without padding, a row for each of ``lengths``
    and for the task's own longest input, whose median is ``infer_ms``.
    """
    blank = partial(
        encoders.classifier,
        classes=len(data.classes),
        special=data.special,
        seed=0,
        pooling=config.pooling,
        unpad=config.unpad,
    )
    models = {
        label: encoders.Classifier(blank(source, label)).to(config.device)
        for label, source in sources.items()
    }
    found: dict[str, dict[str, Any]] = {
        label: {
            "params": sum(p.numel() for p in model.parameters()),
            "inference": [],
        }
        for label, model in models.items()
    }
    width = data.train.ids.shape[1]
    for length in sorted({*lengths, width}):
        actions = {
            label: _inference(model, config, length, data.special.size)
            for label, model in models.items()
        }
        timed = _interleaved(actions, ROUNDS[config.device])
        for label, samples in timed.items():
            times = stats.summary([1e3 * s for s in samples])
            found[label]["inference"].append(
                {
                    "seq_len": length,
                    "batch": config.batch_size,
                    **times,
                    "samples_ms": [1e3 * s for s in samples],
                    "sequences_per_s": config.batch_size / statistics.median(samples),
                    "peak_memory_mb": memory.peak_mb(actions[label], config.device),
                }
            )
            if length == width:
                found[label]["infer_ms"] = times["median_ms"]
    batches = TrainingBatches(data.train, config.batch_size, 0)
    steps = batches.typical(STEPS[config.device])
    trainers = {
        label: _trainer(model, batches, config.recipe(0), lambda batch: len(batch.target))
        for label, model in models.items()
    }
    timing = _steps_ms(trainers, steps, config.device)
    for label, fields in timing.items():
        found[label] |= fields | {"steps_per_epoch": batches.per_epoch}
    return found


def pretrain_costs(config: PretrainConfig, mixers: Sequence[str], corpus: Corpus) -> dict[str, Any]:
    """Per pattern: step_ms, params and peak memory of a pretraining step."""
    batches: MaskedBatches = training_batches(config, corpus, 0)
    trainers = {}
    for label in mixers:
        blank = encoders.masked_model(config.arch, label, corpus.special, 0, config.dropout)
        model = encoders.MaskedModel(blank).to(config.device)
        trainers[label] = _trainer(
            model, batches, config.recipe(0), lambda batch: batch.target.numel()
        )
    timing = _steps_ms(trainers, list(range(STEPS[config.device])), config.device)
    return {
        label: fields | {"params": sum(p.numel() for p in trainers[label].model.parameters())}
        for label, fields in timing.items()
    }


def cost_fields(
    result: Mapping[str, Any],
    costs: Mapping[str, Any],
    baselines: Mapping[str, Mapping[str, Any]],
    *,
    shared: bool,
) -> dict[str, Any]:
    """A row's fields of cost: from its own clock, and from what was measured alone.

    Args:
        result: the training's result.
        costs: of its mixers, measured alone; empty where they were not.
        baselines: costs of the vanilla model.
        shared: whether other trainings shared the device, so that its clock says little.
    """
    fields: dict[str, Any] = {"train_seconds": result["wall_seconds"], "train_seconds_by": "clock"}
    if shared:
        alone = costs and result["steps"] * costs["step_ms"] / 1e3
        fields = {"train_seconds": alone or None, "train_seconds_by": "steps x step_ms, alone"}
    if costs:
        fields |= {
            "step_ms": costs["step_ms"],
            "peak_memory_mb": costs["train_peak_memory_mb"],
        }
    if "inference" in costs:
        plain = [{k: v for k, v in one.items() if k != "samples_ms"} for one in costs["inference"]]
        fields |= {"infer_ms": costs["infer_ms"], "inference": plain}
        fields["baselines"] = {
            label: {name: one[name] for name in ("step_ms", "infer_ms", "train_peak_memory_mb")}
            for label, one in baselines.items()
        }
    return fields


def _inference(
    model: encoders.Classifier, config: FinetuneConfig, length: int, vocabulary: int
) -> Callable[[], object]:
    source = torch.Generator().manual_seed(length)
    shape = (config.batch_size, length)
    ids = torch.randint(vocabulary, shape, generator=source).to(config.device)
    batch = Batch(ids, None, ids[:, 0])

    def run() -> None:
        model.eval()
        with torch.no_grad(), autocast(ids.device, config.precision):
            model.logits(batch)

    return run


def _trainer(
    model: torch.nn.Module, batches: Any, recipe: Recipe, terms: Callable[[Batch], int]
) -> Trainer:
    return Trainer(
        model,
        batches,
        terms=terms,
        evaluate=dict,
        recipe=recipe,
        folder=NOWHERE,
        steps=1 << 30,
    )


def _steps_ms(
    trainers: Mapping[str, Trainer], steps: Sequence[int], device: str
) -> dict[str, dict[str, Any]]:
    """Mean time of a training step over ``steps``, and its peak memory, for each trainer."""

    def run(trainer: Trainer) -> Callable[[], object]:
        def action() -> None:
            trainer.model.train()
            for step in steps:
                trainer.train_step(step)

        return action

    actions = {label: run(trainer) for label, trainer in trainers.items()}
    found: dict[str, dict[str, Any]] = {}
    longest = steps[-1]
    for label, trainer in trainers.items():
        trainer.model.train()
        trainer.train_step(longest)  # the optimizer's state is no part of the step's peak
        peak = memory.peak_mb(lambda t=trainer: t.train_step(longest), device)  # type: ignore[misc]
        found[label] = {"train_peak_memory_mb": peak}
    for label, samples in _interleaved(actions, ROUNDS[device]).items():
        each = [1e3 * s / len(steps) for s in samples]
        found[label] |= {"step_ms": statistics.median(each), "step_samples_ms": each}
    gc.collect()
    return found


def _interleaved(
    actions: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of a call, several samples for each action, taken in turn."""
    labels = list(actions)
    clocks = [WallClock(actions[label]) for label in labels]
    samples: dict[str, list[float]] = {label: [] for label in labels}
    for index, seconds in interleave(
        clocks, min_samples=rounds, max_samples=3 * rounds, seconds_each=SECONDS_EACH
    ):
        samples[labels[index]].append(seconds)
    return samples
