"""Sparse attention beside fused dense attention: crossovers, and what block selection misses."""

from __future__ import annotations

import math

import pytest
import torch

from bench_helpers import make_row
from flashmix.bench import BenchmarkCase
from flashmix.bench.properties import measure_properties
from flashmix.bench.selection import _compare
from flashmix.ops.block_topk_attention import blocks
from flashmix.report.sections.kernels import sparse_sections
from helpers import randn
from report_helpers import PROPERTIES


def op_row(op, label, seq_len, ms, *, window=None, topk=None, **fields):
    row = make_row(label, seq_len, ms, op=op, window=window, topk=topk, **fields)
    return {**row, "label": label}


def test_crossovers_are_of_rows_that_differ_in_length_alone():
    rows = [
        row
        for n in (1024, 2048, 4096)
        for row in (
            op_row("local_attention", "sdpa", n, n**2 / 3000, window=128),
            op_row("local_attention", "triton", n, n, window=128),
            op_row("local_attention", "sdpa", n, 1.0, window=512),
            op_row("local_attention", "triton", n, 2.0, window=512),
            op_row("block_topk_attention", "sdpa", n, 2.0, topk=n // 16),
            op_row("block_topk_attention", "triton", n, 1.0, topk=n // 16),
        )
    ]
    (section,) = sparse_sections(rows)
    found = {(line[0], line[1].split(", ")[-1]): line for line in section.table.rows}
    crossing = found["local_attention", "window 128"]
    assert crossing[4].startswith("N = 3,000")
    assert crossing[-1].startswith("1.00")
    assert found["local_attention", "window 512"][4] == "at no N measured"
    assert found["block_topk_attention", "1/16 of the keys"][4] == "at every N measured"


def test_a_length_without_dense_attention_counts_for_no_crossover():
    rows = [op_row("local_attention", "triton", n, n, window=512) for n in (1024, 2048)]
    assert sparse_sections(rows) == []


def test_what_block_selection_misses_stands_in_the_report():
    row = op_row("block_topk_attention", "torch", 65536, 1.0, topk=4096, direction="properties")
    (section,) = sparse_sections([{**row, "properties": PROPERTIES["block_topk_attention"]}])
    assert section.table.rows[0][1:5] == ["white noise", "6.25 %", "7 %", "8 %"]


def test_recall_and_errors_of_a_selection_that_misses_nothing(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4)
    q, k, v = randn(3, 1, 2, 22, 8, dtype=torch.float32)
    found = _compare([q, k, v], 22)
    assert found["recall"] == 1
    assert found["weight_kept"] == pytest.approx(1)
    assert found["error_against_exact"] == found["error_against_dense"] == 0


def test_recall_counts_the_exact_keys_among_the_kept_blocks(monkeypatch):
    """Keys of one block alone point along the queries: both selections must take them."""
    monkeypatch.setattr(blocks, "BLOCK", 4)
    q = torch.ones(1, 1, 16, 8)
    k = -torch.ones(1, 1, 16, 8)
    k[:, :, 8:12] = 1
    v = randn(1, 1, 16, 8, dtype=torch.float32)
    assert _compare([q, k, v], 4)["recall"] == 1
    # Spread over two blocks, half of them is all that one block holds.
    k[:, :, 10:12], k[:, :, 2:4] = -1, 1
    assert _compare([q, k, v], 4)["recall"] == 0.5


def test_facts_of_white_noise_recall_about_what_chance_would():
    case = BenchmarkCase(
        suite="kernels",
        mixer="block_topk_attention",
        op="block_topk_attention",
        subject="op",
        direction="properties",
        batch=1,
        seq_len=1024,
        dim=32,
        num_heads=2,
        topk=128,
    )
    properties = measure_properties(case)
    noise, smooth = properties["inputs"].values()
    assert properties["kept_share"] == 0.125
    assert 0.1 < noise["recall"] < 0.2
    assert smooth["recall"] > 2 * noise["recall"]
    assert all(math.isfinite(value) for value in (*noise.values(), *smooth.values()))
