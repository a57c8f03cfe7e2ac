"""FNet over sequences of any lengths in two launches: interpreted on the CPU, or on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from hypothesis import given, settings
from hypothesis import strategies as st

from flashmix import ops
from flashmix.ops._triton.availability import DTYPES, INTERPRETED
from flashmix.ops._triton.sequences import sequences

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1"
)

# Several tiles of 64 folded rows, one that is filled to its last row, and one row more.
LENGTHS = [150, 1, 0, 2, 97, 128, 126, 3]
N = 150


def batch(lengths, width, dtype, *, holes=False, longest=N):
    """Tokens with NaN at the padding, and their mask."""
    torch.manual_seed(len(lengths) + width)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    if holes:
        mask = torch.stack([row[torch.randperm(longest)] for row in mask])
    mask = mask.to(DEVICE)
    x = torch.randn(len(lengths), longest, width, device=DEVICE).to(dtype)
    return x.masked_fill(~mask[..., None], float("nan")), mask


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("width", [48, 130, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_sequence_is_as_exact_as_alone_whatever_the_lengths_around_it(dtype, width):
    x, mask = batch(LENGTHS, width, dtype)
    for norm in ("backward", "ortho"):
        y = ops.fnet(x, mask=mask, norm=norm, impl="triton_ragged")
        assert not y[~mask].any()
        for row, length in enumerate(LENGTHS):
            if not length:
                continue
            alone = x[row, :length].double()
            want = torch.fft.fftn(alone, dim=(0, 1), norm=norm).real
            budget = 1e-6 if dtype == torch.float32 else 2.5 * relative(want.to(dtype), want)
            error = relative(y[row, :length], want)
            assert error <= max(budget, 2.5 * torch.finfo(dtype).eps / 4), (norm, length)


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 5, 31, 40]), min_size=1, max_size=5),
    holes=st.booleans(),
)
def test_packed_padded_and_alone_have_the_same_bits(lengths, holes):
    x, mask = batch(lengths, 20, torch.float16, holes=holes, longest=40)
    padded = ops.fnet(x, mask=mask, impl="triton_ragged")
    tokens = x[mask]
    offsets = torch.tensor([0, *lengths], device=DEVICE).cumsum(0, dtype=torch.int32)
    packed = ops.fnet(tokens, cu_seqlens=offsets, impl="triton_ragged")
    assert torch.equal(packed, padded[mask])
    for row, part in enumerate(packed.split(lengths)):
        if lengths[row]:
            alone = x[row][mask[row]][None]
            assert torch.equal(ops.fnet(alone, impl="triton_ragged")[0], part)


def test_real_tokens_come_first_and_in_order_across_chunks():
    mask = torch.rand(3, 5000, device=DEVICE) < 0.5
    mask[1] = False
    for layout in (mask, mask.T.contiguous().T):
        found = sequences(torch.empty(3, 5000, 1, device=DEVICE), layout, None)
        assert found.lengths.tolist() == mask.sum(1).tolist()
        assert torch.equal(found.order.long(), torch.argsort(~mask, dim=1, stable=True))


def test_the_gradient_is_the_mixing_of_the_gradient():
    x, mask = batch([20, 7, 0], 12, torch.float32, holes=True, longest=20)
    x = x.nan_to_num().requires_grad_()
    upstream = torch.randn_like(x)
    y = ops.fnet(x, mask=mask, impl="triton_ragged")
    (grad,) = torch.autograd.grad(y, x, upstream)
    wide = x.detach().double().requires_grad_()
    want = ops.fnet(wide, mask=mask, impl="reference")
    (want_grad,) = torch.autograd.grad(want, wide, upstream.double())
    assert relative(y.detach(), want.detach()) <= 1e-6
    assert relative(grad, want_grad) <= 1e-6


def test_padded_batches_on_a_gpu_go_through_it_and_long_ones_do_not():
    def chosen(seq_len):
        options = {"dtype": torch.float16, "device": "cuda", "machine": "NVIDIA H200"}
        return ops.explain("fnet", (8, seq_len, 768), masked=True, **options).impl

    assert chosen(512) == chosen(8192) == "triton_ragged"
    assert chosen(131_072) in ("triton", "triton_columns")
