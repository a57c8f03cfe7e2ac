"""Merge runs of ``flashmix finetune`` or ``pretrain`` that trained other patterns of one study.

    python benchmarks/merge_trainings.py OUT RUN RUN... [--tokenizer NAME]

The runs must have the same settings and have run on machines of one kind; OUT gets their rows,
costs and searches, the patterns in the order of the runs, and a report. With each run's
``*/seed-*/test.safetensors`` in place, it also says which test examples only one model gets right.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from flashmix._files import write_whole
from flashmix.bench.store import RUN_FILE, SEARCH_FILE, RunFolder, read_rows, read_run
from flashmix.bench.training.examples import write_examples
from flashmix.bench.training.experiment import COSTS_FILE, Experiment
from flashmix.bench.training.jobs import LOGITS_FILE
from flashmix.errors import ArgumentError
from flashmix.report import write_report


def main() -> None:
    """Merge the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--tokenizer", help="where the runs' own model is not at hand any more")
    arguments = parser.parse_args()
    merge(arguments.runs, arguments.out, arguments.tokenizer)


def merge(folders: list[Path], out: Path, tokenizer: str | None = None) -> None:
    """Write the runs in ``folders`` as one into ``out``.

    Raises:
        ArgumentError: ``out`` holds a run, or the runs do not fit together.
    """
    if (out / RUN_FILE).exists():
        raise ArgumentError(f"{out} already holds a run")
    runs = [read_run(folder) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if _settings(run) != _settings(runs[0]):
            raise ArgumentError(f"{folder} and {folders[0]} differ in settings or machine")
    patterns = [one for run in runs for one in run["experiment"]["mixers"]]
    if len(set(patterns)) != len(patterns):
        raise ArgumentError(f"a pattern is in more than one run: {', '.join(patterns)}")
    experiment = {**runs[0]["experiment"], "mixers": patterns}
    costs: dict[str, Any] = {}
    with RunFolder.hold(out) as whole:
        for folder in folders:
            for row in read_rows(folder):
                whole.append(row)
            for row in read_rows(folder, SEARCH_FILE):
                whole.append(row, SEARCH_FILE)
            if (folder / COSTS_FILE).exists():
                costs = {**json.loads((folder / COSTS_FILE).read_text()), **costs}
            for logits in folder.glob(f"*/seed-*/{LOGITS_FILE}"):
                target = out / logits.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(logits, target)
        whole.write_run(
            {
                **runs[0],
                "command": "; ".join(run["command"] for run in runs),
                "finished": runs[-1]["finished"],
                "experiment": experiment,
                "parts": [run["experiment"]["mixers"] for run in runs],
            }
        )
    write_whole(out / COSTS_FILE, json.dumps(costs, indent=1) + "\n")
    if any(out.glob(f"*/seed-*/{LOGITS_FILE}")):
        config = Experiment.from_dict("finetune", experiment).config
        if tokenizer:
            config = type(config)(**{**vars(config), "tokenizer": tokenizer})
        write_examples(config, out)
    print(write_report(out))


def _settings(run: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in all runs: folders and patterns may differ."""
    own = {"mixers", "config"}
    config = {k: v for k, v in run["experiment"]["config"].items() if k not in ("model", "data")}
    machine = run["machine"]
    return {
        "suite": run["suite"],
        "config": config,
        "machine": {name: machine.get(name) for name in ("gpu", "cpu", "packages")},
        **{name: value for name, value in run["experiment"].items() if name not in own},
    }


if __name__ == "__main__":
    main()
