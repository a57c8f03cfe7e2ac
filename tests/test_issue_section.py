"""On a GPU the report says from which length the GPU, not Python, sets the pace."""

from __future__ import annotations

from bench_helpers import make_row
from flashmix.report.analysis.timings import Sweep
from flashmix.report.sections.sweep import issue_section


def paced(times_ms: dict[int, float], host_ms: float) -> list[list[str]]:
    rows = [make_row("fnet", n, ms, host_ms=host_ms) for n, ms in times_ms.items()]
    return [list(line) for line in issue_section(Sweep(rows, "forward")).table.rows]


def test_the_gpu_sets_the_pace_from_the_length_where_it_takes_longer():
    assert paced({128: 0.1, 256: 0.2, 512: 0.8}, 0.4) == [["fnet", "0.400", "N = 512"]]


def test_a_length_counts_only_if_all_longer_ones_do():
    assert paced({128: 0.9, 256: 0.2, 512: 0.8}, 0.4)[0][-1] == "N = 512"


def test_python_may_set_the_pace_throughout_or_never():
    assert paced({128: 0.1, 256: 0.2}, 0.4)[0][-1] == "not in range"
    assert paced({128: 0.5, 256: 0.6}, 0.4)[0][-1] == "N = 128"


def test_a_cpu_has_no_such_table():
    assert not issue_section(Sweep([make_row("fnet", 128)], "forward")).table.rows
