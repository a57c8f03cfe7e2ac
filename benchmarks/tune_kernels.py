"""Find the launch parameters of the Triton kernels on this GPU and write ``tuned.json``.

Usage: python benchmarks/tune_kernels.py [--ops OP ...] [--compile-only INDEX] [--out FILE]

Both ways to FNet mixing are timed at the same shapes, two passes ("fnet") and column by column
("fnet_columns"), and filters by products ("spectral") and by columns ("spectral_columns").
Other ops' entries of the file stay as they are where --ops names some.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kernel_timing import median_ms

from flashmix._files import write_whole
from flashmix.ops._triton.columns import launch as columns
from flashmix.ops._triton.columns.plan import Digits, digits
from flashmix.ops._triton.columns.plan import options as ways
from flashmix.ops._triton.launch import padded
from flashmix.ops._triton.tuning import TABLE
from flashmix.ops.fnet.plan import Plan, matrices, plans
from flashmix.ops.fnet.triton import launch as fnet
from flashmix.ops.fnet.triton import passes
from flashmix.ops.local_attention.triton import launch as local
from flashmix.ops.local_attention.window import reach
from flashmix.ops.spectral.plan import plan as spectral_plan
from flashmix.ops.spectral.triton import launch as spectral
from flashmix.ops.topk_attention.triton import launch as topk_attention

FNET = (
    (64, 4096, 768),
    (8, 16384, 768),
    (64, 4096, 256),
    (16, 2048, 1024),
    (8, 512, 256),
    (32, 512, 768),
)
SPECTRAL = ((32, 4096, 768, 128), (8, 16384, 768, 128), (8, 2048, 256, 128))
LONG = ((1, 131072, 768), (1, 1048576, 768))
ALL_MODES = ((32, 4096, 768), (8, 16384, 768), (8, 2048, 256))
# Batch, N, and window or topk; eight heads of width 64.
LOCAL = ((4, 4096, 128), (1, 16384, 512))
TOPK = ((4, 4096, 32), (1, 16384, 64))
HEADS, HEAD_WIDTH = 8, 64
DTYPE = torch.bfloat16


def quickest(options: list[Any], run: Callable[[Any], Any], count: bool) -> tuple[float, Any]:
    """The option with the least median time; one whose tile does not fit is passed over."""
    best: tuple[float, Any] = (float("inf"), None)
    for option in options:
        try:
            ms = median_ms(lambda option=option: run(option), repeats=8) if count else run(option)
        except Exception as error:
            print("  left out", option, str(error).splitlines()[-1][:90])
            continue
        if count:
            print(f"  {ms * 1e3:8.1f} us  {option}", flush=True)
            best = min(best, (ms, option), key=lambda pair: pair[0])
    return best


def fnet_plans(seq_len: int, dim: int) -> list[Plan]:
    """The likeliest cuts: few planes, a short tail, the usual width or 16 as its second digit."""
    found = [one for one in plans(seq_len, dim, DTYPE) if one.n1 in (8, 16, 32)]
    longest = max(128, min(padded(one.pairs) for one in found))
    return [
        one
        for one in found
        if padded(one.pairs) <= longest
        and (one.n1 > 8 or seq_len <= 1024)
        and (one.d1 == found[0].d1 or (one.d2 == 16 and one.d1 % 16 == 0))
    ]


def fnet_heads(plan: Plan) -> list[fnet.Config]:
    """Tiles, warps and registers of the head."""
    tile = padded(plan.d1) * padded(plan.d2) * padded(plan.n1)
    room: tuple[tuple[int, int | None], ...] = ((4, None), (8, None), (4, 96), (8, 64), (2, None))
    if tile > 1 << 14:
        room = ((8, None), (16, None), (8, 128), (16, 64))
    elif tile == 1 << 14:
        room = ((8, None), (8, 80), (8, 64), (16, None), (16, 64), (4, None))
    return [
        fnet.Config(head_j=j, head_warps=w, head_regs=r)
        for j, (w, r) in itertools.product((16, 32) if 16 < plan.d1 <= 32 else (16,), room)
    ]


def fnet_tails(plan: Plan) -> list[fnet.Config]:
    """Tiles, terms, stages, warps and registers of the tail."""
    side = padded(plan.pairs)
    tiles = [(64, side, side, 1, w, None) for w in (2, 4)] + [(128, side, side, 1, 4, None)]
    if side > 32:
        tiles = [(64, 64, 64, 1, 4, None), (64, 64, 32, 2, 4, 128), (64, 64, 32, 3, 4, None)]
    if side > 64:
        tiles += [(64, 128, 32, 3, 8, 128), (128, 128, 32, 3, 8, None)]
    names = ("tail_c", "tail_pairs", "tail_terms", "tail_stages", "tail_warps", "tail_regs")
    return [fnet.Config(**dict(zip(names, tile, strict=True))) for tile in tiles]


def merged(head: fnet.Config, tail: fnet.Config) -> fnet.Config:
    """The head of one and the tail of another."""
    names = ("head_j", "head_warps", "head_regs")
    return replace(tail, **{name: getattr(head, name) for name in names})


def tune_fnet(batch: int, seq_len: int, dim: int, count: bool) -> dict[str, Any]:
    """Heads and tails for the likeliest cuts."""
    x = torch.randn(batch if count else 1, seq_len, dim, device="cuda", dtype=DTYPE)
    y = torch.empty_like(x)
    found = []
    for plan in fnet_plans(seq_len, dim):
        m = matrices(plan, DTYPE, x.device)
        planes = x.new_empty((2, len(x), plan.half, plan.rows, dim))
        print(plan)
        head_ms, head = quickest(fnet_heads(plan), partial(fnet.head, x, planes, plan, m), count)
        run = partial(fnet.tail, planes, y, plan, m, 1.0)
        tail_ms, tail = quickest(fnet_tails(plan), run, count)
        if head and tail:
            found.append((head_ms + tail_ms, plan, merged(head, tail)))
    if not found:
        return {}
    _, plan, how = min(found, key=lambda one: one[0])
    parameters = {"n1": plan.n1, "d1": plan.d1, **asdict(how)}
    return {"sizes": {"seq_len": seq_len, "dim": dim}, "parameters": parameters}


def tune_spectral(batch: int, seq_len: int, dim: int, modes: int, count: bool) -> dict[str, Any]:
    """Both products for one number of modes."""
    x = torch.randn(batch, seq_len, dim, device="cuda", dtype=DTYPE)
    weight = torch.randn(modes, dim, 2, device="cuda")
    plan = spectral_plan(seq_len, modes)
    assert plan is not None
    print(plan)
    first = [
        spectral.Config(
            analysis_l=n,
            analysis_d=d,
            analysis_warps=w,
            analysis_stages=s,
            analysis_registers=r,
        )
        for n, d, w, s, r in (
            (16, 64, 4, 3, 168),
            (16, 64, 4, 4, None),
            (32, 64, 4, 2, 168),
            (32, 64, 4, 3, None),
            (32, 64, 4, 4, None),
            (16, 128, 8, 4, None),
            (32, 128, 8, 3, None),
            (32, 128, 8, 4, None),
        )
    ]
    analyse = partial(spectral.filtered_modes, x, weight, plan, unitary=False)
    _, one = quickest(first, lambda how: analyse(how=how), count)
    z = analyse(how=one or first[0])
    second = [
        spectral.Config(
            synthesis_l=n,
            synthesis_d=d,
            synthesis_warps=w,
            synthesis_stages=s,
            synthesis_registers=r,
            synthesis_programs=programs,
        )
        for n, d, w, s, r, programs in (
            (16, 64, 4, 2, 128, 4),
            (16, 64, 4, 3, None, 3),
            (32, 64, 4, 2, 168, 3),
            (32, 64, 4, 3, None, 2),
            (16, 128, 8, 3, 128, 2),
            (32, 128, 8, 2, 128, 2),
            (32, 128, 8, 3, None, 1),
            (64, 128, 8, 2, None, 1),
        )
    ]
    _, two = quickest(second, lambda how: spectral.synthesis(z, x, None, plan, False, how), count)
    if not count:
        return {}
    names = [name for name in asdict(two) if name.startswith("synthesis")]
    how = replace(one, **{name: getattr(two, name) for name in names})
    sizes = {"seq_len": seq_len, "dim": dim, "modes": modes}
    return {"sizes": sizes, "parameters": asdict(how)}


def cuts(seq_len: int) -> list[Digits]:
    """The likeliest cuts of a length: few passes, little padding."""
    usual = digits(seq_len)
    assert usual is not None
    found = [one for one in ways(seq_len) if (one.na > 1) == (usual.na > 1)]
    return sorted(found, key=lambda one: max(one.n1, one.na, one.nb))[:4]


def tune_fnet_columns(batch: int, seq_len: int, dim: int, count: bool) -> dict[str, Any]:
    """The first pass on its own, then tiles of the others for the likeliest cuts."""
    x = torch.randn(batch, seq_len, dim, device="cuda", dtype=DTYPE)
    rows = [
        passes.Config(width_rows=r, width_warps=w)
        for r, w in ((2, 4), (4, 4), (8, 4), (8, 8), (16, 8))
        if r * dim <= 1 << 14
    ]
    _, first = quickest(rows, lambda how: passes.hartley(x, how, DTYPE), count)
    found = []
    for cut in cuts(seq_len):
        print(cut)
        both = [
            (
                replace(first or rows[0], mirror_c=lc, mirror_warps=lw),
                columns.Config(planes_c=pc, stage_c=lc, stage_warps=lw, line_c=lc, line_warps=lw),
            )
            for pc, lc, lw in itertools.product((32, 64, 128), (16, 32, 64), (4, 8))
        ]
        ms, best = quickest(both, lambda two, cut=cut: passes.mix(x, cut, "backward", *two), count)
        if best:
            digits_ = [cut.n1, cut.na, cut.nb]
            how = {"digits": digits_, "width": asdict(best[0]), "columns": asdict(best[1])}
            found.append((ms, how))
    sizes = {"seq_len": seq_len, "dim": dim}
    return {"sizes": sizes, "parameters": min(found, key=lambda one: one[0])[1]} if found else {}


def tune_spectral_columns(batch: int, seq_len: int, dim: int, count: bool) -> dict[str, Any]:
    """A filter over all modes, tiles of its passes for the likeliest cuts."""
    x = torch.randn(batch, seq_len, dim, device="cuda", dtype=DTYPE)
    weight = torch.randn(seq_len // 2 + 1, dim, 2, device="cuda")
    found = []
    for cut in cuts(seq_len):
        print(cut)
        best = columns.Config(line_c=32)
        forward = partial(columns.filtered, x, weight, None, cut)
        backward = partial(columns.filter_grads, x, x, weight, cut)
        ms = {}
        for part, tiles, rounds, run in (
            ("planes", ((64, 4), (128, 8)), (4, 8, 16), forward),
            ("line", ((32, 8), (64, 4), (64, 8)), (4, 8, 16), forward),
            ("grad", ((32, 8), (64, 4), (128, 8)), (1, 2, 4), backward),
        ):
            options = [
                replace(
                    best,
                    **{f"{part}_c": c, f"{part}_warps": w},
                    **{f"{part}_stages": s, f"{part}_programs": programs},
                    grad_registers=registers,
                )
                for (c, w), s, programs, registers in itertools.product(
                    tiles, (2, 3), rounds, (None, 168) if part == "grad" else (None,)
                )
            ]
            ms[part], one = quickest(options, lambda how, run=run: run(how=how), count)
            best = one or best
        if count and one:
            how = {"digits": [cut.n1, cut.na, cut.nb], "columns": asdict(best)}
            found.append((ms["line"] + ms["grad"], how))
    sizes = {"seq_len": seq_len, "dim": dim}
    return {"sizes": sizes, "parameters": min(found, key=lambda one: one[0])[1]} if found else {}


def heads(batch: int, seq_len: int) -> list[torch.Tensor]:
    """q, k and v."""
    shape = (batch, HEADS, seq_len, HEAD_WIDTH)
    return [torch.randn(shape, device="cuda", dtype=DTYPE) for _ in range(3)]


def tune_local(batch: int, seq_len: int, window: int, count: bool) -> dict[str, Any]:
    """Both directions of a sliding window."""
    q, k, v = heads(batch, seq_len)
    forward = partial(local.forward, q, k, v, None, *reach(window, False))
    first = [
        local.Config(queries=m, keys=n, warps=w, stages=s)
        for m, n, w, s in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3))
        if not (m == 64 and w == 8)
    ]
    _, one = quickest(first, lambda how: forward(how=how), count)
    y, logarithm = forward()
    backward = partial(local.backward, y, q, k, v, y, logarithm, None, *reach(window, False))
    second = [
        local.Config(back_rows=m, back_step=n, back_warps=w, back_stages=s)
        for m, n, w, s in itertools.product((64, 128), (32, 64), (4, 8), (1, 2, 3))
    ]
    _, two = quickest(second, lambda how: backward(how=how), count)
    if not count:
        return {}
    names = [name for name in asdict(two) if name.startswith("back")]
    how = replace(one, **{name: getattr(two, name) for name in names})
    return {"sizes": {"head_dim": HEAD_WIDTH, "window": window}, "parameters": asdict(how)}


def topk_options() -> Iterator[list[dict[str, int]]]:
    """Choices for each kernel of exact top-k: its bound, its second pass, what keeps."""
    tiles = ((64, 4), (128, 4), (128, 8))
    yield [
        {"queries": m, "warps": w, "stages": s}
        for (m, w), s in itertools.product(tiles, (2, 3))
        if (m, w, s) != (128, 4, 2)
    ]
    yield [
        {"collect_queries": m, "collect_keys": n, "collect_warps": w, "collect_stages": s}
        for (m, w), (n, s) in itertools.product(tiles, ((64, 3), (128, 2), (128, 3)))
    ]
    yield [
        {"keep_rows": r, "keep_step": n, "keep_warps": w}
        for r, n, w in (
            (1, 8, 1),
            (1, 16, 1),
            (1, 32, 1),
            (2, 16, 1),
            (2, 16, 2),
            (4, 16, 2),
            (4, 8, 2),
            (4, 16, 4),
        )
    ]


def tune_topk(batch: int, seq_len: int, topk: int, count: bool) -> dict[str, Any]:
    """The kernels of exact top-k, one after the other."""
    forward = partial(topk_attention.forward, *heads(batch, seq_len), None, topk, False)
    how = topk_attention.Config()
    for choices in topk_options():
        options = [replace(how, **choice) for choice in choices]
        how = quickest(options, lambda how: forward(how=how), count)[1] or how
    return {"sizes": {"head_dim": HEAD_WIDTH, "topk": topk}, "parameters": asdict(how)}


def jobs(only: list[str] | None) -> Iterator[tuple[str, Callable[[bool], dict[str, Any]]]]:
    """One job for each shape of the ops named, or of all."""
    for op, (tune, shapes) in JOBS.items():
        for shape in shapes if only is None or op in only else ():
            yield op, lambda count, tune=tune, shape=shape: tune(*shape, count)


JOBS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[tuple[int, ...], ...]]] = {
    "fnet": (tune_fnet, FNET),
    "spectral": (tune_spectral, SPECTRAL),
    "fnet_columns": (tune_fnet_columns, (*FNET, *LONG)),
    "spectral_columns": (tune_spectral_columns, ALL_MODES),
    "local_attention": (tune_local, LOCAL),
    "topk_attention": (tune_topk, TOPK),
}


def main() -> None:
    """Compile one job's kernels, or time all of them and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compile-only", type=int)
    parser.add_argument(
        "--ops",
        nargs="*",
        choices=tuple(JOBS),
        help="tune these alone and keep the others' entries",
    )
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    if options.compile_only is not None:
        next(itertools.islice(jobs(options.ops), options.compile_only, None))[1](False)
        return
    table: dict[str, Any] = {"gpu": torch.cuda.get_device_name()}
    if options.ops:
        kept = json.loads(TABLE.read_text())
        if kept.pop("gpu") == table["gpu"]:
            table |= {op: entries for op, entries in kept.items() if op not in options.ops}
    for op, job in jobs(options.ops):
        table.setdefault(op, []).append(job(True))
        torch.cuda.empty_cache()
    write_whole(options.out, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
