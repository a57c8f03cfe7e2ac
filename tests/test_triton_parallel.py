"""The kernels of FNet across ranks, their exchanges done by hand: interpreted, or on a GPU."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("triton")

from flashmix.ops._triton.availability import DTYPES, INTERPRETED
from flashmix.parallel.comm import chunks
from flashmix.parallel.fnet.columns import Columns, pairs
from flashmix.parallel.fnet.plan import UNIT
from helpers import relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1"
)


def split(dim, ranks, most):
    """The pairs of columns in at most so many column_chunks."""
    unit = UNIT if dim >= 2 * UNIT else 1
    shares = chunks.split_in_multiples(pairs(dim), ranks, unit)
    return chunks.split_columns(shares, 1 << 30, "cpu", unit=unit)


def columns_of_ranks(x, counts, column_chunks, norm):
    batch, _, dim = x.shape
    return [
        Columns(batch, dim, x.dtype, x.device, counts, rank, norm, column_chunks)
        for rank in range(len(counts))
    ]


def by_messages(x, counts, column_chunks, norm):
    """Re(FFT2) of x [B, N, D] whose tokens lie over ``len(counts)`` ranks."""
    ranks, slices = range(len(counts)), x.split(counts, 1)
    all_columns = columns_of_ranks(x, counts, column_chunks, norm)
    results = [torch.empty_like(own, memory_format=torch.contiguous_format) for own in slices]
    for k, widths in enumerate(all_columns[0].widths):
        sent = [
            columns.send(k, own).split([count * width for width in widths])
            for columns, own, count in zip(all_columns, slices, counts, strict=True)
        ]
        back = [
            columns.work(k, torch.cat([sent[other][rank] for other in ranks])).split(
                [count * widths[rank] for count in counts]
            )
            for rank, columns in enumerate(all_columns)
        ]
        for rank, columns in enumerate(all_columns):
            columns.receive(k, torch.cat([back[other][rank] for other in ranks]), results[rank])
    return torch.cat(results, 1)


class Shared:
    """Memory of ranks that are threads, of which one works at a time: parts of one tensor."""

    turn = threading.Lock()

    def __init__(self, whole, rank, barrier):
        self.whole, self.rank, self.gate = whole, rank, barrier

    def buffer(self, elements, dtype):
        assert dtype == self.whole.dtype
        return self.whole[self.rank, :elements]

    def distances(self, dtype):
        return tuple((rank - self.rank) * self.whole.stride(0) for rank in range(len(self.whole)))

    def barrier(self):
        self.turn.release()
        try:
            self.gate.wait()
        finally:
            self.turn.acquire()

    def run(self, columns, x):
        with self.turn:
            try:
                return columns.mix_in_shared_memory(x, self)
            except BaseException:
                self.gate.abort()
                raise


def by_memory(x, counts, column_chunks, norm):
    """The same, each rank a thread that writes in the others' memory."""
    ranks, all_columns = len(counts), columns_of_ranks(x, counts, column_chunks, norm)
    elements = {columns.elements for columns in all_columns}
    assert len(elements) == 1
    whole = x.new_full((ranks, -(-elements.pop() // UNIT) * UNIT), math.nan)
    barrier = threading.Barrier(ranks, timeout=60)
    with ThreadPoolExecutor(ranks) as pool:
        runs = [
            pool.submit(Shared(whole, rank, barrier).run, columns, own)
            for rank, (columns, own) in enumerate(zip(all_columns, x.split(counts, 1), strict=True))
        ]
        return torch.cat([run.result() for run in runs], 1)


CASES = [
    ((1, 2, 1), (1, 1)),
    ((2, 24, 12), (12, 12)),
    ((2, 24, 15), (5, 3, 16)),
    ((1, 130, 17), (66, 64)),
    ((3, 96, 64), (24, 25, 47)),
    ((1, 64, 256), (32, 32)),
    ((2, 24, 384), (5, 3, 16)),
    ((1, 24, 32), (8, 8, 8)),
    ((1, 2 * 64 * 65, 16), (4096, 4224)),
]
BUDGETS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.mark.parametrize(("shape", "counts"), CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("travel", [by_messages, by_memory])
def test_ranks_mix_what_one_device_does(shape, counts, dtype, most, travel, monkeypatch):
    monkeypatch.setitem(chunks.MAX_CHUNKS, "cpu", most)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    column_chunks = split(shape[2], len(counts), most)
    got = travel(x, counts, column_chunks, "ortho")
    want = torch.fft.fft2(x.double(), norm="ortho").real
    assert got.dtype == dtype
    assert relative_error(got, want) <= BUDGETS[dtype]
