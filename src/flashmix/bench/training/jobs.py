"""What a training process does: train one model with one seed, or measure what the models cost."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from flashmix._files import write_whole
from flashmix.bench.training.costs import finetune_costs, pretrain_costs
from flashmix.bench.worker import Emit
from flashmix.tasks import distributed
from flashmix.tasks.encoders import quiet_transformers
from flashmix.tasks.finetuning import FinetuneConfig, TaskData, finetune, load_task, test
from flashmix.tasks.loop import Progress
from flashmix.tasks.pretraining import Corpus, PretrainConfig, load_corpus, pretrain
from flashmix.tasks.tokens import load_tokenizer

Job = dict[str, Any]
RESULTS = ("ok", "diverged")
"""Statuses that training again would give again; others tell of what befell the process."""
SAY_SECONDS = 0.5
LOGITS_FILE, MODEL_FOLDER = "test.safetensors", "model"
Log = Callable[[str, float, int], object]


def execute(job: Job, emit: Emit, stop: Callable[[], bool]) -> dict[str, Any]:
    """Do a job and return the result's fields.

    Args:
        job: kind ("finetune", "pretrain", "finetune costs", "pretrain costs"), config and what
            the kind needs. A "trial" is trained and validated, and goes on as another job.
        emit: hears what is being done.
        stop: asked now and then; True saves the state and raises Stopped.
    """
    quiet_transformers()
    emit("doing", index=0, what="reading the data", step=0, steps=0)
    result = KINDS[job["kind"]](job, emit, stop)
    emit("doing", index=0, what="done", step=1, steps=1)
    return result


@functools.lru_cache(maxsize=1)
def _task(config: FinetuneConfig, tokenizer: str) -> TaskData:
    return load_task(config, tokenizer)


@functools.lru_cache(maxsize=1)
def _corpus(config: PretrainConfig) -> Corpus:
    return load_corpus(config)


def _finetune(job: Job, emit: Emit, stop: Callable[[], bool]) -> dict[str, Any]:
    from safetensors.torch import save

    config, folder = FinetuneConfig(**job["config"]), Path(job["folder"])
    data = _task(replace(config, lr=1.0), job["tokenizer"])  # whatever the rate
    with _logs(folder) as log:
        result, model = finetune(
            config,
            job["source"],
            job["mixers"],
            job["seed"],
            data,
            folder,
            log=log,
            listen=_throttled(emit),
            stop=stop,
        )
    if job.get("trial"):
        return result
    tested, logits = test(config, model, data)
    result |= tested
    if distributed.rank() == 0:
        write_whole(folder / LOGITS_FILE, save({"logits": logits.half()}))
        _save_model(model.encoder, folder, job["tokenizer"] if config.task != "digits" else None)
    return result


def _pretrain(job: Job, emit: Emit, stop: Callable[[], bool]) -> dict[str, Any]:
    config, folder = PretrainConfig(**job["config"]), Path(job["folder"])
    shared = replace(config, lr=1.0, steps=1)  # the text is the same
    with _logs(folder) as log:
        result, model = pretrain(
            config,
            job["mixers"],
            job["seed"],
            _corpus(shared),
            folder,
            log=log,
            listen=_throttled(emit),
            stop=stop,
        )
    if distributed.rank() == 0 and not job.get("trial"):
        _save_model(model.encoder, folder, config.tokenizer)
    return result


def _finetune_costs(job: Job, emit: Emit, stop: Callable[[], bool]) -> dict[str, Any]:
    config = FinetuneConfig(**job["config"])
    data = _task(replace(config, lr=1.0), job["tokenizer"])
    return finetune_costs(config, job["sources"], data, job["lengths"])


def _pretrain_costs(job: Job, emit: Emit, stop: Callable[[], bool]) -> dict[str, Any]:
    config = PretrainConfig(**{**job["config"], "steps": 1})
    return pretrain_costs(config, job["mixers"], _corpus(config))


KINDS: dict[str, Callable[[Job, Emit, Callable[[], bool]], dict[str, Any]]] = {
    "finetune": _finetune,
    "pretrain": _pretrain,
    "finetune costs": _finetune_costs,
    "pretrain costs": _pretrain_costs,
}


def _save_model(encoder: Any, folder: Path, tokenizer: str | None) -> None:
    encoder.save_pretrained(folder / MODEL_FOLDER)
    if tokenizer:
        load_tokenizer(tokenizer).save_pretrained(folder / MODEL_FOLDER)


def _throttled(emit: Emit) -> Callable[[Progress, int], None]:
    said = 0.0

    def listen(progress: Progress, steps: int) -> None:
        nonlocal said
        if time.monotonic() - said >= SAY_SECONDS or progress.step == steps:
            said = time.monotonic()
            last = progress.history[-1] if progress.history else {}
            what = f"epoch {len(progress.history) + 1}"
            if "val_accuracy" in last:
                what += f", val accuracy {100 * last['val_accuracy']:.1f} %"
            emit("doing", index=0, what=what, step=progress.step, steps=steps)

    return listen


@contextlib.contextmanager
def _logs(folder: Path) -> Iterator[Log]:
    """TensorBoard's event files in ``folder``, where TensorBoard is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield lambda name, value, step: None
        return
    if distributed.rank():
        yield lambda name, value, step: None
        return
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        yield writer.add_scalar


def clean(folder: Path) -> None:
    """Remove what only going on with a training needed."""
    for path in (*folder.glob("state.safetensors"), *folder.glob("best-*.safetensors")):
        path.unlink()


def describe(job: Job) -> str:
    """A job in a few words."""
    if "seed" not in job:
        return "what each model costs"
    rate = f", lr {job['config']['lr']:g}" if job.get("trial") else ""
    return f"{job['mixers']}, seed {job['seed']}{rate}"


def job_key(mixers: str, seed: int) -> str:
    """A job's identity within its run."""
    return json.dumps([mixers, seed])
