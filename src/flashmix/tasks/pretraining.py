"""Masked-language-model pretraining from scratch, so that each mixer gets the same start.

The published small BERTs were pretrained with attention; swapping their mixers measures that head
start. Here every pattern trains on the same text by the same recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashmix.errors import ArgumentError, unknown_choice
from flashmix.tasks import distributed, encoders
from flashmix.tasks.batches import MaskedBatches
from flashmix.tasks.loop import Progress, Recipe, Trainer
from flashmix.tasks.text import load_examples
from flashmix.tasks.tokens import Special, load_tokenizer, special_tokens, tokenise

CORPORA = {"imdb_unsup": ("imdb", "unsupervised"), "imdb_train": ("imdb", "train")}
HELD_OUT_ROWS = 512
EVALUATION_SEED = 12345


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What all models of a pretraining run share.

    Attributes:
        arch: a size in ARCHS.
        corpus: one of CORPORA.
        tokenizer: folder or hub id.
        data: folder of the corpus's files; see :mod:`flashmix.tasks.text`.
        steps: optimizer steps.
        batch_size: packed rows in a step.
        seq_len: tokens in a row.
        check_every: steps between validations, each with a checkpoint.
        dropout: of the blank model while it pretrains; what is saved has BERT's own 0.1 again.
        lr, warmup, weight_decay, precision, compile: see :class:`Recipe`.
        limit: use only so many texts; None for all.
        device: "cpu" or "cuda".
    """

    arch: str
    corpus: str
    tokenizer: str
    data: str | None = None
    steps: int = 10_000
    batch_size: int = 128
    seq_len: int = 256
    check_every: int = 1000
    dropout: float = 0.0
    lr: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    precision: str = "float32"
    compile: bool = False
    limit: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.arch not in encoders.ARCHS:
            raise unknown_choice("arch", self.arch, encoders.ARCHS)
        if self.corpus not in CORPORA:
            raise unknown_choice("corpus", self.corpus, CORPORA)
        if min(self.steps, self.batch_size, self.check_every) < 1:
            raise ArgumentError("steps, batch size and check-every must be at least 1")
        if not 8 <= self.seq_len <= encoders.POSITIONS:
            raise ArgumentError(f"seq-len must be from 8 to {encoders.POSITIONS}")
        self.recipe(0)

    def recipe(self, seed: int) -> Recipe:
        """How to train with a seed."""
        return Recipe(
            lr=self.lr,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            precision=self.precision,
            seed=seed,
            compile=self.compile,
        )


@dataclass(frozen=True)
class Corpus:
    """Packed rows int32 [R, L] on the device, some held out, and their vocabulary."""

    train: Tensor
    held_out: Tensor
    special: Special


def load_corpus(config: PretrainConfig) -> Corpus:
    """The corpus in packed rows, the last ones held out."""
    tokenizer = load_tokenizer(config.tokenizer)
    special = special_tokens(tokenizer)
    task, split = CORPORA[config.corpus]
    texts = load_examples(task, split, Path(config.data) if config.data else None).texts
    rows = tokenise(tokenizer, texts[: config.limit]).packed(config.seq_len, special)
    held_out = min(HELD_OUT_ROWS, max(1, len(rows) // 20))
    if len(rows) < 2:
        raise ArgumentError(f"{config.corpus} fills only {len(rows)} row; use more text")
    rows = rows.to(config.device)
    return Corpus(rows[:-held_out], rows[-held_out:], special)


def training_batches(config: PretrainConfig, corpus: Corpus, seed: int) -> MaskedBatches:
    """The run's batches; an epoch is the stretch between two validations."""
    return MaskedBatches(
        corpus.train, corpus.special, config.batch_size, seed, per_epoch=config.check_every
    )


def pretrain(
    config: PretrainConfig,
    mixers: str,
    seed: int,
    corpus: Corpus,
    folder: Path,
    *,
    log: Callable[[str, float, int], object] = lambda name, value, step: None,
    listen: Callable[[Progress, int], object] = lambda progress, steps: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], encoders.MaskedModel]:
    """Pretrain one model, or go on with it; see :func:`flashmix.tasks.finetuning.finetune`.

    Returns:
        The result's fields, and the model of the best validation.
    """
    blank = encoders.masked_model(config.arch, mixers, corpus.special, seed, config.dropout)
    model = encoders.MaskedModel(blank).to(config.device)
    held_out = MaskedBatches(corpus.held_out, corpus.special, config.batch_size, EVALUATION_SEED)

    def evaluate() -> dict[str, float]:
        totals = torch.zeros(3, dtype=torch.float64, device=config.device)
        for index in range(held_out.per_pass):
            if index % distributed.world() == distributed.rank():
                batch = held_out(index)
                logits = model.logits(batch)
                loss = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), batch.target.flatten(), reduction="sum"
                )
                right = (logits.argmax(-1) == batch.target).sum()
                totals += torch.stack([loss, right, right.new_tensor(batch.target.numel())])
        loss_sum, right_sum, count = distributed.sum_over_ranks(totals).tolist()
        return {
            "score": -loss_sum / count,
            "val_loss": loss_sum / count,
            "val_accuracy": right_sum / count,
        }

    batches = training_batches(config, corpus, seed)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        model,
        batches,
        terms=lambda batch: batch.target.numel(),
        evaluate=evaluate,
        recipe=config.recipe(seed),
        folder=folder,
        steps=config.steps,
        log=log,
        listen=lambda progress: listen(progress, config.steps),
        stop=stop,
    )
    done = trainer.run()
    blank.config.hidden_dropout_prob = encoders.DROPOUT
    blank.config.attention_probs_dropout_prob = encoders.DROPOUT
    best = done.history[done.best_epoch - 1]
    result = {
        "status": "ok",
        "val_loss": best["val_loss"],
        "val_accuracy": best["val_accuracy"],
        "train_loss": done.history[-1]["train_loss"],
        "best_epoch": done.best_epoch,
        "steps": done.step,
        "passes": done.step / batches.per_pass,
        "tokens": done.step * config.batch_size * config.seq_len,
        "wall_seconds": done.seconds,
        "params": sum(p.numel() for p in model.parameters()),
        "history": done.history,
        "impl_ran": done.impl_ran or None,
    }
    return result, model
