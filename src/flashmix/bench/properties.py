"""Numbers that are not times: what a suite says of its mixers beside their speed."""

from __future__ import annotations

from typing import Any

import torch

from flashmix.bench.case import BenchmarkCase
from flashmix.bench.selection import block_selection_properties
from flashmix.mixers import FourierAttention, Spectral
from flashmix.ops import spectral


def measure_properties(case: BenchmarkCase) -> dict[str, Any]:
    """The properties of a case's mixer at its shape."""
    torch.manual_seed(case.seed)
    if case.op == "block_topk_attention":
        return block_selection_properties(case)
    x = torch.randn(case.batch, case.seq_len, case.dim, device=case.device)
    if case.mixer.partition("(")[0] == "fourier":
        return _fourier_properties(case, x)
    return _spectral_properties(case, x)


def _fourier_properties(case: BenchmarkCase, x: torch.Tensor) -> dict[str, Any]:
    """The FFT magnitude of each head, and where its energy lies, on white noise."""
    mixer = FourierAttention(case.dim, num_heads=case.num_heads).to(case.device)
    with torch.no_grad():
        magnitude = mixer.magnitude(x)
    energy = magnitude.square().mean((0, 3))
    lowest = max(1, round(0.1 * energy.shape[1]))
    share = energy[:, :lowest].sum(1) / energy.sum(1)
    return {
        "magnitude_by_head": magnitude.mean((0, 3)).tolist(),
        "lowest_tenth_energy_share_by_head": share.tolist(),
        "lowest_tenth_of_frequencies": lowest / energy.shape[1],
        "input": "white noise",
    }


def _spectral_properties(case: BenchmarkCase, x: torch.Tensor) -> dict[str, Any]:
    """Energy, determinism, gradient flow and round trip of spectral mixing."""
    n = case.seq_len
    unitary = Spectral(case.dim, unitary=True).to(case.device)
    everything = torch.zeros(n // 2 + 1, case.dim, 2, device=case.device)
    everything[..., 0] = 1
    leaf = x.clone().requires_grad_()
    mixer = Spectral(case.dim).to(case.device)
    with torch.no_grad():
        unitary.phase.normal_()
        energy = unitary(x).square().sum() / x.square().sum()
        round_trip = (spectral(x, everything) - x).norm() / x.norm()
        same = torch.equal(mixer(x), mixer(x))
    mixer(leaf).square().mean().backward()
    assert leaf.grad is not None and mixer.weight.grad is not None
    return {
        "unitary_energy_ratio": energy.item(),
        "round_trip_relative_error": round_trip.item(),
        "same_bits_twice": same,
        "input_gradient_norm": leaf.grad.norm().item(),
        "weight_gradient_norm": mixer.weight.grad.norm().item(),
        "gradients_finite": bool(leaf.grad.isfinite().all() and mixer.weight.grad.isfinite().all()),
    }
