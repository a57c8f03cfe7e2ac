"""What is measured: one case is one row of the results.

A case is plain data, so that it can be stored, sent to a worker process and compared.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Direction = Literal[
    "forward",
    "backward",
    "forward_backward",
    "train_step",
    "train",
    "properties",
    "inference",
    "inference_b1",
]
Subject = Literal["mixer", "block", "encoder", "op", "model"]
Lengths = Literal["full", "uniform", "data"]
Mode = Literal["eager", "compile", "reduce-overhead", "int8", "onnx", "onnx-int8", "openvino"]
COMPILED = ("compile", "reduce-overhead")
"""Modes that ``torch.compile`` makes."""
MODE_LABELS = {
    "compile": "torch.compile",
    "reduce-overhead": "torch.compile with CUDA graphs",
    "int8": "PyTorch int8",
    "onnx": "ONNX Runtime",
    "onnx-int8": "ONNX Runtime int8",
    "openvino": "OpenVINO",
}
"""What suite ``profile`` calls the vanilla model run so."""

COPY = "copy"
"""The mixer name of the cases that copy [B, N, D] once: the floor of every other case."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkCase:
    """One measurement.

    Attributes:
        suite: name of the suite it belongs to.
        mixer: a mixer as text, for example "local(window=64)", "copy", or an op's name.
        impl: the implementation asked for; "naive" and "sdpa" part the two attentions; for ops
            also the name of a baseline, for example "fftn".
        direction: "forward" (no gradients), "backward" (alone, after a forward that is not timed),
            "forward_backward", "train_step" (with the optimizer's step), "train" (a whole
            training), "properties" (numbers that are not times); of a model "inference" and
            "inference_b1" (a batch of one).
        batch, seq_len, dim, num_heads: B, N, D, H.
        dtype: name of a torch dtype.
        device: "cpu" or "cuda".
        seed: of inputs, initialisation and batch order.
        subject: what holds the mixer: itself, a block, a text classifier ("encoder"), an op, or an
            encoder of transformers ("model").
        autocast: name of the dtype to autocast to, or None.
        checkpoint: recompute the forward in the backward rather than save it.
        op, window, topk, modes: the op compared and its settings, for subject "op".
        seconds: length of a training, for "train".
        ranks: processes that the tokens are spread over, 1 for one of them alone; None where the
            case is not measured among ranks.
        weak: N is ``ranks`` times that of the case on one rank that it is compared with.
        graph: replay it as a CUDA graph; only its time is measured.
        lengths: "full", or "uniform": lengths drawn from N/4 to N, padded on the right, with a
            mask; or "data": those in ``token_lengths``. See :func:`mask_of`.
        model: the encoder, for subject "model".
        unpad: the model removes its padding once, before its first layer.
        mode: how the model is called: "eager", compiled by ``torch.compile``, with its linear maps
            in int8, or by another engine.
        config: the encoder's config as text, for suite "profile"; ``impl`` is then "free" where
            its mixing costs nothing.
        token_lengths: of a batch's sequences, where they come from data.
    """

    suite: str
    mixer: str
    impl: str = "auto"
    direction: Direction = "forward"
    batch: int
    seq_len: int
    dim: int
    num_heads: int
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    subject: Subject = "mixer"
    autocast: str | None = None
    checkpoint: bool = False
    op: str | None = None
    window: int | None = None
    topk: int | None = None
    modes: int | None = None
    seconds: float | None = None
    ranks: int | None = None
    weak: bool = False
    graph: bool = False
    lengths: Lengths = "full"
    model: str | None = None
    unpad: bool = False
    mode: Mode = "eager"
    config: str | None = None
    token_lengths: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """How people call it: "attention (naive)", "attention (fused)", "fnet", "fftn"."""
        if self.subject == "op":
            return COPY if self.mixer == COPY else self.impl
        if self.subject == "model":
            vanilla = {"naive": "vanilla eager", "sdpa": "vanilla SDPA", "free": "mixing free"}
            name = vanilla.get(self.impl, self.mixer) + (", unpadded" if self.unpad else "")
            if self.suite != "profile" or self.mode == "eager":
                return name
            called = MODE_LABELS[self.mode]
            return called if self.impl in vanilla and self.impl != "free" else f"{name}, {called}"
        kinds = {"naive": " (naive)", "sdpa": " (fused)"}
        name = self.mixer
        if self.mixer.partition("(")[0] == "attention" and self.impl in kinds:
            name = "attention" + kinds[self.impl]
        name += ", checkpointed" if self.checkpoint else ""
        name += f", {self.ranks} ranks" if self.ranks and self.ranks > 1 else ""
        name += ", CUDA graph" if self.graph else ""
        return name + (f", {self.autocast}" if self.autocast else "")

    @property
    def group(self) -> tuple[Any, ...]:
        """Cases of one group are compared with each other, so they are measured interleaved."""
        if self.direction in ("train", "properties"):
            return (self,)
        seq_len = self.seq_len // self.ranks if self.weak and self.ranks else self.seq_len
        shape = (self.batch, seq_len, self.dim, self.num_heads, self.dtype, self.device)
        options = (self.op, self.window, self.topk, self.modes)
        called: tuple[Any, ...] = (self.lengths, self.model, self.mode)
        if self.suite == "profile":  # how it is called is what is compared
            called = (self.lengths, self.model, self.config, self.token_lengths)
        # Across ranks a mixer is compared with itself alone, so that no two share the memory.
        among_ranks = self.ranks and (self.mixer, self.impl)
        return (self.direction, self.subject, *shape, *options, *called, among_ranks)

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> BenchmarkCase:
        """The case among the fields of a row; the measured fields are left aside."""
        names = [one.name for one in dataclasses.fields(cls)]
        given = {name: fields[name] for name in names if name in fields}
        if isinstance(lengths := given.get("token_lengths"), list):
            given["token_lengths"] = tuple(lengths)
        return cls(**given)


def lengths_of(case: BenchmarkCase) -> Tensor:
    """The lengths of a case's sequences, int64 [B] on the CPU, the same for the same seed."""
    if case.lengths == "full":
        return torch.full((case.batch,), case.seq_len)
    if case.token_lengths is not None:
        return torch.tensor(case.token_lengths)
    generator = torch.Generator().manual_seed(case.seed)
    shortest = max(1, case.seq_len // 4)
    return torch.randint(shortest, case.seq_len + 1, (case.batch,), generator=generator)


def mask_of(case: BenchmarkCase) -> Tensor | None:
    """True at the real tokens, bool [B, N] on the case's device; None where all of them are."""
    if case.lengths == "full":
        return None
    return (torch.arange(case.seq_len) < lengths_of(case)[:, None]).to(case.device)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named list of cases, and the settings of their measurement.

    Attributes:
        name: as given to ``flashmix bench``.
        about: one line.
        cases: in the order of measurement.
        min_samples, max_samples: bounds on the timed samples of a case.
        seconds_per_case: timing of a case stops after this long once it has min_samples.
        max_seconds_per_case: it stops after this long with as few as three samples.
        case_seconds_limit: the least time without progress after which a case counts as hung.
        notes: what a reader must know of this grid, for example that it was shrunk for the CPU.
    """

    name: str
    about: str
    cases: tuple[BenchmarkCase, ...]
    min_samples: int = 5
    max_samples: int = 25
    seconds_per_case: float = 0.4
    max_seconds_per_case: float = 30.0
    case_seconds_limit: float = 0.0
    notes: tuple[str, ...] = ()
