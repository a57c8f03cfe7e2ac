"""Runs an experiment: what the models cost first, then every pattern with every seed.

Each training is a job in a worker process; its row is stored as it ends, and its state all along,
so a killed run resumes where it was. Under torchrun the processes do the jobs together instead.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashmix.bench import machine
from flashmix.bench.reading import read_json
from flashmix.bench.runner import Listener
from flashmix.bench.schema import costs_fault
from flashmix.bench.store import RUN_FILE, Row, RunFolder, read_rows, read_run
from flashmix.bench.training.costs import cost_fields
from flashmix.bench.training.examples import write_examples
from flashmix.bench.training.jobs import MODEL_FOLDER, RESULTS, Job, clean, job_key
from flashmix.bench.training.running import Results, execute_with_others, in_workers, together
from flashmix.bench.training.search import choose_rates
from flashmix.bench.training.sources import name_of, slug, sources_of, tokenizer_of
from flashmix.errors import ArgumentError, FlashmixError
from flashmix.tasks import distributed
from flashmix.tasks.encoders import VANILLA
from flashmix.tasks.finetuning import FinetuneConfig
from flashmix.tasks.pretraining import CORPORA, PretrainConfig
from flashmix.tasks.sequence import check_processes
from flashmix.tasks.text import fingerprint

COSTS_FILE = "costs.json"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A fine-tuning or pretraining run over mixers and seeds.

    Attributes:
        config: what all its models share.
        mixers: a pattern over layers for each model.
        seeds: each model is trained once with each.
        lengths: of inputs for inference times, in tokens; none measures no costs.
        seconds: pretraining only: give each model as many steps as it does in this time, by its
            step time measured alone, instead of ``config.steps``.
        rates: peak learning rates; of several, each model takes the one that is best on validation,
            with the first seed, instead of ``config.lr``.
        jobs: trainings at a time. With more than one they share the device, so training times are
            not those of the clock but steps times the step time measured alone.
    """

    config: FinetuneConfig | PretrainConfig
    mixers: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    lengths: tuple[int, ...] = (128, 256, 512)
    seconds: float | None = None
    rates: tuple[float, ...] = ()
    jobs: int = 1

    def __post_init__(self) -> None:
        for name in ("mixers", "seeds"):
            if not getattr(self, name):
                raise ArgumentError(f"{name} must be at least one")
        for name in ("mixers", "seeds", "rates"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ArgumentError(f"{name} must hold none twice, got {values}")
        for rate in self.rates:
            dataclasses.replace(self.config, lr=rate)  # it checks the rate
        if self.unpad and all(mixers in VANILLA for mixers in self.mixers):
            raise ArgumentError(
                "unpad would remove nothing: vanilla models keep their padding; leave it out"
            )
        if self.jobs < 1:
            raise ArgumentError(f"jobs must be at least 1, got {self.jobs}")
        if self.seconds is not None and not (self.kind == "pretrain" and self.seconds > 0):
            raise ArgumentError("seconds must be above 0, and are for pretraining alone")
        if self.config.device == "cuda" and not torch.cuda.is_available():
            raise ArgumentError("device 'cuda' was asked for, but PyTorch sees no GPU; use 'cpu'")

    @property
    def unpad(self) -> bool:
        """Whether padding is removed before the first layer, of all models but vanilla ones."""
        return isinstance(self.config, FinetuneConfig) and self.config.unpad

    @property
    def kind(self) -> str:
        """What is run, "finetune" or "pretrain"."""
        return "finetune" if isinstance(self.config, FinetuneConfig) else "pretrain"

    def as_dict(self) -> dict[str, Any]:
        """The experiment as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, kind: str, fields: dict[str, Any]) -> Experiment:
        """The experiment of a run's ``run.json``."""
        config = (FinetuneConfig if kind == "finetune" else PretrainConfig)(**fields["config"])
        named = ("mixers", "seeds", "lengths", "rates")
        lists = {name: tuple(fields[name]) for name in named if name in fields}
        return cls(**{**fields, **lists, "config": config})


def run_experiment(
    experiment: Experiment | None,
    out: Path,
    *,
    kind: str,
    resume: bool = False,
    threads: int | None = None,
    listener: Listener = lambda progress: None,
) -> Path:
    """Run an experiment into the folder ``out`` and return that folder.

    Args:
        experiment: what to run; read from the folder when resuming.
        out: the run's folder; must hold no run unless ``resume``.
        kind: "finetune" or "pretrain".
        resume: go on with the run in ``out`` and repeat nothing that is finished. Trainings that
            ended in an error are tried again, and what such an error left undecided is decided.
        threads: of PyTorch in each process; PyTorch's own choice when None.
        listener: hears progress.

    Raises:
        ArgumentError: bad arguments, or a folder that does not fit.
        FlashmixError: the folder is in use or cannot be written.
        KeyboardInterrupt: interrupted; what is finished is kept, and the state of what is not.
    """
    if resume:
        run = read_run(out)
        if run["suite"] != kind:
            raise ArgumentError(f"{out} holds a run of {run['suite']!r}, not of {kind!r}")
        experiment = Experiment.from_dict(kind, run["experiment"])
        threads = run["threads"]
    elif experiment is None:
        raise ArgumentError("give an experiment, or resume one")
    elif (out / RUN_FILE).exists() or read_rows(out):
        raise ArgumentError(f"{out} already holds a run; pass --resume {out} to go on with it")
    config = experiment.config
    if isinstance(config, FinetuneConfig):
        check_processes(config.sequence_parallel)
    threads = threads or max(1, torch.get_num_threads() // experiment.jobs)
    with distributed.group(config.device):
        if distributed.rank():
            _follow(experiment, out, threads)
            return out
        with RunFolder.hold(out, kind) as folder:
            if not resume:
                run = _describe(experiment, threads)
                folder.write_run(run)
            elif not run["finished"]:
                machine.check_same(run, config.device, out, processes=distributed.world())
                _check_data(run, config, out)
            complete = _lead(experiment, folder, threads, listener)
            run["finished"] = _now() if complete else None
            folder.write_run(run)
    return out


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _describe(experiment: Experiment, threads: int) -> dict[str, Any]:
    return {
        "suite": experiment.kind,
        "command": shlex.join(["flashmix", *sys.argv[1:]]),
        "experiment": experiment.as_dict(),
        "data": _fingerprints(experiment.config),
        "processes": distributed.world(),
        "threads": threads,
        "started": _now(),
        "finished": None,
        "machine": machine.describe(experiment.config.device),
    }


def _fingerprints(config: FinetuneConfig | PretrainConfig) -> dict[str, Any]:
    """That of each split that is read; of digits, which are part of the package's code, none."""
    data = Path(config.data) if config.data else None
    if isinstance(config, PretrainConfig):
        task, split = CORPORA[config.corpus]
        return {split: fingerprint(task, split, data)}
    splits = () if config.task == "digits" else ("train", "test")
    return {split: fingerprint(config.task, split, data) for split in splits}


def _check_data(run: dict[str, Any], config: FinetuneConfig | PretrainConfig, out: Path) -> None:
    """Raise ArgumentError where the data are no longer those that the run was begun with."""
    then: dict[str, Any] = run.get("data", {})  # runs of earlier versions say nothing of it
    if not then:
        return
    now = _fingerprints(config)
    changed = [
        f"the {split} split had {then[split]['bytes']} bytes (sha256 {then[split]['sha256'][:12]}),"
        f" here {now[split]['bytes']} ({now[split]['sha256'][:12]})"
        for split in now
        if split in then and then[split] != now[split]
    ]
    if changed:
        raise ArgumentError(
            f"{out} was begun with other data: {'; '.join(changed)}. Put the files back, or start "
            "a new run"
        )


def _lead(experiment: Experiment, folder: RunFolder, threads: int, listener: Listener) -> bool:
    """Do what is left of an experiment; whether all its trainings have a result then."""
    costs = _costs(experiment, folder, threads, listener)
    jobs = _jobs(experiment, folder.path, threads, costs)
    finished = {
        job_key(row["mixers"], row["seed"])
        for row in read_rows(folder.path)
        if row["status"] in RESULTS
    }
    todo = [job for job in jobs if job_key(job["mixers"], job["seed"]) not in finished]

    def do(some: list[Job]) -> Results:
        if distributed.launched():
            return together(some, listener)
        return in_workers(some, listener, at_once=experiment.jobs)

    for job in jobs:
        if job_key(job["mixers"], job["seed"]) in finished:
            clean(Path(job["folder"]))  # a killed run may have left it
    if len(experiment.rates) > 1 and todo:
        first = [job for job in jobs if job["seed"] == experiment.seeds[0]]
        rates = choose_rates(first, experiment.rates, folder, do)
        for job in jobs:
            job["config"]["lr"] = rates.get(job["mixers"])
        todo = [job for job in todo if job["mixers"] in rates]  # the others' rates are undecided
    baselines = {label: costs[label] for label in VANILLA if label in costs}
    for job, result in do(todo):
        row = _row(experiment, folder.path, job, result, costs.get(job["mixers"], {}), baselines)
        if distributed.launched():
            row["processes"] = distributed.world()
            row["sequence_parallel"] = job["config"].get("sequence_parallel", 1)
        folder.append(row)
        if result["status"] in RESULTS:
            finished.add(job_key(job["mixers"], job["seed"]))
            clean(Path(job["folder"]))
    distributed.from_first(None)  # the others need wait for no more
    if isinstance(experiment.config, FinetuneConfig) and not distributed.launched():
        with folder.writing():
            write_examples(experiment.config, folder.path)
    return len(finished) == len(jobs)


def _follow(experiment: Experiment, out: Path, threads: int) -> None:
    """Another process than the first, under torchrun: do each job that the first one names."""
    while (job := distributed.from_first(None)) is not None:
        torch.set_num_threads(threads)
        execute_with_others(job, lambda event, **fields: None)


def _jobs(experiment: Experiment, out: Path, threads: int, costs: dict[str, Any]) -> list[Job]:
    config = dataclasses.asdict(experiment.config)
    jobs = []
    for seed, mixers in itertools.product(experiment.seeds, experiment.mixers):
        job: Job = {
            "kind": experiment.kind,
            "config": dict(config),
            "mixers": mixers,
            "seed": seed,
            "folder": str(out / slug(mixers) / f"seed-{seed}"),
            "threads": threads,
        }
        if isinstance(experiment.config, FinetuneConfig):
            job["source"] = sources_of(experiment.config, [mixers], seed)[mixers]
            job["tokenizer"] = tokenizer_of(experiment.config, job["source"])
        elif experiment.seconds is not None:
            step_ms = costs[mixers]["step_ms"]
            job["config"]["steps"] = max(1, round(1e3 * experiment.seconds / step_ms))
        jobs.append(job)
    return jobs


def _costs(
    experiment: Experiment, folder: RunFolder, threads: int, listener: Listener
) -> dict[str, dict[str, Any]]:
    """What each model costs, by label: measured once, alone, before the trainings."""
    path = folder.path / COSTS_FILE
    held: dict[str, dict[str, Any]] | None = read_json(path, costs_fault)
    if held is not None:
        return held
    needed = experiment.seconds is not None
    if not needed and (not experiment.lengths or distributed.launched()):
        return {}
    job: Job = {
        "kind": f"{experiment.kind} costs",
        "config": dataclasses.asdict(experiment.config),
        "threads": threads,
    }
    if isinstance(experiment.config, FinetuneConfig):
        labels = [*experiment.mixers, *VANILLA]
        job["sources"] = sources_of(experiment.config, labels, experiment.seeds[0])
        job["lengths"] = list(experiment.lengths)
        job["tokenizer"] = tokenizer_of(experiment.config, job["sources"][experiment.mixers[0]])
    else:
        job["mixers"] = list(experiment.mixers)
    _, result = next(in_workers([job], listener))
    if result.pop("status", "ok") != "ok":
        raise FlashmixError(f"measuring what the models cost failed: {result['error']}")
    folder.write(COSTS_FILE, json.dumps(result, indent=1) + "\n")
    return result


def _row(
    experiment: Experiment,
    out: Path,
    job: Job,
    result: dict[str, Any],
    costs: dict[str, Any],
    baselines: dict[str, Any],
) -> Row:
    config = job["config"]
    shared = experiment.config
    row: Row = {
        "suite": experiment.kind,
        "task": shared.task if isinstance(shared, FinetuneConfig) else shared.corpus,
        "model": name_of(shared) if isinstance(shared, FinetuneConfig) else shared.arch,
        "mixers": job["mixers"],
        "seed": job["seed"],
        **result,
        **{
            name: config[name]
            for name in ("device", "precision", "lr", "batch_size", "seq_len", "compile")
        },
    }
    if experiment.kind == "finetune":
        row["unpad"] = experiment.unpad and job["mixers"] not in VANILLA
    if experiment.kind == "pretrain":
        row["checkpoint"] = str(Path(job["folder"]).relative_to(out) / MODEL_FOLDER)
    if result["status"] == "ok":
        row |= cost_fields(result, costs, baselines, shared=experiment.jobs > 1)
    return row
