"""Public FNet op: validation and dispatch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flashmix.ops import _checks
from flashmix.ops._case import Case
from flashmix.ops._cpu import library
from flashmix.ops._registry import Implementation, Operator
from flashmix.ops._triton import availability
from flashmix.ops._triton.columns import plan as columns
from flashmix.ops.fnet import cpu, dense, reference, torch
from flashmix.ops.fnet.plan import road, unplanned, unsplit


def _triton(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    from flashmix.ops.fnet.triton import fnet

    return fnet(x, mask, norm)


def _triton_columns(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    from flashmix.ops.fnet.triton.columns import fnet

    return fnet(x, mask, norm)


def _unfit_for_triton(case: Case) -> str | None:
    _, seq_len, dim = case.sizes()
    length = None if case.options.get("masked") else seq_len
    return unplanned(length, dim, case.dtype)


def _triton_road(case: Case) -> str | None:
    _, seq_len, dim = case.sizes()
    if case.options.get("masked"):
        return "true lengths without a plan go through the FFT"
    return road(seq_len, dim, case.dtype)


def _unfit_for_columns(case: Case) -> str | None:
    _, seq_len, dim = case.sizes()
    if refusal := unsplit(dim) or columns.unfit(seq_len, dim):
        return refusal
    return None if case.options.get("masked") else columns.uncut(seq_len)


def _columns_road(case: Case) -> str | None:
    if case.options.get("masked"):
        return "true lengths that are odd or have a large factor go through the FFT"
    return str(columns.digits(case.sizes()[1]))


def _unfit_for_dense(case: Case) -> str | None:
    _, seq_len, dim = case.shape
    if seq_len > dense.MOST or dim > dense.MOST:
        return f"takes N and D up to {dense.MOST}, where two products still pay"
    return None


OPERATOR = Operator(
    name="fnet",
    axes="B, N, D",
    implementations=(
        Implementation(
            name="cpu",
            run=cpu.fnet,
            summary="native transform of the even part, mirrored; its own backward, nothing saved",
            devices=library.DEVICES,
            missing=library.missing,
        ),
        Implementation(
            name="torch",
            run=torch.fnet,
            summary="half-spectrum real FFT, mirrored; its own backward, nothing saved",
        ),
        Implementation(
            name="triton",
            run=_triton,
            summary="two passes of tensor-core products; its own backward, nothing saved",
            devices=availability.DEVICES,
            dtypes=availability.DTYPES,
            missing=availability.missing,
            unfit=_unfit_for_triton,
            road=_triton_road,
            preferred=False,
        ),
        Implementation(
            name="triton_columns",
            run=_triton_columns,
            summary="three passes, width first and half of the columns after; nothing saved",
            devices=availability.DEVICES,
            dtypes=availability.DTYPES,
            missing=availability.missing,
            unfit=_unfit_for_columns,
            road=_columns_road,
            preferred=False,
        ),
        Implementation(
            name="dense",
            run=dense.fnet,
            summary="two plain matrix products, any short length; its own backward, nothing saved",
            unfit=_unfit_for_dense,
            preferred=False,
        ),
        Implementation(name="reference", run=reference.fnet, summary="Re(fftn(x)), the formula"),
    ),
)


def fnet(
    x: Tensor,
    *,
    mask: Tensor | None = None,
    norm: Literal["backward", "ortho"] = "backward",
    impl: str = "auto",
) -> Tensor:
    """FNet mixing: Re(FFT over tokens of FFT over width of x) (Lee-Thorp et al. 2021, eq. 3).

    Args:
        x: [B, N, D], floating. Half types are transformed in float32 and rounded once.
        mask: bool [B, N], True = a real token. Each sequence is transformed over its own true
            length; outputs at padding are zero.
        norm: "backward" leaves the sums unnormalised as the paper does, so outputs grow like
            sqrt(N * D) and a nonzero mean like N * D, which can exceed float16's 65,504 (the
            output is then inf); "ortho" divides by sqrt(N * D).
        impl: "auto", "cpu", "torch", "triton", "triton_columns", "dense" or "reference".
            "cpu" takes any N and D; "triton" takes even N and widths whose factors fit its
            tiles; of a padded batch, lengths that do not go through the FFT. "triton_columns"
            also takes long N, "dense" any N and D up to 2,048.

    Returns:
        [B, N, D] in the dtype of ``x``.

    Raises:
        ArgumentError: an argument has the wrong shape, dtype or value.
        ImplementationError: ``impl`` cannot run here.
    """
    _checks.check_tokens("fnet", x, mask)
    _checks.check_choice("fnet", "norm", norm, ("backward", "ortho"))
    case = Case(tuple(x.shape), x.dtype, x.device, {"masked": mask is not None})
    y: Tensor = OPERATOR.choose(impl, x.dtype, x.device, case).run(x, mask, norm)
    return y
