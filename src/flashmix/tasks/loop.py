"""The training loop: a plain one, whose state at any step is weights, optimizer and a number.

Batches, dropout and the learning rate are functions of the seed and the step, so a run that was
killed goes on as if it had not been, and the same command gives the same model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flashmix._clock import running_seconds
from flashmix.errors import ArgumentError, FlashmixError
from flashmix.ops.dispatch import implementations_by_op, recorded_choices
from flashmix.tasks import checkpoint, distributed
from flashmix.tasks.batches import Batch, derived_seed

STATE_FILE = "state.safetensors"
SAVE_SECONDS = 120.0
DROPOUT_SEED = 2
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        lr: peak learning rate.
        warmup: share of all steps over which it rises from zero; then it falls linearly to zero.
        weight_decay: of matrices; biases, norms and spectral filters have none.
        clip: largest norm of the gradient.
        precision: "float32", or "bfloat16" for autocast.
        seed: of initialisation, order and dropout.
        patience: epochs without a better one after which to stop; None to train to the end.
        compile: whether the model goes through torch.compile.
    """

    lr: float
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    precision: str = "float32"
    seed: int = 0
    patience: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ArgumentError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        if not 0 < self.lr < math.inf or not 0 <= self.warmup < 1 or self.clip <= 0:
            raise ArgumentError("lr and clip must be above 0, and warmup from 0 to below 1")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of ``step`` of ``steps``."""
        warm = self.warmup * steps
        if step < warm:
            return self.lr * (step + 1) / (warm + 1)
        return self.lr * (steps - step) / max(1.0, steps - warm)


@dataclass
class Progress:
    """Where a run is, kept in its state file.

    Attributes:
        step: steps done.
        loss_sum: of the current epoch's steps, loss_count of them.
        seconds: of training, evaluation, saving and time in which the process was stopped left out;
            epoch_seconds of the current epoch.
        best_epoch: the epoch with the best score on validation, from 1; 0 before the first.
        history: a row an epoch.
        impl_ran: the implementations that ran in training, by op.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    best_epoch: int = 0
    best_score: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)
    impl_ran: dict[str, list[str]] = field(default_factory=dict)


class Batches(Protocol):
    """Batches by step; ``per_epoch`` of them make an epoch."""

    per_epoch: int

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        ...


Evaluate = Callable[[], dict[str, float]]
Listener = Callable[[Progress], object]


class DivergedError(FlashmixError):
    """The loss is not finite any more: what comes of training at this rate."""


class Stopped(KeyboardInterrupt):
    """Training was asked to stop; its state is saved."""


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW, fused, with weight decay on matrices alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() == 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.dim() != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.lr, fused=True)


