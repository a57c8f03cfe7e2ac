"""The kernels of FNet over ranks, their exchanges done by hand: interpreted, or on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from flashmix.ops._triton.availability import DTYPES, INTERPRETED
from flashmix.parallel import _pieces
from flashmix.parallel._fnet_triton import Columns
from flashmix.parallel._ranks import even_split
from helpers import relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1"
)


def over_ranks(x, counts, pieces, norm):
    """Re(FFT2) of x [B, N, D] whose tokens lie over ``len(counts)`` ranks."""
    ranks, batch = range(len(counts)), x.shape[0]
    all_columns = [
        Columns(part, pieces, rank, x.shape[1], norm)
        for rank, part in enumerate(x.split(counts, 1))
    ]
    for k, piece in enumerate(pieces):
        widths = [some.stop - some.start for some in piece]
        sent = [
            columns.send(k).split([2 * batch * count * width for width in widths])
            for columns, count in zip(all_columns, counts, strict=True)
        ]
        back = [
            columns.work(k, torch.cat([sent[other][rank] for other in ranks])).split(
                [2 * batch * count * widths[rank] for count in counts]
            )
            for rank, columns in enumerate(all_columns)
        ]
        for rank, columns in enumerate(all_columns):
            columns.receive(k, torch.cat([back[other][rank] for other in ranks]))
    return torch.cat([columns.received for columns in all_columns], 1)


CASES = [
    ((1, 2, 1), (1, 1)),
    ((2, 24, 12), (12, 12)),
    ((2, 24, 15), (5, 3, 16)),
    ((1, 130, 17), (66, 64)),
    ((3, 96, 48), (24, 25, 23, 24)),
    ((1, 2 * 64 * 65, 16), (4096, 4224)),
]
BUDGETS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.mark.parametrize(("shape", "counts"), CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("most", [1, 2])
def test_ranks_mix_what_one_device_does(shape, counts, dtype, most, monkeypatch):
    monkeypatch.setitem(_pieces.PIECES, "cpu", most)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    pieces = _pieces.cut(even_split(shape[2] // 2 + 1, len(counts)), 1 << 30, "cpu")
    got = over_ranks(x, counts, pieces, "ortho")
    want = torch.fft.fft2(x.double(), norm="ortho").real
    assert got.dtype == dtype
    assert relative_error(got, want) <= BUDGETS[dtype]
