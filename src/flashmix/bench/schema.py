"""What the files of a run hold, field by field: what reads them finds what it expects, or says so.

A check takes a value and its name, and returns what is wrong with it, or None.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any, get_args

from flashmix.bench.baselines import BASELINES
from flashmix.bench.case import Direction, Lengths, Mode, Subject
from flashmix.bench.profiling.engines import OTHER_ENGINES
from flashmix.bench.profiling.parts import PARTS

Check = Callable[[Any, str], str | None]

TRAININGS = ("finetune", "pretrain")
"""The suites whose rows are trainings; those of all others are measured cases."""
STATUSES = ("ok", "oom", "timeout", "crashed", "error", "diverged")
MOST = 2**53


def kind(words: str, holds: Callable[[Any], bool]) -> Check:
    """Values that a test finds right, which are ``words``."""

    def check(value: Any, name: str) -> str | None:
        return None if holds(value) else f"{name} must be {words}, got {reprlib.repr(value)}"

    return check


def choice(*values: str) -> Check:
    """One of some words."""
    return kind(f"one of {', '.join(values)}", lambda x: isinstance(x, str) and x in values)


def maybe(check: Check) -> Check:
    """What ``check`` takes, or null."""
    return lambda value, name: None if value is None else check(value, name)


def many(check: Check, least: int = 0, most: float = float("inf")) -> Check:
    """A list of what ``check`` takes."""
    span = f"{least}" if least == most else f"at least {least}"

    def every(value: Any, name: str) -> str | None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            return f"{name} must be a list of {span} values, got {reprlib.repr(value)}"
        faults = (check(one, f"{name}[{i}]") for i, one in enumerate(value))
        return next((fault for fault in faults if fault), None)

    return every


def record(needed: Mapping[str, Check], others: Mapping[str, Check] | None = None) -> Check:
    """An object with the ``needed`` fields; of the ``others`` those that it has are checked too."""
    known = {**needed, **(others or {})}

    def fields(value: Any, name: str) -> str | None:
        if not isinstance(value, dict):
            return f"{name} must be an object, got {reprlib.repr(value)}"
        at = f"{name}." if name else ""
        for field in needed:
            if field not in value:
                return f"{at}{field} is missing"
        found = (
            check(value[field], at + field) for field, check in known.items() if field in value
        )
        return next((fault for fault in found if fault), None)

    return fields


def named(check: Check) -> Check:
    """An object whose values ``check`` takes, by whatever name."""

    def values(value: Any, name: str) -> str | None:
        if not isinstance(value, dict):
            return f"{name} must be an object, got {reprlib.repr(value)}"
        faults = (check(one, f"{name}[{key!r}]") for key, one in value.items())
        return next((fault for fault in faults if fault), None)

    return values


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(least: int) -> Check:
    words = f"a whole number from {least} to 2^53"
    return kind(words, lambda x: _number(x) and isinstance(x, int) and least <= x <= MOST)


TEXT = kind("text", lambda x: isinstance(x, str))
FLAG = kind("true or false", lambda x: isinstance(x, bool))
ANY_WHOLE, WHOLE, COUNT = _whole(-MOST), _whole(0), _whole(1)
NUMBER = kind("a number", _number)
SHARE = kind("a number from 0 to 1", lambda x: _number(x) and 0 <= x <= 1)
# Bounds within which no ratio, logarithm or extrapolated line leaves the range of a float.
POSITIVE = kind("a number from 1e-9 to 1e15", lambda x: _number(x) and 1e-9 <= x <= 1e15)
AMOUNT = kind(
    "0 or a number from 1e-9 to 1e15", lambda x: _number(x) and (x == 0 or 1e-9 <= x <= 1e15)
)

RAN = maybe(named(many(TEXT)))

CASE = record(
    {
        **dict.fromkeys(("suite", "mixer", "impl", "dtype", "device", "label"), TEXT),
        "direction": choice(*get_args(Direction)),
        **dict.fromkeys(("batch", "seq_len", "dim", "num_heads"), COUNT),
        "seed": ANY_WHOLE,
        "subject": choice(*get_args(Subject)),
        "autocast": maybe(TEXT),
        "checkpoint": FLAG,
        "op": maybe(choice(*BASELINES)),
        **dict.fromkeys(("window", "topk", "modes"), maybe(COUNT)),
        "seconds": maybe(POSITIVE),
        "status": choice(*STATUSES),
    },
    {
        "ranks": maybe(COUNT),
        "weak": FLAG,
        "graph": FLAG,
        "lengths": choice(*get_args(Lengths)),
        "model": maybe(TEXT),
        "unpad": FLAG,
        "mode": choice(*get_args(Mode)),
        "config": maybe(TEXT),
        "token_lengths": maybe(many(COUNT, 1)),
        "mixers": TEXT,
        "error": TEXT,
        "impl_ran": RAN,
    },
)
TIMED = record(
    {
        "samples_ms": many(POSITIVE, 1),
        **dict.fromkeys(("median_ms", "q1_ms", "q3_ms", "mean_ms"), POSITIVE),
        "std_ms": AMOUNT,
        "noisy": FLAG,
        "params": WHOLE,
    },
    {
        "output_shape": many(WHOLE),
        "peak_mb": maybe(AMOUNT),
        "rss_mb": AMOUNT,
        "floor_ms": maybe(POSITIVE),
        "host_ms": AMOUNT,
        "relative_error": maybe(NUMBER),
        "sent_bytes": WHOLE,
        "derived_bytes": maybe(WHOLE),
        "tokens_per_s": POSITIVE,
        "parts": record(dict.fromkeys(PARTS, SHARE)),
    },
)
SHAPE = record({"output_shape": many(WHOLE)})
PEAK = record({"peak_mb": AMOUNT})
SENT = record({"derived_bytes": maybe(WHOLE)})
AMONG_RANKS = record({"ranks": maybe(COUNT), "weak": FLAG})
MODEL = record(
    {
        "model": TEXT,
        "mixers": TEXT,
        "lengths": choice(*get_args(Lengths)),
        "unpad": FLAG,
        "mode": choice(*get_args(Mode)),
    }
)
MODEL_TIMED = record({"tokens_per_s": POSITIVE})
PROFILE = record({"config": TEXT})
OP = record({"op": choice(*BASELINES)})
BLOCK_OP = record({"topk": COUNT})
DIGITS = record({"accuracy": SHARE, "steps": WHOLE, "train_seconds": POSITIVE, "params": WHOLE})
PROPERTIES = record({"properties": named(lambda value, name: None)})
FOURIER_PROPERTIES = record(
    {
        "properties": record(
            {
                "lowest_tenth_energy_share_by_head": many(NUMBER),
                "lowest_tenth_of_frequencies": NUMBER,
                "input": TEXT,
            }
        )
    }
)
ERRORS = ("recall", "weight_kept", "error_against_exact", "error_against_dense")
INPUTS = named(record(dict.fromkeys(ERRORS, NUMBER)))
SELECTION_PROPERTIES = record({"properties": record({"kept_share": NUMBER, "inputs": INPUTS})})

TRAINING = record(
    {"task": TEXT, "model": TEXT, "mixers": TEXT, "seed": ANY_WHOLE, "status": choice(*STATUSES)},
    {
        **dict.fromkeys(("suite", "error", "device"), TEXT),
        "seq_len": COUNT,
        "impl_ran": RAN,
        "unpad": FLAG,
    },
)
EPOCHS = record({"epoch": NUMBER, "train_loss": NUMBER, "val_loss": NUMBER, "val_accuracy": SHARE})
INFERENCE = record({"seq_len": COUNT, "sequences_per_s": POSITIVE, "peak_memory_mb": AMOUNT})
BASELINE = record({"step_ms": POSITIVE, "infer_ms": POSITIVE, "train_peak_memory_mb": AMOUNT})
LEARNT: dict[str, Check] = {"val_accuracy": SHARE, "params": WHOLE, "history": many(EPOCHS, 1)}
COSTS: dict[str, Check] = {
    **dict.fromkeys(("train_seconds", "step_ms", "infer_ms"), maybe(POSITIVE)),
    "train_seconds_by": TEXT,
    "peak_memory_mb": maybe(AMOUNT),
    "inference": many(INFERENCE),
    "baselines": named(BASELINE),
}
TESTED = {"test_accuracy": SHARE, "f1": SHARE, "confusion": many(many(WHOLE), 1)}
TRAINED = {
    "finetune": record({**LEARNT, **TESTED}, COSTS),
    "pretrain": record({**LEARNT, "val_loss": NUMBER, "steps": WHOLE}, COSTS),
}
TRIAL = record(
    {"mixers": TEXT, "lr": POSITIVE, "status": choice(*STATUSES)},
    {"error": TEXT, "seed": ANY_WHOLE},
)
SCORED = record({"score": NUMBER})
TRIED: dict[str | None, Check] = {
    "finetune": record({"score": NUMBER, "val_accuracy": SHARE}),
    "pretrain": record({"score": NUMBER, "val_loss": NUMBER}),
}

CONFIG: dict[str, Check] = {
    "lr": POSITIVE,
    "warmup": SHARE,
    "batch_size": COUNT,
    "seq_len": COUNT,
    "precision": TEXT,
}
CONFIGS = {
    "finetune": {**CONFIG, "task": TEXT, "model": TEXT, "epochs": COUNT, "val_share": SHARE},
    "pretrain": {**CONFIG, "arch": TEXT, "corpus": TEXT},
}
MACHINE = record(
    {},
    {
        **dict.fromkeys(
            ("cpu", "gpu", "gpu_capability", "cpu_capability", "system", "python", "flashmix"), TEXT
        ),
        **dict.fromkeys(("commit", "cuda"), maybe(TEXT)),
        "cores": maybe(COUNT),
        "gpu_memory_gb": AMOUNT,
        "packages": named(TEXT),
    },
)
CEILINGS = record({"copy_gb_per_s": POSITIVE, "matmul_gflop_per_s": POSITIVE, "matmul_dtype": TEXT})
RUN = record(
    {"suite": TEXT},
    {
        "command": TEXT,
        "notes": many(TEXT),
        "grid": named(lambda value, name: None),
        "threads": COUNT,
        "seed": ANY_WHOLE,
        "time_limit_s": POSITIVE,
        "processes": COUNT,
        "started": maybe(TEXT),
        "finished": maybe(TEXT),
        "machine": MACHINE,
        "ceilings": maybe(CEILINGS),
        "parts": many(many(TEXT)),
    },
)
PAIRS = many(
    record(
        {
            "models": many(TEXT, 2, 2),
            "both_right": WHOLE,
            "neither": WHOLE,
            "only": named(WHOLE),
            "examples": many(record({"right": TEXT, "index": WHOLE, "label": WHOLE, "text": TEXT})),
        }
    )
)
MEASURED_COSTS = named(record({"step_ms": POSITIVE, "train_peak_memory_mb": AMOUNT}))
EXAMPLES = record({"classes": many(TEXT), "pairs": PAIRS})


FINGERPRINT = record({"bytes": WHOLE, "sha256": TEXT})


def run_fault(run: Any) -> str | None:
    """What is wrong with the content of run.json."""
    if (fault := RUN(run, "")) or run["suite"] not in TRAININGS:
        return fault
    experiment = record(
        {"mixers": many(TEXT, 1), "config": record(CONFIGS[run["suite"]])},
        {"rates": many(POSITIVE), "seeds": many(ANY_WHOLE)},
    )
    return record({"experiment": experiment}, {"data": named(FINGERPRINT)})(run, "")


def case_fault(row: Any) -> str | None:
    """What is wrong with the row of a measured case."""
    if fault := CASE(row, ""):
        return fault
    checks = []
    if row["suite"] == "parallel":
        checks.append(AMONG_RANKS)
    if row["suite"] == "kernels" or row["subject"] == "op":
        checks.append(OP)
    if row["suite"] == "model" or row["subject"] == "model":
        checks.append(MODEL)
    if row["suite"] == "profile":
        checks.append(PROFILE)
    if row["op"] == "block_topk_attention":
        checks.append(BLOCK_OP)
    if row["status"] == "ok":
        checks += _measured(row)
    return next((fault for check in checks if (fault := check(row, ""))), None)


def _measured(row: Mapping[str, Any]) -> list[Check]:
    """What holds of a row's measurements."""
    if row["direction"] == "train":
        return [DIGITS]
    if row["direction"] == "properties":
        if row["op"] is not None:
            return [SELECTION_PROPERTIES, BLOCK_OP]
        fourier = row["suite"] == "fourier" or row["mixer"].partition("(")[0] == "fourier"
        return [FOURIER_PROPERTIES if fourier else PROPERTIES]
    checks = [TIMED]
    graph = row["suite"] == "parallel" and row.get("graph")  # of a CUDA graph time alone
    if not graph and row.get("mode") not in OTHER_ENGINES:
        checks.append(PEAK)
    if row["suite"] == "fourier":
        checks.append(SHAPE)
    if row["subject"] == "model":
        checks.append(MODEL_TIMED)
    if "sent_bytes" in row:
        checks.append(SENT)
    return checks


