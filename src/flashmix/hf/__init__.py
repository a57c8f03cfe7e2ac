"""Other mixers in Hugging Face encoders: swap them, save and load the result, use them by name.

Needs ``pip install 'flashmix[hf]'``.
"""

from flashmix.hf.interface import register_attention
from flashmix.hf.layers import mixers_of, set_mixer
from flashmix.hf.loading import from_pretrained, load
from flashmix.hf.pooling import pool_mean
from flashmix.hf.report import SwappedLayer, SwapReport, swap_report
from flashmix.hf.swap import swap

__all__ = [
    "SwapReport",
    "SwappedLayer",
    "from_pretrained",
    "load",
    "mixers_of",
    "pool_mean",
    "register_attention",
    "set_mixer",
    "swap",
    "swap_report",
]
