"""Comparing runs and advising on shapes, on rows whose answer is known."""

import math

import numpy as np
import pytest

from flashmix.bench.case import BenchmarkCase
from flashmix.bench.stats import summary
from flashmix.cli import main
from flashmix.errors import ArgumentError
from flashmix.report.analysis.advice import advise
from flashmix.report.analysis.compare import compare
from flashmix.report.sections.side_by_side import comparison_section


def row(ms, *, label="fnet", seq_len=256, status="ok", spread=0.01, seed=0, **fields):
    mixer, impl = {"fused": ("attention", "sdpa")}.get(label, (label, "auto"))
    fields = {"direction": "forward", "batch": 2, "dim": 64, "num_heads": 1, **fields}
    case = BenchmarkCase(suite="quick", mixer=mixer, impl=impl, seq_len=seq_len, **fields)
    found = {**case.as_dict(), "label": case.label, "status": status}
    if status == "ok":
        draws = np.random.default_rng(seed).normal(ms, spread * ms, 25).tolist()
        found |= {"samples_ms": draws, **summary(draws), "peak_mb": ms, "params": 0}
    return found


def test_a_planted_slowdown_is_found_and_a_null_is_not():
    before = [row(10, seq_len=n, seed=n) for n in (128, 256, 512)]
    after = [
        row(10, seq_len=128, seed=1),
        row(11, seq_len=256, seed=2),
        row(8, seq_len=512, seed=3),
    ]
    found = compare(before, after)
    assert [change.before["seq_len"] for change in found.significant] == [256, 512]
    assert [change.before["seq_len"] for change in found.slower_than(0.05)] == [256]
    assert not found.slower_than(0.5)


def test_a_run_does_not_differ_from_itself():
    rows = [row(10, seq_len=n, seed=n, spread=0.3) for n in (128, 256, 512)]
    assert not compare(rows, rows).significant


def test_only_what_both_runs_hold_is_compared():
    found = compare([row(1), row(1, seq_len=512)], [row(1), row(1, label="fused")])
    assert len(found.changes) == 1
    assert [r["seq_len"] for r in found.only_before] == [512]
    assert [r["label"] for r in found.only_after] == ["attention (fused)"]
    text = " ".join(comparison_section(found).text)
    assert "first run only" in text and "second run only" in text


def test_a_case_that_no_longer_finishes_is_shown():
    found = compare([row(1)], [row(1, status="oom")])
    assert not found.changes
    assert comparison_section(found).table.rows[0][1:3] == ["OK", "OOM"]


def write(folder, rows):
    import json

    folder.mkdir()
    run = {"suite": "quick", "machine": {"cpu": "a processor"}, "finished": None}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(folder)


@pytest.mark.parametrize(("ms", "limit", "code"), [(10, "10%", 0), (12, "10%", 1), (12, "0.5", 0)])
def test_fail_above_sets_the_exit_code(tmp_path, capsys, ms, limit, code):
    before, after = write(tmp_path / "a", [row(10)]), write(tmp_path / "b", [row(ms, seed=1)])
    assert main(["compare", before, after, "--fail-above", limit]) == code
    assert "1 cases compared" in capsys.readouterr().out


def test_a_case_that_broke_fails_the_comparison(tmp_path):
    before, after = write(tmp_path / "a", [row(1)]), write(tmp_path / "b", [row(1, status="oom")])
    assert main(["compare", before, after, "--fail-above", "10%"]) == 1


def test_runs_with_nothing_in_common_are_refused(tmp_path, capsys):
    before, after = write(tmp_path / "a", [row(1)]), write(tmp_path / "b", [row(1, seq_len=2)])
    assert main(["compare", before, after]) == 2
    assert "no measured case in common" in capsys.readouterr().err


def sweep(spread=0.01):
    """fnet linear in N, fused attention quadratic; they cross at N = 256."""
    found = []
    for n in (128, 256, 512, 1024):
        found.append(row(n / 64, label="fnet", seq_len=n, seed=n, spread=spread))
        found.append(row(n * n / 64 / 256, label="fused", seq_len=n, seed=n + 1, spread=spread))
    return found


def test_advice_between_lengths_follows_the_power_law():
    best, other = advise(sweep(1e-6), dim=64, seq_len=700, direction="forward")
    assert (best.label, best.basis) == ("fnet", "interpolated")
    assert best.time_ms.value == pytest.approx(700 / 64, rel=1e-4)
    assert other.time_ms.value == pytest.approx(700**2 / 64 / 256, rel=1e-4)
    assert best.time_ms.low <= best.time_ms.value <= best.time_ms.high


def test_advice_below_the_crossover_turns_the_ranking():
    assert advise(sweep(), dim=64, seq_len=128, direction="forward")[0].label == "attention (fused)"


def test_advice_says_measured_only_of_what_was_measured():
    def basis(**shape):
        return {one.basis for one in advise(sweep(), direction="forward", **shape)}

    assert basis(dim=64, seq_len=512) == {"measured"}
    assert basis(dim=64, seq_len=4096) == {"extrapolated"}
    assert basis(dim=64, seq_len=8) == {"extrapolated"}
    assert basis(dim=128, seq_len=512) == {"extrapolated"}


def test_advice_beyond_the_range_goes_on_with_the_last_slope():
    found = {one.label: one for one in advise(sweep(1e-6), 64, 4096, "forward")}
    assert found["attention (fused)"].time_ms.value == pytest.approx(4096**2 / 64 / 256, rel=1e-3)
    assert math.isclose(found["fnet"].peak_mb, 4096 / 64, rel_tol=1e-4)


def test_advice_without_its_direction_is_refused():
    with pytest.raises(ArgumentError, match="forward_backward"):
        advise(sweep(), 64, 512, "forward_backward")


def test_advise_command_names_the_machine(tmp_path, capsys):
    folder = write(tmp_path / "run", sweep())
    assert main(["advise", "--dim", "64", "--seq-len", "700", "--run", folder]) == 0
    out = capsys.readouterr().out
    assert "a processor" in out and "interpolated" in out


def test_sql_sees_the_rows_of_every_run(tmp_path, capsys):
    pytest.importorskip("duckdb")
    folders = [
        write(tmp_path / "one", [row(1)]),
        write(tmp_path / "two", [row(2), row(3, seq_len=512)]),
    ]
    assert (
        main(["query", "select run, count(*) as n from rows group by 1 order by 1", *folders]) == 0
    )
    out = capsys.readouterr().out
    assert "one" in out and "two" in out and "2" in out


def test_sql_can_read_nothing_but_the_rows(tmp_path, capsys):
    pytest.importorskip("duckdb")
    folder = write(tmp_path / "one", [row(1)])
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    assert main(["query", f"select * from read_csv('{secret}')", folder]) == 2
    assert "the query failed" in capsys.readouterr().err
