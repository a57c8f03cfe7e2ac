"""The ranks that share a sequence: collectives between them, and errors instead of hangs.

Only two collectives carry tensors, an all-to-all and an all-reduce, which gloo and NCCL both have.
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
"""Longest error message that a rank sends to the others, in bytes."""
_TAG = 0x666D
"""Tag of the metadata messages, which sets them apart from others of the process group."""
_CPU = torch.device("cpu")
_OPS = torch.ops._c10d_functional
"""The functional collectives themselves: their Python wrappers cost more than a kernel's launch."""


class Ranks:
    """The ranks of a mesh with one dimension, in the order of the tokens they hold.

    Attributes:
        group: their process group.
        rank, size: this rank's index among them, and their number P.
        device_type: "cpu" or "cuda".
        shared: the state that :mod:`~flashmix.parallel.comm.shared_memory` keeps per group.

    Raises:
        ArgumentError: ``mesh`` is no DeviceMesh, has several dimensions, or lacks this process.
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
                f"mesh must have one dimension, got {mesh.ndim} ({names}); pass the dimension that "
                "the sequence is sharded over, for example mesh['sequence']"
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
        """Send ``parts[r]`` to rank r, and return what each rank sent to this one, flat.

        Args:
            parts: one tensor per rank, of one dtype and device; they may be empty.
            sizes: elements that come from each rank.
        """
        return self.start_all_to_all(parts, sizes)()

    def start_all_to_all(
        self, parts: Sequence[Tensor], sizes: Sequence[int]
    ) -> Callable[[], list[Tensor]]:
        """Start :meth:`all_to_all`; calling the returned function waits for its result."""
        sent = [part.numel() for part in parts]
        flat = parts[0].new_empty(sum(sent))
        for target, part in zip(flat.split(sent), parts, strict=True):
            target.view(part.shape).copy_(part)
        finish = self.start_all_to_all_flat(flat, sent, sizes)
        return lambda: list(finish().split(list(sizes)))

    def start_all_to_all_flat(
        self, flat: Tensor, sent: Sequence[int], sizes: Sequence[int]
    ) -> Callable[[], Tensor]:
        """As :meth:`start_all_to_all`, with all parts in one tensor: ``sent[r]`` elements each."""
        with self.translate_errors():
            pending = _OPS.all_to_all_single(flat, list(sizes), list(sent), self.group.group_name)
        return lambda: self._wait(pending)

    def _wait(self, pending: Tensor) -> Tensor:
        with self.translate_errors():
            result: Tensor = _OPS.wait_tensor(pending)
        return result

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of ``x`` across the ranks."""
        return self.all_reduce_(x.clone(memory_format=torch.contiguous_format))

    def all_reduce_(self, x: Tensor) -> Tensor:
        """As :meth:`all_reduce`, in place; ``x`` is contiguous."""
        with self.translate_errors():
            self.group.allreduce([x]).wait()
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """The first rank's ``x``."""
        with self.translate_errors():
            pending = _OPS.broadcast(x.contiguous(), 0, self.group.group_name)
        return self._wait(pending)

    def check_consistent(
        self,
        where: str,
        metadata: Mapping[str, int],
        may_differ: Sequence[str] = (),
        labels: Mapping[str, Sequence[object]] = MappingProxyType({}),
    ) -> list[list[int]]:
        """Gather every rank's ``metadata``, and check that the ranks agree on it.

        Args:
            where: the caller's name, for messages.
            metadata: integers by name; every rank passes the same names.
            may_differ: names whose integers may differ between ranks.
            labels: for some names, the values that their integers are indices of, for messages.

        Returns:
            The integers of each rank, in the order of ``metadata``.

        Raises:
            ParallelError: on every rank, where the ranks differ or one called
                :meth:`broadcast_error`.
        """
        rows = self.all_gather_ints([1, *metadata.values()])
        failed = [rank for rank, row in enumerate(rows) if not row[0]]
        if failed:
            messages = self._gather_messages("")
            raise ParallelError(f"{where}: rank {failed[0]} failed: {messages[failed[0]]}")
        rows = [row[1:] for row in rows]
        for name, values in zip(metadata, zip(*rows, strict=True), strict=True):
            if name not in may_differ and len(set(values)) > 1:
                shown = [labels[name][value] for value in values] if name in labels else values
                raise ParallelError(
                    f"{where}: the ranks differ in {name}: "
                    + ", ".join(f"rank {rank} has {value}" for rank, value in enumerate(shown))
                    + f"; every rank must have the same {name}"
                )
        return rows

    def broadcast_error(self, message: str, count: int) -> None:
        """Answer the others' :meth:`check_consistent` of ``count`` integers with an error message.

        They raise it as a ParallelError; the caller raises its own error afterwards.
        """
        self.all_gather_ints([0] * (count + 1))
        self._gather_messages(message)

    def all_gather_ints(self, row: list[int]) -> list[list[int]]:
        """Every rank's ``row``, all of one length; returns once all ranks have called it."""
        return self._all_gather(row, torch.int64)

    def _gather_messages(self, message: str) -> list[str]:
        raw = message.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES)
        gathered = self._all_gather(list(raw), torch.uint8)
        return [bytes(row).decode(errors="replace").strip() for row in gathered]

    def _all_gather(self, numbers: list[int], dtype: torch.dtype) -> list[list[int]]:
        """Each rank's ``numbers``, as many on all: through a CPU backend where there is one.

        So no GPU is waited for. The mesh's group may have a backend for GPUs alone where the group
        of all processes has one for CPUs too; then the ranks send to each other through that group.
        """
        world = dist.group.WORLD
        if _has_cpu_backend(self.group):
            return self._all_gather_by_messages(self.group, range(self.size), numbers, dtype)
        if world is not None and _has_cpu_backend(world):
            places = dist.get_process_group_ranks(self.group)
            return self._all_gather_by_messages(world, places, numbers, dtype)
        flat = torch.tensor(numbers * self.size, dtype=dtype, device=self.device_type)
        sizes = [len(numbers)] * self.size
        gathered = self.start_all_to_all_flat(flat, sizes, sizes)()
        rows: list[list[int]] = gathered.view(self.size, -1).tolist()
        return rows

    def _all_gather_by_messages(
        self,
        group: dist.ProcessGroup,
        places: Sequence[int],
        numbers: list[int],
        dtype: torch.dtype,
    ) -> list[list[int]]:
        """Gather by a message between each two ranks: cheaper than a collective of a few bytes.

        Args:
            group: the process group to send through.
            places: the index of each rank in that group.
            numbers, dtype: see :meth:`_all_gather`.
        """
        gathered = torch.tensor([numbers] * self.size, dtype=dtype)
        rows = gathered.unbind()
        # Without an argument, a message would keep to the timeout that the group was made with.
        timeout = group._get_backend(_CPU).options._timeout
        with self.translate_errors():
            works = []
            for rank, place in enumerate(places):
                if rank != self.rank:
                    works.append(group.send([rows[self.rank]], place, _TAG))
                    works.append(group.recv([rows[rank]], place, _TAG))
            for work in works:
                work.wait(timeout)
        return gathered.tolist()

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise a collective's RuntimeError as a ParallelError that says what it means."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ParallelError(
                f"rank {self.rank} of {self.size} got no answer from the others: one of them "
                "failed, died, or took longer than the process group's timeout; look for the first "
                f"error among the ranks. PyTorch's error: {error}"
            ) from error


def _has_cpu_backend(group: dist.ProcessGroup) -> bool:
    return _CPU in group._device_types


def offsets_of(sizes: Sequence[int]) -> list[int]:
    """Where each of consecutive parts of these ``sizes`` begins."""
    return [0, *itertools.accumulate(sizes)][:-1]


def even_split(total: int, parts: int) -> list[int]:
    """``total`` in ``parts`` sizes that differ by at most one, the larger first."""
    return [total // parts + (index < total % parts) for index in range(parts)]
