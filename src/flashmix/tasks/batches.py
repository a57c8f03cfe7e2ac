"""Batches as a function of the seed and the step alone, so that a run can go on at any step.

Shapes: n examples, N tokens of the longest, B examples in a batch, R packed rows of L tokens,
K masked tokens of a row.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flashmix.tasks.tokens import Special

MASKED_SHARE = 0.15
MASK_SEED = 1


class Batch(NamedTuple):
    """A batch of sequences.

    Attributes:
        ids: int64 [B, N].
        mask: bool [B, N], True = a real token; None where there is no padding.
        target: int64, classes [B], or the tokens that stood at ``places``, [B, K].
        places: int64 [B, K], the masked positions; None in classification.
    """

    ids: Tensor
    mask: Tensor | None
    target: Tensor
    places: Tensor | None = None

    def part(self, rank: int, world: int) -> Batch:
        """Every ``world``-th example, from ``rank`` on."""
        cut = slice(rank, None, world)
        return Batch(
            self.ids[cut],
            None if self.mask is None else self.mask[cut],
            self.target[cut],
            None if self.places is None else self.places[cut],
        )


def derived_seed(*parts: int) -> int:
    """One seed of several numbers, different for different numbers."""
    seed = 0
    for part in parts:
        seed = (seed * 6364136223846793005 + part + 1442695040888963407) % (1 << 63)
    return seed


def generator(*parts: int) -> torch.Generator:
    """A generator on the CPU, seeded by several numbers."""
    return torch.Generator().manual_seed(derived_seed(*parts))


@dataclass(frozen=True)
class Labelled:
    """Padded examples, their lengths and classes: ids [n, N], lengths [n], labels [n].

    ids and labels may be on a device; lengths stay on the CPU, so that no step waits for it.
    """

    ids: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: str) -> Labelled:
        """A copy with ids and labels on ``device``."""
        return Labelled(self.ids.to(device), self.lengths, self.labels.to(device))

    def take(self, rows: Tensor) -> Labelled:
        """The examples ``rows``, int64 on the CPU."""
        there = rows.to(self.ids.device)
        return Labelled(self.ids[there], self.lengths[rows], self.labels[there])

    def batch(self, rows: Tensor) -> Batch:
        """A batch, padded to its longest example; without a mask where all are as long."""
        lengths = self.lengths[rows]
        longest, device = int(lengths.max()), self.ids.device
        there = rows.to(device, non_blocking=True)
        mask = None
        if int(lengths.min()) != longest:
            mask = torch.arange(longest, device=device) < lengths.to(device)[:, None]
        return Batch(self.ids[there, :longest].long(), mask, self.labels[there])

    def sorted_rows(self, batch_size: int) -> list[Tensor]:
        """All rows, longest first, in batches."""
        return list(self.lengths.argsort(descending=True, stable=True).split(batch_size))


class TrainingBatches:
    """Batches of equal length, as near as may be, in an order that differs from epoch to epoch.

    Examples are shuffled, sorted by length, cut into batches, and the batches shuffled: hardly any
    padding, and mixers that treat each true length apart meet one or two of them in a batch.
    """

    def __init__(self, data: Labelled, batch_size: int, seed: int) -> None:
        self._data, self._batch_size, self._seed = data, batch_size, seed
        self.per_epoch = -(-len(data) // batch_size)
        self._order = functools.lru_cache(maxsize=1)(self._make_order)

    def _make_order(self, epoch: int) -> list[Tensor]:
        source = generator(self._seed, epoch)
        shuffled = torch.randperm(len(self._data), generator=source)
        by_length = shuffled[self._data.lengths[shuffled].argsort(stable=True)]
        cut = by_length.split(self._batch_size)
        return [cut[i] for i in torch.randperm(len(cut), generator=source).tolist()]

    def typical(self, count: int) -> list[int]:
        """Steps of the first epoch whose batches' lengths represent those of all."""
        longest = torch.stack([self._data.lengths[rows].max() for rows in self._order(0)])
        count = min(count, len(longest))
        middle = (torch.arange(count) + 0.5) * len(longest) / count
        return longest.argsort(stable=True)[middle.long()].tolist()

    def __call__(self, step: int) -> Batch:
        """The batch of a step, counted from zero over all epochs."""
        epoch, place = divmod(step, self.per_epoch)
        return self._data.batch(self._order(epoch)[place])


class MaskedBatches:
    """Packed rows with 15 % of the tokens hidden, new ones each time (Devlin et al. 2019).

    Of the hidden tokens 80 % read [MASK], 10 % a random token, 10 % what they were. Every row
    hides as many, and [CLS] is never hidden. A pass over the rows takes ``per_pass`` steps; what
    training calls an epoch is ``per_epoch`` steps, a pass where None.
    """

    def __init__(
        self,
        rows: Tensor,
        special: Special,
        batch_size: int,
        seed: int,
        per_epoch: int | None = None,
    ) -> None:
        self._rows, self._special, self._seed = rows, special, seed
        self._batch_size = min(batch_size, len(rows))
        self.per_pass = len(rows) // self._batch_size
        self.per_epoch = per_epoch or self.per_pass
        self.hidden = max(1, round(MASKED_SHARE * rows.shape[1]))
        self._order = functools.lru_cache(maxsize=1)(
            lambda number: torch.randperm(len(rows), generator=generator(seed, number))
        )

    def __call__(self, step: int) -> Batch:
        """The batch of a step, counted from zero over all epochs."""
        number, place = divmod(step, self.per_pass)
        first = place * self._batch_size
        device = self._rows.device
        rows = self._order(number)[first : first + self._batch_size].to(device)
        ids = self._rows[rows].long()
        source = torch.Generator(device).manual_seed(derived_seed(self._seed, step, MASK_SEED))
        noise = torch.rand(ids.shape, generator=source, device=device)
        noise[:, 0] = 0
        places = noise.topk(self.hidden).indices
        target = ids.gather(1, places)
        kind = torch.rand(places.shape, generator=source, device=device)
        random = torch.randint(self._special.size, places.shape, generator=source, device=device)
        shown = torch.where(kind < 0.8, self._special.mask, target)
        shown = torch.where(kind > 0.9, random, shown)
        return Batch(ids.scatter(1, places, shown), None, target, places)
