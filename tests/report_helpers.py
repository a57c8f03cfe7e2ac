"""What the tests of reports share: rows with known answers, and runs on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench_helpers import make_run, make_sweep, make_training
from flashmix.bench import SUITES, BenchmarkCase, Grid, build_suite
from flashmix.bench.stats import summary
from flashmix.bench.store import RESULTS_FILE, RUN_FILE
from flashmix.report.analysis.timings import FUSED, NAIVE

LENGTHS = (128, 256, 512, 1024)
HOSTILE = ["<script>alert(1)</script>", "a|b", "a\nb", "local(window=<b>)", "[bold]x[/bold]"]


def power_law(label, factor, exponent, lengths=LENGTHS, **fields):
    return make_sweep(label, {n: factor * n**exponent for n in lengths}, **fields)


def whole_run():
    return [
        *power_law("copy", 0.1, 1),
        *power_law(NAIVE, 0.02, 2),
        *power_law(FUSED, 0.01, 2),
        *power_law("fnet", 4, 1),
        *power_law("fnet", 8, 1, direction="forward_backward"),
        *power_law(FUSED, 0.03, 2, direction="forward_backward"),
        make_training("attention", 0.9),
        make_training("fnet", 0.8),
    ]


EXPERIMENT = {
    "mixers": ["attention", "fnet", "spectral,attention", "topk(topk=32)", "fourier"],
    "config": {
        "task": "imdb", "model": "bert-tiny", "lr": 1e-3, "warmup": 0.1, "batch_size": 32,
        "seq_len": 256, "precision": "float32", "epochs": 2, "val_share": 0.1,
    },
}  # fmt: skip
"""What run.json holds of a fine-tuning run beside what every run has."""


def make_finetuned(mixers: str, accuracy: float, seed: int = 0, **fields: Any) -> dict[str, Any]:
    """A row of a fine-tuned model, as ``flashmix finetune`` writes it."""
    epochs = (0.9 * accuracy, accuracy, 0.98 * accuracy)
    history = [
        {"epoch": i, "train_loss": 0.7 / i, "val_loss": 0.6 / i, "val_accuracy": a, "seconds": 9.0}
        for i, a in enumerate(epochs, 1)
    ]
    return {
        "suite": "finetune",
        "task": "imdb",
        "model": "models/bert-tiny",
        "mixers": mixers,
        "seed": seed,
        "val_accuracy": accuracy,
        "test_accuracy": accuracy - 0.01,
        "f1": accuracy - 0.02,
        "train_seconds": 27.0,
        "infer_ms": 3.0,
        "params": 4_400_000,
        "peak_memory_mb": 900.0,
        "status": "ok",
        "confusion": [[40, 10], [5, 45]],
        "device": "cpu",
        "best_epoch": 2,
        "history": history,
        **fields,
    }


def finetuned_run() -> list[dict[str, Any]]:
    """Attention, a faster and a slower mixer over two seeds, and one that failed."""
    rows = []
    for seed in (0, 1):
        rows += [
            make_finetuned("attention", 0.86 + 0.01 * seed, seed, infer_ms=4.0 + 0.1 * seed),
            make_finetuned("fnet", 0.80 + 0.01 * seed, seed, infer_ms=2.0, train_seconds=18.0),
            make_finetuned("spectral,attention", 0.90, seed, infer_ms=3.0),
            make_finetuned("topk(topk=32)", 0.84 + 0.01 * seed, seed, infer_ms=9.0),
        ]
    failed = {
        "task": "imdb",
        "model": "models/bert-tiny",
        "mixers": "fourier",
        "seed": 0,
        "status": "oom",
        "error": "it was oom",
    }
    return [*rows, failed]


def write_run(folder: Path, rows: list[dict[str, Any]], **run: Any) -> Path:
    """A run's folder with ``rows``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN_FILE).write_text(json.dumps(make_run(**run)))
    (folder / RESULTS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


STATUSES = ["ok", "oom", "timeout", "crashed", "error"]
PROPERTIES = {
    "fourier": {
        "lowest_tenth_energy_share_by_head": [0.1, 0.2],
        "lowest_tenth_of_frequencies": 0.1,
        "input": "white noise",
    },
    "spectral": {"unitary_energy_ratio": 1.0, "same_bits_twice": True},
    "block_topk_attention": {
        "kept_share": 0.0625,
        "queries": 1024,
        "inputs": {
            "white noise": {
                "recall": 0.07,
                "weight_kept": 0.08,
                "error_against_exact": 1.5,
                "error_against_dense": 3.0,
            }
        },
    },
}


def make_any(case: BenchmarkCase, status: str, time_ms: float, peak_mb: float):
    """A row of any case: timed, trained, or properties."""
    row = {**case.as_dict(), "label": case.label, "status": status}
    if case.subject == "model":
        row["mixers"] = case.mixer
    if status != "ok":
        return {**row, "error": f"it was {status}"}
    if case.direction == "properties":
        return {**row, "properties": PROPERTIES[case.mixer.partition("(")[0]]}
    if case.direction == "train":
        return {**row, "accuracy": 0.5, "steps": 9, "train_seconds": 5.0, "params": 7}
    shape = [case.batch, case.seq_len, case.dim]
    measured = {"peak_mb": peak_mb, "rss_mb": 300.0, "params": 7, "output_shape": shape}
    samples = [time_ms] * 3
    if case.subject == "model":
        measured["tokens_per_s"] = 1e3
    return {**row, "samples_ms": samples, **summary(samples), **measured, "floor_ms": 0.5}


CASES = {
    name: build_suite(name, Grid(remedies=True, seq_lens=(128, 512) if name == "quick" else None))
    for name in SUITES
}


def whole_suite(name: str) -> list[dict[str, Any]]:
    """A row for every case of a suite, all measured."""
    return [make_any(case, "ok", 1.0 + i % 7, 2.0) for i, case in enumerate(CASES[name].cases)]
