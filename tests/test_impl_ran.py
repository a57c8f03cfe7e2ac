"""The measured implementation is the one that runs: rows record it, and ``explain`` agrees."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
import torch

import flashmix
from bench_helpers import make_row
from flashmix._core.machine import cpu_name
from flashmix.bench import BenchmarkCase, read_rows, read_run
from flashmix.bench.baselines import BASELINES, PEERS, implementations
from flashmix.bench.case import COPY
from flashmix.bench.dispatch import machine_of
from flashmix.bench.suites.grid import declared
from flashmix.bench.worker import measure
from flashmix.errors import ImplementationError
from flashmix.ops import OPERATORS
from flashmix.ops._triton import availability
from flashmix.ops.dispatch import Signature, tables
from flashmix.report.sections.about import implementation_section

ROOT = Path(__file__).parent.parent
README_RUNS = re.findall(r"<!-- results: (\S+) -->", (ROOT / "README.md").read_text())
SETTINGS = {"min_samples": 1, "max_samples": 1, "seconds_per_case": 0, "max_seconds_per_case": 0}


def case(mixer, impl="auto", direction="forward", **fields):
    sizes = {"batch": 2, "seq_len": 24, "dim": 16, "num_heads": 2}
    return BenchmarkCase(
        suite="quick", mixer=mixer, impl=impl, direction=direction, **{**sizes, **fields}
    )


@pytest.fixture
def ran(monkeypatch):
    """What runs, by op: filled by the implementations themselves."""
    found = {}

    def watched(op, one):
        def run(*arguments):
            found.setdefault(op, set()).add(one.name)
            return original(*arguments)

        original = one.run
        return run

    with contextlib.ExitStack() as stack:
        for op, operator in OPERATORS.items():
            for one in operator.implementations:
                stack.callback(object.__setattr__, one, "run", one.run)
                object.__setattr__(one, "run", watched(op, one))
        yield found


def measured(one, while_timed=lambda: None):
    """The row of a case; ``while_timed`` is called before its timing starts."""
    results, timed = [], []

    def emit(event, **fields):
        if event == "doing" and fields["what"] in ("timing", "training") and not timed:
            timed.append(True)
            while_timed()
        if event == "done":
            results.append(fields["result"])

    measure([one], SETTINGS, emit)
    (result,) = results
    assert result["status"] == "ok", result
    return {**one.as_dict(), "label": one.label, **result}


def of_ops():
    knobs = {
        "fnet": {},
        "fourier": {},
        "spectral": {"modes": 5},
        "local_attention": {"window": 6},
        "topk_attention": {"topk": 4},
        "block_topk_attention": {"topk": 8},
    }
    for op, options in knobs.items():
        one = case(op, subject="op", op=op, **options)
        yield from (
            case(op, name, subject="op", op=op, **options)
            for name in ("auto", *implementations(one))
        )


SUBJECTS = [
    *(case(text) for text in ("attention", *declared("quick"))),
    case("attention", "naive"),
    case("attention", "sdpa"),
    case("spectral+local", subject="block"),
    case("fnet,attention", subject="encoder"),
    *of_ops(),
]
DIRECTIONS = ["forward", "backward", "forward_backward"]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("one", SUBJECTS, ids=lambda one: f"{one.subject}-{one.mixer}-{one.impl}")
def test_a_row_records_the_implementations_that_ran_in_what_was_timed(one, direction, ran):
    if one.subject == "encoder" and direction == "backward":
        pytest.skip("whole models are timed forward and in steps")
    one = BenchmarkCase.from_dict({**one.as_dict(), "direction": direction})
    row = measured(one, ran.clear)
    assert {op: set(names) for op, names in row["impl_ran"].items()} == ran
    asked = OPERATORS[one.op].aliases.get(one.impl, one.impl) if one.op else one.impl
    if one.op and one.impl != "auto":
        assert row["impl_ran"] == {one.op: [asked]}
    assert not disagreements({"machine": {"cpu": cpu_name()}}, [row])


CPU = torch.device("cpu")


def test_a_training_records_the_implementations_that_ran(ran):
    pytest.importorskip("sklearn")
    row = measured(case("fnet,local(window=4)", direction="train", seconds=0.01), ran.clear)
    assert {op: set(names) for op, names in row["impl_ran"].items()} == ran
    assert set(ran) == {"fnet", "local_attention"}


BASELINES = [
    case(COPY, "torch"),
    *(
        case(op, name, subject="op", op=op, window=6, topk=4, modes=5)
        for op, names in BASELINES.items()
        for name in names
        if name not in PEERS and not name.startswith("flex")
    ),
]


@pytest.mark.parametrize("one", BASELINES, ids=lambda one: f"{one.op}-{one.impl}")
def test_what_is_not_flashmix_ran_no_implementation_of_it(one):
    row = measured(one)
    assert row["impl_ran"] is None
    assert row["choices"] == []


def disagreements(run, rows):
    """Rows of ``auto`` whose implementation is not what ``explain`` gives today, told."""
    found = []
    for row in rows:
        if row["status"] != "ok" or row["impl"] != "auto":
            continue
        for one in row["choices"]:
            axes = OPERATORS[one["op"]].axes.count(",") + 1
            told = flashmix.explain(
                one["op"],
                one["shape"] or [1] * axes,
                getattr(torch, one["dtype"]),
                row["device"],
                machine=machine_of(run),
                direction=one.get("direction", "forward"),
                **{name: value for name, value in one["options"].items() if name != "gradient"},
            )
            if told.impl != one["impl"]:
                found.append(f"{row['label']}, {row['direction']}: ran {one}; {told}")
        ran = {}
        for one in row["choices"]:
            ran.setdefault(one["op"], []).append(one["impl"])
        assert {op: list(dict.fromkeys(names)) for op, names in ran.items()} == row["impl_ran"]
    return found


def test_a_row_of_another_implementation_than_todays_is_found():
    row = measured(case("fnet"))
    run = {"machine": {"cpu": "a processor"}}
    assert not disagreements(run, [row])
    (choice,) = row["choices"]
    other = next(n for n in implementations(case("fnet", op="fnet")) if n != choice["impl"])
    doctored = {**row, "impl_ran": {"fnet": [other]}, "choices": [{**choice, "impl": other}]}
    (told,) = disagreements(run, [doctored])
    assert "fnet: auto runs" in told


def recorded(folder):
    """Whether every row of a committed run that was measured says what ran."""
    return all("impl_ran" in row for row in read_rows(folder) if row["status"] == "ok")


@pytest.mark.skipif(availability.INTERPRETED, reason="the interpreter takes other dtypes than GPUs")
@pytest.mark.parametrize("name", README_RUNS)
def test_the_readmes_rows_ran_what_explain_gives_today(name):
    folder = ROOT / name
    assert recorded(folder), "measured by a version that did not record what ran"
    assert not disagreements(read_run(folder), read_rows(folder))


TABLE = [
    (machine, op, dtype, direction, entry)
    for machine, held in json.loads(tables.SHIPPED.read_text())["machines"].items()
    for op, measured in held["ops"].items()
    for dtype, directions in measured["times"].items()
    for direction, entries in directions.items()
    for entry in entries
]


@pytest.mark.skipif(availability.INTERPRETED, reason="the interpreter takes other dtypes than GPUs")
def test_a_gpu_that_is_not_here_can_be_asked_for_by_name():
    unlike = 0
    for machine, op, dtype, direction, entry in TABLE:
        sizes = dict(entry["sizes"])
        shape = [sizes.pop(name) for name in ("batch", "seq_len", "dim")]
        if heads := sizes.pop("num_heads", None):
            shape = [shape[0], heads, shape[1], shape[2] // heads]
        kind = getattr(torch, dtype)
        told = flashmix.explain(
            op, shape, kind, "cuda", machine=machine, direction=direction, **sizes
        )
        times = {
            name: time
            for name, time in entry["ms"].items()
            if told.alternatives.get(name, "can run").partition(":")[0] == "can run"
        }
        least = min(times.values())
        assert times[told.impl][1] <= least[2], told
        assert machine in told.reason
        unlike += told.impl != flashmix.explain(op, shape, device="cpu", **sizes).impl
    assert unlike > 0


def test_nothing_is_missing_on_a_machine_that_is_not_here(monkeypatch):
    """What this machine lacks says nothing of the one that is asked for."""
    for one in OPERATORS["fnet"].implementations:
        if one.name != "reference":
            monkeypatch.setitem(one.__dict__, "missing", lambda: "needs what is not here")
    tables.forget()
    signature = Signature((2, 8, 4), torch.float32, CPU)
    assert OPERATORS["fnet"].select("auto", signature).impl == "reference"
    with pytest.raises(ImplementationError, match="needs what is not here"):
        OPERATORS["fnet"].select("cpu", signature)
    assert flashmix.explain("fnet", (2, 8, 4), machine="a processor").impl == "cpu"


# The report


def row(label, n, ran, **fields):
    return make_row(label, n, impl_ran=ran, choices=[], **fields)


def test_the_report_names_what_auto_ran_and_where_rows_differ():
    rows = [
        row("copy", 16, None),
        row("attention (naive)", 16, {"attention": ["reference"]}),
        row("fnet", 16, {"fnet": ["dense"]}),
        row("fnet", 32, {"fnet": ["dense"]}),
        row("fnet", 1024, {"fnet": ["triton"]}),
        row("spectral+local", 16, {"spectral": ["cpu"], "local_attention": ["torch"]}),
    ]
    table = implementation_section(rows).table
    assert [list(line) for line in table.rows] == [
        ["fnet", "forward", "fnet", "dense (N = 16, 32); triton (N = 1,024)"],
        ["spectral+local", "forward", "spectral", "cpu"],
        ["spectral+local", "forward", "local_attention", "torch"],
    ]


def test_the_report_names_what_ran_other_than_asked():
    (line,) = implementation_section([row("fnet", 16, {"fnet": ["cpu"]}, impl="torch")]).table.rows
    assert line[3] == "cpu"
    assert not implementation_section([row("fnet", 16, {"fnet": ["cpu"]}, impl="cpu")]).table.rows


def test_the_report_says_where_rows_do_not_tell():
    old = make_row("fnet", 16)
    assert "Not recorded" in implementation_section([old]).text[0]
    mixed = implementation_section([old, row("fnet", 32, {"fnet": ["cpu"]})])
    assert "1 rows have no record" in mixed.text[1]
