"""How a tensor lies in memory changes nothing that the Triton kernels compute."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from flashmix import ops
from helpers import assert_close, randn
from layouts import FIXED
from triton_helpers import DEVICE, needs_triton, outputs

pytestmark = needs_triton

HEADS = (2, 1, 8, 16)
TOKENS = (2, 8, 16)
CASES = {
    "local": (partial(ops.local_attention, window=5), [HEADS] * 3),
    "topk": (partial(ops.topk_attention, topk=3), [HEADS] * 3),
    "block": (partial(ops.topk_attention, topk=6, selection="block"), [HEADS] * 3),
    "fnet": (ops.fnet, [TOKENS]),
    "spectral": (ops.spectral, [TOKENS, (4, 16, 2), (16,)]),
}


@pytest.mark.parametrize("layout", ["transposed", "sliced"] if DEVICE == "cuda" else ["sliced"])
@pytest.mark.parametrize("name", CASES)
def test_no_layout_changes_a_kernel(name, layout):
    function, shapes = CASES[name]
    make = partial(randn, dtype=torch.float32, device=DEVICE)
    leaves = [make(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    lay = FIXED[layout].of
    mask = torch.arange(shapes[0][-2], device=DEVICE) < torch.tensor([[8], [5]], device=DEVICE)

    def run(mask, *x):
        return function(*x, mask=mask, impl="triton")

    upstream = make(*shapes[0], seed=9)
    want = outputs(partial(run, mask), [x.requires_grad_() for x in leaves], upstream)
    laid = [lay(x).requires_grad_() for x in leaves]
    got = outputs(partial(run, lay(mask)), laid, lay(upstream))
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, 1e-6)
