"""The ranks that share a sequence: PyTorch's collectives between them, and errors for hangs.

Everything travels by two functional collectives, an all-to-all and an all-reduce, which gloo and
NCCL both have.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as funcol
from torch.distributed.device_mesh import DeviceMesh

from flashmix.errors import ArgumentError, ParallelError

MESSAGE_BYTES = 400


class Ranks:
    """The ranks of a mesh with one dimension, in the order of the tokens they hold.

    Attributes:
        rank, size: this rank's place among them, and their number P.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        if not isinstance(mesh, DeviceMesh):
            raise ArgumentError(
                f"mesh must be a torch.distributed DeviceMesh, got {type(mesh).__name__}; make one "
                "with init_device_mesh(device, (ranks,))"
            )
        if mesh.ndim != 1:
            names = ", ".join(map(repr, mesh.mesh_dim_names or ())) or "no names"
            raise ArgumentError(
                f"mesh must have one dimension, got {mesh.ndim} ({names}); pass the one that the "
                "sequence is spread over, for example mesh['sequence']"
            )
        if mesh.get_coordinate() is None:
            raise ArgumentError(
                f"this rank is not part of the mesh {mesh.mesh.tolist()}; call this only on ranks "
                "that are"
            )
        self.group = mesh.get_group()
        self.rank = dist.get_rank(self.group)
        self.size = dist.get_world_size(self.group)
        # Small facts go by the CPU where the group can, so that no GPU is waited for.
        by_cpu = "cpu:" in dist.get_backend_config(self.group)
        self.facts_device = torch.device("cpu" if by_cpu else mesh.device_type)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def all_to_all(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Send ``parts[r]`` to rank r; return what each rank sent here, flat.

        Args:
            parts: one tensor for each rank, of one dtype and device; they may be empty.
            sizes: elements that come from each rank.
        """
        return self.start(parts, sizes)()

    def start(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> Callable[[], list[Tensor]]:
        """Begin :meth:`all_to_all`; calling what it returns waits for the end."""
        sent = [part.numel() for part in parts]
        flat = parts[0].new_empty(sum(sent))
        for piece, part in zip(flat.split(sent), parts, strict=True):
            piece.view(part.shape).copy_(part)
        finish = self.start_flat(flat, sent, sizes)
        return lambda: list(finish().split(list(sizes)))

    def start_flat(
        self, flat: Tensor, sent: Sequence[int], sizes: Sequence[int]
    ) -> Callable[[], Tensor]:
        """As :meth:`start`, of parts that lie end to end, ``sent[r]`` elements for rank r."""
        with self._explained():
            coming = funcol.all_to_all_single(flat, list(sizes), list(sent), self.group)

        def finish() -> Tensor:
            with self._explained():
                return funcol.wait_tensor(coming)

        return finish

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the ranks."""
        with self._explained():
            return funcol.wait_tensor(funcol.all_reduce(x.contiguous(), "sum", self.group))

    def broadcast(self, x: Tensor) -> Tensor:
        """The first rank's ``x``."""
        with self._explained():
            return funcol.wait_tensor(funcol.broadcast(x.contiguous(), 0, self.group))

    def share(self, x: Tensor) -> list[Tensor]:
        """Each rank's ``x``; all of one shape."""
        flat = self.all_to_all([x] * self.size, [x.numel()] * self.size)
        return [part.view(x.shape) for part in flat]

    def agree(
        self,
        where: str,
        facts: Mapping[str, int],
        free: Sequence[str] = (),
        labels: Mapping[str, Sequence[object]] = MappingProxyType({}),
    ) -> list[list[int]]:
        """Every rank's ``facts``, once all but those named in ``free`` are the same on all.

        Args:
            where: who asks, for messages.
            facts: numbers by name; the same names on every rank.
            free: names whose numbers may differ.
            labels: what the numbers of a name stand for, for messages.

        Raises:
            ParallelError: on every rank, where they differ or a rank called :meth:`refuse`.
        """
        rows = self._rows([1, *facts.values()])
        refused = [rank for rank, row in enumerate(rows) if not row[0]]
        if refused:
            messages = self._messages("")
            raise ParallelError(f"{where}: rank {refused[0]} refused: {messages[refused[0]]}")
        rows = [row[1:] for row in rows]
        for name, values in zip(facts, zip(*rows, strict=True), strict=True):
            if name not in free and len(set(values)) > 1:
                shown = [labels[name][value] for value in values] if name in labels else values
                raise ParallelError(
                    f"{where}: the ranks differ in {name}: "
                    + ", ".join(f"rank {rank} has {value}" for rank, value in enumerate(shown))
                    + f"; every rank must have the same {name}"
                )
        return rows

    def refuse(self, message: str, count: int) -> None:
        """Take part in :meth:`agree` on ``count`` facts, telling the others why this rank fails."""
        self._rows([0] * (count + 1))
        self._messages(message)

    def _rows(self, row: list[int]) -> list[list[int]]:
        facts = torch.tensor(row, dtype=torch.int64, device=self.facts_device)
        return [row.tolist() for row in self.share(facts)]

    def _messages(self, message: str) -> list[str]:
        raw = message.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES)
        text = torch.tensor(list(raw), dtype=torch.uint8, device=self.facts_device)
        return [bytes(one.tolist()).decode(errors="replace").strip() for one in self.share(text)]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ParallelError(
                f"rank {self.rank} of {self.size} waited for the others in vain: one of them "
                "failed, died, or took longer than the process group's timeout; the first error "
                f"among the ranks tells which. PyTorch says: {error}"
            ) from error


def starts(sizes: Sequence[int]) -> list[int]:
    """Where each of ``sizes`` laid end to end begins."""
    return [0, *itertools.accumulate(sizes)][:-1]


def even_split(total: int, parts: int) -> list[int]:
    """``total`` in ``parts`` sizes that differ by at most one, the larger first."""
    return [total // parts + (index < total % parts) for index in range(parts)]
