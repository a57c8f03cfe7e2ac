"""FNet mixing."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flashmix.mixers._base import Heads, Mixer
from flashmix.ops import _checks, fnet


class FNet(Mixer):
    """Re(FFT over tokens of FFT over width), no parameters (Lee-Thorp et al. 2021, eq. 3).

    Args:
        dim: width D.
        norm: "backward" leaves the sums unnormalised as the paper does; "ortho" divides by
            sqrt(N * D), which float16 models need.
        impl: "auto", "torch" or "reference".
    """

    summary = "Re(FFT over tokens of FFT over width): fixed, no parameters"
    cost = "O(N log N)"
    op = "fnet"

    def __init__(
        self, dim: int, *, norm: Literal["backward", "ortho"] = "backward", impl: str = "auto"
    ) -> None:
        super().__init__(dim, impl)
        _checks.check_choice("FNet", "norm", norm, ("backward", "ortho"))
        self.norm = norm

    def forward(self, x: Tensor | Heads, mask: Tensor | None = None) -> Tensor:
        return fnet(self.tokens(x, mask), mask=mask, norm=self.norm, impl=self.impl)
