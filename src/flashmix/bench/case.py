"""What is measured: one case is one row of the results.

A case is plain data, so that it can be stored, sent to a worker process and compared.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["forward", "backward", "forward_backward", "train_step", "train", "properties"]
Subject = Literal["mixer", "block", "encoder", "op"]

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
            training), or "properties" (numbers that are not times).
        batch, seq_len, dim, num_heads: B, N, D, H.
        dtype: name of a torch dtype.
        device: "cpu" or "cuda".
        seed: of inputs, initialisation and batch order.
        subject: what holds the mixer: itself, a block, a text classifier ("encoder"), or an op.
        autocast: name of the dtype to autocast to, or None.
        checkpoint: recompute the forward in the backward rather than save it.
        op, window, topk, modes: the op compared and its settings, for subject "op".
        seconds: length of a training, for "train".
        ranks: processes that the tokens are spread over, 1 for one of them alone; None where the
            case is not measured among ranks.
        weak: N is ``ranks`` times that of the case on one rank that it is compared with.
        graph: replay it as a CUDA graph; only its time is measured.
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

    @property
    def label(self) -> str:
        """How people call it: "attention (naive)", "attention (fused)", "fnet", "fftn"."""
        if self.subject == "op":
            return COPY if self.mixer == COPY else self.impl
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
        # Across ranks a mixer is compared with itself alone, so that no two share the memory.
        among_ranks = self.ranks and (self.mixer, self.impl)
        return (self.direction, self.subject, *shape, *options, among_ranks)

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> BenchmarkCase:
        """The case among the fields of a row; the measured fields are left aside."""
        names = [one.name for one in dataclasses.fields(cls)]
        return cls(**{name: fields[name] for name in names if name in fields})


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
        notes: what a reader must know of this grid, for example that it was shrunk for the CPU.
    """

    name: str
    about: str
    cases: tuple[BenchmarkCase, ...]
    min_samples: int = 5
    max_samples: int = 25
    seconds_per_case: float = 0.4
    max_seconds_per_case: float = 30.0
    notes: tuple[str, ...] = ()
