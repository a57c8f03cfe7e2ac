"""What is measured: one case is one row of the results.

A case is plain data, so that it can be stored, sent to a worker process and compared.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["forward", "forward_backward", "train"]

COPY = "copy"
"""The mixer name of the cases that copy [B, N, D] once: the floor of every other case."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement.

    Attributes:
        suite: name of the suite it belongs to.
        mixer: a mixer as text, for example "local(window=64)", or "copy".
        impl: the implementation asked for; "naive" and "sdpa" part the two attentions.
        direction: "forward" (no gradients), "forward_backward", or "train" (a whole training).
        batch, seq_len, dim, num_heads: B, N, D, H.
        dtype: name of a torch dtype.
        device: "cpu" or "cuda".
        seed: of inputs, initialisation and batch order.
        seconds: length of a training, for "train".
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
    seconds: float | None = None

    @property
    def label(self) -> str:
        """How people call the mixer: "attention (naive)", "attention (fused)", "fnet"."""
        kinds = {"naive": "naive", "sdpa": "fused"}
        if self.mixer == "attention" and self.impl in kinds:
            return f"attention ({kinds[self.impl]})"
        return self.mixer

    @property
    def group(self) -> tuple[Any, ...]:
        """Cases of one group are compared with each other, so they are measured interleaved."""
        if self.direction == "train":
            return (self,)
        return (self.direction, self.batch, self.seq_len, self.dim, self.dtype, self.device)

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Case:
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
    """

    name: str
    about: str
    cases: tuple[Case, ...]
    min_samples: int = 5
    max_samples: int = 25
    seconds_per_case: float = 0.4
