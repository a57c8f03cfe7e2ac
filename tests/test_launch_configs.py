"""The launch parameters that kernels take, of one resolver, are those that were measured with."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from flashmix.ops._triton.columns import launch as columns
from flashmix.ops._triton.tuning import LaunchConfig, launch_config
from flashmix.ops.fnet.plan import plan
from flashmix.ops.fnet.triton import launch as fnet
from flashmix.ops.fnet.triton import passes
from flashmix.ops.local_attention.triton import launch as local
from flashmix.ops.spectral.plan import plan as spectral_plan
from flashmix.ops.spectral.triton import launch as spectral
from flashmix.ops.topk_attention.triton import launch as topk

TABLE = json.loads(Path(__file__).with_name("launch_configs.json").read_text())
"""By op, sizes and dtype: the factors of a length, and what differs from the defaults."""


def changed(config):
    defaults = asdict(type(config)())
    return {name: value for name, value in asdict(config).items() if value != defaults[name]}


def factored(cut, *configs):
    return [[cut.n1, cut.na, cut.nb], *map(changed, configs)]


CHOSEN = {
    "fnet": lambda n, d, dtype: changed(fnet.config(plan(n, d, dtype), dtype)),
    "fnet_columns": lambda n, d, dtype: factored(*passes.tuned(n, d, dtype)),
    "spectral": lambda n, d, m, dtype: changed(spectral.config(spectral_plan(n, m), d, dtype)),
    "spectral_columns": lambda n, d, dtype: factored(*columns.tuned(n, d, dtype)),
    "local_attention": lambda width, w, dtype: changed(local.config(width, w, dtype)),
    "topk_attention": lambda width, k, dtype: changed(topk.config(width, k, dtype)),
}


@pytest.mark.parametrize("op", CHOSEN)
def test_launch_parameters_are_those_of_the_table(op):
    rows = {key: want for key, want in TABLE.items() if key.split()[0] == op}
    assert len(rows) > 10
    for key, want in rows.items():
        _, *sizes, dtype = key.split()
        assert CHOSEN[op](*map(int, sizes), getattr(torch, dtype)) == want, key


@pytest.mark.parametrize("kind", LaunchConfig.__subclasses__())
def test_half_types_share_launch_parameters(kind):
    sizes = {"seq_len": 4096, "dim": 768, "modes": 128, "head_dim": 64, "window": 64, "topk": 64}
    sizes |= {"n1": 16, "na": 4, "nb": 64, "backward": 0}
    half, bf16 = (launch_config(kind, sizes, dtype) for dtype in (torch.half, torch.bfloat16))
    assert half == bf16
    assert launch_config(kind, sizes, torch.half) is half
