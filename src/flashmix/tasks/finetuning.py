"""Fine-tuning a classifier on a task: its data, its training, and its test.

Shapes: n examples, N tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashmix._clock import running_seconds
from flashmix.errors import ArgumentError, unknown_choice
from flashmix.tasks import distributed, encoders, metrics
from flashmix.tasks.batches import Labelled, TrainingBatches, generator
from flashmix.tasks.digits import CLASSES, load_digits
from flashmix.tasks.loop import Progress, Recipe, Trainer, autocast
from flashmix.tasks.sequence import SpreadClassifier
from flashmix.tasks.text import TEXT_TASKS, load_examples
from flashmix.tasks.tokens import Special, load_tokenizer, special_tokens, tokenise

TASKS = ("imdb", "sst2", "digits")
SPLIT_SEED = 0
EVALUATION_TOKENS = 1 << 16
PIXEL = Special(pad=0, cls=1, sep=2, mask=3, size=4 + 17)
"""Digits as tokens: [CLS], then each pixel's grey level 0..16 as a token of its own."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What all models of a fine-tuning run share.

    Attributes:
        task: one of TASKS.
        model: a folder, a hub id, a size in ARCHS, or the folder of a ``flashmix pretrain`` run.
        data: folder of the task's files; see :mod:`flashmix.tasks.text`.
        tokenizer: folder or hub id; the model's own where None.
        epochs, batch_size, lr, warmup, precision, patience, compile: see :class:`Recipe`.
        seq_len: longest input in tokens, [CLS] and [SEP] among them.
        val_share: share of the training data held out for choosing the epoch.
        pooling: what the head reads: "mean" of the real tokens, or "cls", the first token.
        limit: use only so many training and so many test examples; None for all.
        device: "cpu" or "cuda".
        sequence_parallel: processes of torchrun that share each sequence, 1 for none.
        unpad: remove padding before the first layer of every model but the vanilla ones; see
            :func:`flashmix.swap`.
    """

    task: str
    model: str
    data: str | None = None
    tokenizer: str | None = None
    epochs: int = 4
    batch_size: int = 32
    seq_len: int = 256
    lr: float = 3e-4
    warmup: float = 0.1
    val_share: float = 0.1
    pooling: str = "mean"
    limit: int | None = None
    precision: str = "float32"
    patience: int | None = None
    compile: bool = False
    device: str = "cpu"
    sequence_parallel: int = 1
    unpad: bool = False

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise unknown_choice("task", self.task, TASKS)
        if min(self.epochs, self.batch_size) < 1 or self.seq_len < 3:
            raise ArgumentError("epochs and batch size must be at least 1, and seq-len at least 3")
        if self.pooling not in encoders.POOLINGS:
            raise unknown_choice("pooling", self.pooling, encoders.POOLINGS)
        if not 0 < self.val_share < 1:
            raise ArgumentError(f"val-share must be between 0 and 1, got {self.val_share}")
        if self.limit is not None and self.limit < 10:
            raise ArgumentError(f"limit must be at least 10 examples, got {self.limit}")
        if self.sequence_parallel < 1:
            raise ArgumentError(
                f"sequence-parallel must be at least 1, got {self.sequence_parallel}"
            )
        if self.sequence_parallel > 1 and (self.compile or self.pooling != "mean"):
            raise ArgumentError("sequence-parallel goes with --pooling mean, and without --compile")
        if self.unpad and (self.compile or self.sequence_parallel > 1):
            raise ArgumentError(
                "unpad would remove nothing: a compiled model keeps its padding, and so do "
                "sequences spread over processes; leave out unpad, or compile and "
                "sequence-parallel"
            )
        if self.unpad and self.task == "digits":
            raise ArgumentError(
                "unpad would remove nothing: digits are all of one length; leave it out"
            )
        self.recipe(0)

    def recipe(self, seed: int) -> Recipe:
        """How to train with a seed."""
        return Recipe(
            lr=self.lr,
            warmup=self.warmup,
            precision=self.precision,
            seed=seed,
            patience=self.patience,
            compile=self.compile,
        )


@dataclass(frozen=True)
class TaskData:
    """A task's examples, ready for the device.

    Attributes:
        train, val, test: padded token ids.
        classes: their names.
        special: the vocabulary.
        texts: of the test examples, in order, to be shown.
    """

    train: Labelled
    val: Labelled
    test: Labelled
    classes: tuple[str, ...]
    special: Special
    texts: list[str]


def load_task(config: FinetuneConfig, tokenizer: str) -> TaskData:
    """The task's examples as token ids; the validation split is the same for every seed.

    Args:
        config: the run.
        tokenizer: folder or hub id; digits need none.
    """
    if config.task == "digits":
        train, test, texts = _digits(config.limit)
        classes = tuple(str(digit) for digit in range(CLASSES))
        special = PIXEL
    else:
        data = Path(config.data) if config.data else None
        loaded = load_tokenizer(tokenizer)
        special = special_tokens(loaded)
        train, _ = _text(config, loaded, special, "train", data)
        test, texts = _text(config, loaded, special, "test", data)
        classes = TEXT_TASKS[config.task].classes
    held_out = max(1, round(config.val_share * len(train)))
    order = torch.randperm(len(train), generator=generator(SPLIT_SEED))
    val, rest = train.take(order[:held_out]), train.take(order[held_out:])
    return TaskData(
        rest.to(config.device), val.to(config.device), test.to(config.device), classes, special,
        texts,
    )  # fmt: skip


def _digits(limit: int | None) -> tuple[Labelled, Labelled, list[str]]:
    digits = load_digits()

    def tokens(x: Tensor, y: Tensor) -> Labelled:
        grey = (16 * x[..., 0]).round().to(torch.int32) + PIXEL.size - 17
        ids = torch.cat([torch.full((len(grey), 1), PIXEL.cls, dtype=torch.int32), grey], dim=1)
        return Labelled(ids, torch.full((len(ids),), ids.shape[1]), y)

    test = tokens(digits.test_x[:limit], digits.test_y[:limit])
    names = [f"held-out image {index}" for index in range(len(test))]
    return tokens(digits.train_x[:limit], digits.train_y[:limit]), test, names


def _text(
    config: FinetuneConfig, tokenizer: Any, special: Special, split: str, data: Path | None
) -> tuple[Labelled, list[str]]:
    texts, labels = load_examples(config.task, split, data)
    assert labels is not None
    if config.limit is not None and config.limit < len(texts):
        # Shuffled, since files often hold one class after the other.
        chosen = torch.randperm(len(texts), generator=generator(SPLIT_SEED))[: config.limit]
        texts = [texts[i] for i in chosen.tolist()]
        labels = [labels[i] for i in chosen.tolist()]
    ids, lengths = tokenise(tokenizer, texts).padded(config.seq_len, special)
    return Labelled(ids, lengths, torch.tensor(labels)), texts


@torch.no_grad()
def predict(
    model: encoders.Classifier, data: Labelled, classes: int, sequence_parallel: int = 1
) -> Tensor:
    """Logits float32 [n, C] on the CPU, in the order of ``data``; each process does its share.

    Processes that share sequences, ``sequence_parallel`` of them, do the same share.
    """
    row, place = divmod(distributed.rank(), sequence_parallel)
    rows_of_all = distributed.world() // sequence_parallel
    device = data.ids.device
    out = torch.zeros(len(data), classes, device=device)
    batch_size = max(1, EVALUATION_TOKENS // data.ids.shape[1])
    for index, rows in enumerate(data.sorted_rows(batch_size)):
        if index % rows_of_all == row:
            logits = model.logits(data.batch(rows)).float()
            if place == 0:
                out[rows.to(device)] = logits
    return distributed.sum_over_ranks(out).cpu()


def finetune(
    config: FinetuneConfig,
    source: str,
    mixers: str,
    seed: int,
    data: TaskData,
    folder: Path,
    *,
    log: Callable[[str, float, int], object] = lambda name, value, step: None,
    listen: Callable[[Progress, int], object] = lambda progress, steps: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], encoders.Classifier]:
    """Train one model with one seed, or go on with it, and choose its epoch on validation.

    Args:
        config: the run.
        source: the model to start from; ``config.model`` resolved for these mixers.
        mixers: a pattern over layers.
        seed: of new weights, order and dropout.
        data: the task's examples on the device.
        folder: where state and weights live.
        log: hears (name, value, step).
        listen: hears progress, and the steps in all, after every step.
        stop: asked after every step; see :class:`flashmix.tasks.loop.Trainer`.

    Returns:
        The result's fields, and the best epoch's model.
    """
    classes = len(data.classes)
    encoder = encoders.classifier(
        source, mixers, classes, data.special, seed, config.pooling, unpad=config.unpad
    )
    encoder = encoder.to(config.device)
    sharing = config.sequence_parallel
    model = (
        encoders.Classifier(encoder)
        if sharing == 1
        else SpreadClassifier(encoder, sharing, config.device)
    )
    val_labels = data.val.labels.cpu()

    def evaluate() -> dict[str, float]:
        scores = metrics.score(predict(model, data.val, classes, sharing), val_labels)
        return {
            "score": scores.accuracy,
            "val_loss": scores.loss,
            "val_accuracy": scores.accuracy,
        }

    batches = TrainingBatches(data.train, config.batch_size, seed)
    steps = config.epochs * batches.per_epoch
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        model,
        batches,
        terms=lambda batch: len(batch.target),
        evaluate=evaluate,
        recipe=config.recipe(seed),
        folder=folder,
        steps=steps,
        log=log,
        listen=lambda progress: listen(progress, steps),
        stop=stop,
        sequence_parallel=sharing,
    )
    done = trainer.run()
    result = {
        "status": "ok",
        "val_accuracy": done.best_score,
        "best_epoch": done.best_epoch,
        "epochs": len(done.history),
        "steps": done.step,
        "wall_seconds": done.seconds,
        "train_examples": len(data.train),
        "val_examples": len(data.val),
        "params": sum(p.numel() for p in model.parameters()),
        "history": done.history,
        "impl_ran": done.impl_ran or None,
    }
    return result, model


def test(
    config: FinetuneConfig, model: encoders.Classifier, data: TaskData
) -> tuple[dict[str, Any], Tensor]:
    """What a trained model does on the test set: the result's fields, and the logits [n, C]."""
    start = running_seconds()
    with autocast(data.test.ids.device, config.precision):
        logits = predict(model, data.test, len(data.classes), config.sequence_parallel)
    scores = metrics.score(logits, data.test.labels.cpu())
    fields = {
        "test_accuracy": scores.accuracy,
        "test_loss": scores.loss,
        "f1": scores.f1,
        "confusion": scores.confusion,
        "test_seconds": running_seconds() - start,
        "test_examples": len(data.test),
    }
    return fields, logits