class Trainer:
    """One model's training, from its first step to its last, over any number of kills.

    Args:
        model: a module called with a Batch that returns the summed loss; weights on the device.
        batches: of the training data, for one process; each takes its share of them.
        terms: number of terms in the summed loss of a whole batch.
        evaluate: returns the epoch's numbers on validation, among them ``score``, the higher the
            better.
        folder: where the state lives; state that is found there is gone on from.
        steps: in all.
        log: hears (name, value, step) of losses and rates, for TensorBoard say.
        listen: hears the progress after every step.
        stop: asked after every step; True saves the state and raises Stopped.
        sequence_parallel: processes that share each sequence; those of a row get the same part of
            a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        *,
        terms: Callable[[Batch], int],
        evaluate: Evaluate,
        recipe: Recipe,
        folder: Path,
        steps: int,
        log: Callable[[str, float, int], object] = lambda name, value, step: None,
        listen: Listener = lambda progress: None,
        stop: Callable[[], bool] = lambda: False,
        sequence_parallel: int = 1,
    ) -> None:
        self._sharing = sequence_parallel
        self.model, self.batches, self.recipe = model, batches, recipe
        self.terms, self.evaluate, self.steps = terms, evaluate, steps
        self.log, self.listen, self.stop = log, listen, stop
        self.folder = folder
        self.optimizer = optimizer_for(model, recipe)
        self.progress = Progress()
        self._parameters = list(model.parameters())
        self.device = self._parameters[0].device
        self._lead = distributed.rank() == 0
        if (folder / STATE_FILE).exists():
            state = checkpoint.load_state(folder / STATE_FILE, model, self.optimizer)
            if state["recipe"] != asdict(recipe) or state["steps"] != steps:
                raise FlashmixError(
                    f"{folder / STATE_FILE} was trained by another recipe or for other steps; "
                    "choose another folder, or remove it to start anew"
                )
            self.progress = Progress(**state["progress"])
        self._step_module = self._wrapped()

    def _wrapped(self) -> nn.Module:
        module = self.model
        if distributed.world() > 1:
            from torch.nn.parallel import DistributedDataParallel

            module = DistributedDataParallel(module, gradient_as_bucket_view=True)
        return torch.compile(module) if self.recipe.compile else module  # type: ignore[return-value]

    def run(self) -> Progress:
        """Train to the end, and leave the best epoch's weights in the model.

        Raises:
            Stopped: asked to stop; the state is saved.
            DivergedError: the loss is not finite any more.
        """
        done = self.progress
        self.model.train()
        total = torch.tensor(done.loss_sum, dtype=torch.float64, device=self.device)
        start = saved = running_seconds()
        alone = distributed.world() == 1  # several could not agree on when to save but at epochs

        def pause() -> None:
            """Bring the progress up to date; what follows is not training time."""
            nonlocal start
            done.loss_sum = total.item()
            now = running_seconds()
            done.seconds += now - start
            done.epoch_seconds += now - start
            start = now

        while done.step < self.steps and not self._patience_is_over():
            with recorded_choices() as choices:
                total += self.train_step(done.step)
            for op, names in implementations_by_op(choices).items():
                done.impl_ran[op] = list(dict.fromkeys([*done.impl_ran.get(op, ()), *names]))
            done.step += 1
            done.loss_count += 1
            self.listen(done)
            if done.step % self.batches.per_epoch == 0 or done.step == self.steps:
                pause()
                self._end_epoch()
                total.zero_()
                start = saved = running_seconds()
            elif alone and ((stop := self.stop()) or running_seconds() - saved > SAVE_SECONDS):
                pause()
                self._save()
                if stop:
                    raise Stopped
                start = saved = running_seconds()
        self._restore_best()
        return done

    def train_step(self, step: int) -> Tensor:
        """One optimizer step; returns its mean loss, on the device."""
        recipe = self.recipe
        batch = self.batches(step)
        terms = self.terms(batch)
        rank, world = distributed.rank(), distributed.world()
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(step, self.steps)
        _seed(derived_seed(recipe.seed, step, DROPOUT_SEED, rank), self.device)
        with autocast(self.device, recipe.precision):
            summed = self._step_module(batch.part(rank // self._sharing, world // self._sharing))
        # DDP averages the ranks' gradients; the loss is the mean over the whole batch.
        loss = summed * (world / terms)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, recipe.clip)
        self.optimizer.step()
        return loss.detach() / self._sharing

    def _patience_is_over(self) -> bool:
        done = self.progress
        epochs = len(done.history)
        return self.recipe.patience is not None and (
            epochs - done.best_epoch >= self.recipe.patience > 0 and epochs > 0
        )

    def _end_epoch(self) -> None:
        done = self.progress
        epoch = len(done.history) + 1
        losses = torch.tensor([done.loss_sum / done.loss_count], dtype=torch.float64)
        losses = distributed.sum_over_ranks(losses.to(self.device)) / distributed.world()
        train_loss = losses.item()
        if not math.isfinite(train_loss):
            raise DivergedError(
                f"the loss is not finite any more in epoch {epoch}; try a lower learning rate"
            )
        self.model.eval()
        with torch.no_grad(), autocast(self.device, self.recipe.precision):
            found = self.evaluate()
        self.model.train()
        score = found.pop("score")
        row = {"epoch": epoch, "step": done.step, "train_loss": train_loss, **found}
        done.history.append({**row, "seconds": done.epoch_seconds})
        rate = self.recipe.rate(done.step, self.steps)
        for name, value in {**row, "lr": rate, "seconds": done.epoch_seconds}.items():
            if name not in ("epoch", "step"):
                self.log(name, value, done.step)
        done.loss_sum, done.loss_count, done.epoch_seconds = 0.0, 0, 0.0
        previous_best = self._best_file()
        if score > done.best_score:
            done.best_epoch, done.best_score = epoch, score
            if self._lead:
                checkpoint.save_weights(self._best_file(), self.model)
        self._save()
        if self._lead and previous_best != self._best_file():
            previous_best.unlink(missing_ok=True)

    def _best_file(self) -> Path:
        return self.folder / f"best-{self.progress.best_epoch}.safetensors"

    def _save(self) -> None:
        if self._lead:
            state = {
                "recipe": asdict(self.recipe),
                "steps": self.steps,
                "progress": asdict(self.progress),
            }
            checkpoint.save_state(self.folder / STATE_FILE, self.model, self.optimizer, state)
        distributed.wait()

    def _restore_best(self) -> None:
        distributed.wait()
        path = self._best_file()
        checkpoint.load_weights(self.model, checkpoint.read_weights(path), path)
        self.model.eval()


def _seed(seed: int, device: torch.device) -> None:
    """Seed what draws on ``device`` alone; ``torch.manual_seed`` visits every kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to ``precision``; float32 needs none."""
    dtype = PRECISIONS[precision]
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
