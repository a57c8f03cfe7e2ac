"""Run each kernel once under Nsight Compute.

Usage: ncu --profile-from-start off --csv --metrics METRICS python benchmarks/profile_kernels.py
"""

from __future__ import annotations

import torch

from flashmix import ops


def main() -> None:
    """Compile first, then profile one call at each shape."""
    x = torch.randn(64, 4096, 768, device="cuda", dtype=torch.bfloat16)
    long = torch.randn(8, 16384, 768, device="cuda", dtype=torch.bfloat16)
    narrow = torch.randn(64, 4096, 256, device="cuda", dtype=torch.bfloat16)
    heads = torch.randn(3, 4, 8, 4096, 64, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(128, 768, 2, device="cuda")
    all_modes = torch.randn(2049, 768, 2, device="cuda")
    for _ in range(2):
        torch.cuda.synchronize()
        for one in (x, long, narrow):
            ops.fnet(one, impl="triton")
            ops.fnet(one, impl="triton_columns")
        ops.spectral(x[:32], weight, impl="triton")
        ops.spectral(x[:32], all_modes, impl="triton_columns")
        ops.local_attention(*heads, window=128, impl="triton")
        ops.local_attention(*heads, window=512, impl="triton")
        ops.topk_attention(*heads, topk=32, impl="triton")
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStart()
    torch.cuda.cudart().cudaProfilerStop()


if __name__ == "__main__":
    main()
