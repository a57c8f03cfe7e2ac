"""The loaded launcher, and why there is none where there is none."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

from flashmix.errors import ImplementationError
from flashmix.ops._build import Sources, build, discard

SWITCH = "FLASHMIX_LAUNCHER"
"""The environment variable that turns it off, as "off"."""

_DRIVER = (
    "cuLaunchKernelEx",
    "cuGetErrorString",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
)
_STREAM = "aoti_torch_get_current_cuda_stream"


def sources() -> Sources:
    """What it is built from: this release of PyTorch's headers, and the folder csrc."""
    root = Path(torch.__file__).parent
    include, lib = root / "include", root / "lib"
    includes = (f"-I{include}", f"-I{include / 'torch/csrc/api/include'}")
    links = (f"-L{lib}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10")
    return Sources(
        f"launcher-torch-{torch.__version__}",
        Path(__file__).with_name("csrc"),
        ("-std=c++20", "-O1", *includes, *links),
        "the native launcher",
        "half a minute",
    )


@functools.cache
def loaded() -> ImplementationError | None:
    """Build the launcher unless it is built, and load it; the error where there is none."""
    if os.environ.get(SWITCH) == "off":
        return ImplementationError(f"is turned off by {SWITCH}=off")
    path: Path | None = None
    try:
        path = build(sources())
        torch.ops.load_library(str(path))
        if torch.cuda.is_available():
            torch.ops.flashmix._launcher_driver(_driver())
    except ImplementationError as error:
        return error
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        if path is not None:
            discard(path)
        return ImplementationError(f"cannot be loaded: {error}")
    return None


def _driver() -> list[int]:
    """Addresses of the CUDA driver's functions, and of PyTorch's for the current stream."""
    cuda = ctypes.CDLL("libcuda.so.1")
    of_torch = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"))
    functions = [*(cuda[name] for name in _DRIVER), of_torch[_STREAM]]
    return [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
