"""The ranks that share a sequence: PyTorch's collectives between them, and errors for hangs.

What mixers need travels by two collectives, an all-to-all and an all-reduce, which gloo and NCCL
both have.
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
from torch.distributed.device_mesh import DeviceMesh

from flashmix.errors import ArgumentError, ParallelError

MESSAGE_BYTES = 400
_TAG = 0x666D
"""Of what ranks tell each other, so that nobody else's messages are taken for it."""
_CPU = torch.device("cpu")
_OPS = torch.ops._c10d_functional
"""The functional collectives themselves: their Python wrappers cost more than a kernel's launch."""


class Ranks:
    """The ranks of a mesh with one dimension, in the order of the tokens they hold.

    Attributes:
        rank, size: this rank's place among them, and their number P.
        shared: what ``_memory`` keeps of them.
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
        self.device_type = mesh.device_type
        self.shared: Any = None

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
        with self.explained():
            coming = _OPS.all_to_all_single(flat, list(sizes), list(sent), self.group.group_name)
        return lambda: self._wait(coming)

    def _wait(self, coming: Tensor) -> Tensor:
        with self.explained():
            here: Tensor = _OPS.wait_tensor(coming)
        return here

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the ranks."""
        return self.add_up(x.clone(memory_format=torch.contiguous_format))

    def add_up(self, x: Tensor) -> Tensor:
        """The sum over the ranks of ``x``, which is contiguous, in its place."""
        with self.explained():
            self.group.allreduce([x]).wait()
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """The first rank's ``x``."""
        with self.explained():
            coming = _OPS.broadcast(x.contiguous(), 0, self.group.group_name)
        return self._wait(coming)

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
        rows = self.tell([1, *facts.values()])
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
        self.tell([0] * (count + 1))
        self._messages(message)

    def tell(self, row: list[int]) -> list[list[int]]:
        """Every rank's ``row``, all as long; none returns before all have called it."""
        return self._told(row, torch.int64)

    def _messages(self, message: str) -> list[str]:
        raw = message.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES)
        told = self._told(list(raw), torch.uint8)
        return [bytes(one).decode(errors="replace").strip() for one in told]

    def _told(self, numbers: list[int], dtype: torch.dtype) -> list[list[int]]:
        """Each rank's ``numbers``, as many on all: by the CPU if there is a way.

        So no GPU is waited for. A mesh's group may know GPUs alone where the group of all processes
        knows both; then these ranks send to each other through that one.
        """
        world = dist.group.WORLD
        if _by_cpu(self.group):
            return self._told_through(self.group, range(self.size), numbers, dtype)
        if world is not None and _by_cpu(world):
            places = dist.get_process_group_ranks(self.group)
            return self._told_through(world, places, numbers, dtype)
        flat = torch.tensor(numbers * self.size, dtype=dtype, device=self.device_type)
        sizes = [len(numbers)] * self.size
        told = self.start_flat(flat, sizes, sizes)()
        rows: list[list[int]] = told.view(self.size, -1).tolist()
        return rows

    def _told_through(
        self,
        group: dist.ProcessGroup,
        places: Sequence[int],
        numbers: list[int],
        dtype: torch.dtype,
    ) -> list[list[int]]:
        """From each rank to each other, which costs less than a collective of so few bytes.

        Args:
            group: what to send through.
            places: of these ranks in it.
            numbers, dtype: as :meth:`_told` has them.
        """
        told = torch.tensor([numbers] * self.size, dtype=dtype)
        rows = told.unbind()
        # Messages from one to one would wait as long as when the group was made, whatever was set.
        timeout = group._get_backend(_CPU).options._timeout
        with self.explained():
            works = []
            for rank, place in enumerate(places):
                if rank != self.rank:
                    works.append(group.send([rows[self.rank]], place, _TAG))
                    works.append(group.recv([rows[rank]], place, _TAG))
            for work in works:
                work.wait(timeout)
        return told.tolist()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say, where a collective fails, what that means."""
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


def _by_cpu(group: dist.ProcessGroup) -> bool:
    return _CPU in group._device_types


def starts(sizes: Sequence[int]) -> list[int]:
    """Where each of ``sizes`` laid end to end begins."""
    return [0, *itertools.accumulate(sizes)][:-1]


def even_split(total: int, parts: int) -> list[int]:
    """``total`` in ``parts`` sizes that differ by at most one, the larger first."""
    return [total // parts + (index < total % parts) for index in range(parts)]
