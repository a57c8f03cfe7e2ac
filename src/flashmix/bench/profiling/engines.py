"""What else makes an encoder faster without any training: other engines, quantised weights.

Each takes the vanilla model as it is in memory and gives a function of its inputs. What is not
installed, or cannot take the model, raises: its row then says so.

Shapes: B batch, N tokens, W width.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError, missing_extra

Inputs = dict[str, Tensor]
Call = Callable[..., Any]

OTHER_ENGINES = ("onnx", "onnx-int8", "openvino")
"""Modes of a case that run outside PyTorch, which knows nothing of their memory."""
ENGINES = ("int8", *OTHER_ENGINES)
"""Modes that run on the CPU, without gradients."""
OUTPUT = "last_hidden_state"


def engine(mode: str, model: nn.Module, inputs: Inputs, device: str) -> Call:
    """The function that runs ``model`` by ``mode``, called with ``inputs`` by name.

    Raises:
        MissingDependencyError: its package is not installed.
        ArgumentError: the mode is none of the device.
    """
    if device != "cpu":
        raise ArgumentError(f"mode {mode!r} runs on the CPU, the case is on {device!r}")
    if mode == "int8":
        return quantised(model)
    _installed("openvino" if mode == "openvino" else "onnxruntime")
    if mode == "openvino":
        return _openvino(_exported(model, inputs), inputs)
    data = _exported(model, inputs)
    return _onnx(_onnx_int8(data) if mode == "onnx-int8" else data)


def quantised(model: nn.Module) -> nn.Module:
    """A copy whose linear maps have int8 weights, and quantise their inputs as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch points to torchao, which has no such CPU kernel
        quantise: Any = torch.ao.quantization.quantize_dynamic
        found: nn.Module = quantise(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    return found


class _Named(nn.Module):
    """The model as a function of its inputs in order, for the exporter."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Tensor) -> Tensor:
        """[B, N, W]."""
        output: Tensor = self.model(**dict(zip(self.names, values, strict=True)))[OUTPUT]
        return output


_last: tuple[Any, bytes] | None = None
"""What was exported last, and of which case: the engines of one shape share it."""


def _exported(model: nn.Module, inputs: Inputs) -> bytes:
    """The model as ONNX, for these shapes."""
    global _last
    for package in ("onnx", "onnxscript"):
        _installed(package)
    key = (str(model.config), {name: value.shape for name, value in inputs.items()})
    if _last is not None and _last[0] == key:
        return _last[1]
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            _Named(model, tuple(inputs)),
            tuple(inputs.values()),
            input_names=[*inputs],
            output_names=[OUTPUT],
            dynamo=True,
            verbose=False,
        )
    data: bytes = program.model_proto.SerializeToString()
    _last = (key, data)
    return data


def _onnx_int8(data: bytes) -> bytes:
    onnx = _installed("onnx")
    _installed("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="flashmix-") as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(onnx.load_from_string(data), path, weight_type=QuantType.QInt8)
        return path.read_bytes()


def _onnx(data: bytes) -> Call:
    package = _installed("onnxruntime")
    options = package.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = package.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = {one.name for one in session.get_inputs()}

    def call(**inputs: Tensor) -> SimpleNamespace:
        given = {name: value.numpy() for name, value in inputs.items() if name in names}
        return SimpleNamespace(**{OUTPUT: torch.from_numpy(session.run([OUTPUT], given)[0])})

    return call


def _openvino(data: bytes, inputs: Inputs) -> Call:
    package = _installed("openvino")
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    core = package.Core()
    compiled = core.compile_model(core.read_model(model=io.BytesIO(data)), "CPU", settings)
    names = {name for one in compiled.inputs for name in one.get_names()}

    def call(**inputs: Tensor) -> SimpleNamespace:
        given = {name: value.numpy() for name, value in inputs.items() if name in names}
        return SimpleNamespace(**{OUTPUT: torch.from_numpy(compiled(given)[0])})

    return call


EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}


def _installed(name: str) -> Any:
    """The package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return __import__(name)
    except ImportError:
        raise missing_extra(name, EXTRAS[name], "this alternative") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters say of their progress to themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