def training_fault(row: Any, suite: str) -> str | None:
    """What is wrong with the row of a training, of suite "finetune" or "pretrain"."""
    if (fault := TRAINING(row, "")) or row["status"] != "ok":
        return fault
    return TRAINED[suite](row, "")


def trial_fault(row: Any, suite: str | None = None) -> str | None:
    """What is wrong with a row of search.jsonl, of a run of ``suite`` where that is known."""
    if (fault := TRIAL(row, "")) or row["status"] != "ok":
        return fault
    return TRIED.get(suite, SCORED)(row, "")


def examples_fault(content: Any) -> str | None:
    """What is wrong with the content of examples.json."""
    if fault := EXAMPLES(content, ""):
        return fault
    for i, pair in enumerate(content["pairs"]):
        at, models = f"pairs[{i}]", set(pair["models"])
        if len(models) < 2 or not models <= set(pair["only"]):
            return f"{at}.models must be two, with a count of each in {at}.only"
        for j, example in enumerate(pair["examples"]):
            if example["right"] not in models:
                return f"{at}.examples[{j}].right must be one of the two models"
            if example["label"] >= len(content["classes"]):
                return f"{at}.examples[{j}].label must be the number of a class"
    return None


def costs_fault(content: Any) -> str | None:
    """What is wrong with the content of costs.json."""
    return MEASURED_COSTS(content, "costs")
