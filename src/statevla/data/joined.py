"""Several data sets of windows as one: demonstrations, and play beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

import torch

from statevla.data.datasets import TransitionDataset
from statevla.types import ModelInput, TransitionBatch

Batch = TypeVar("Batch", ModelInput, TransitionBatch)


class JoinedTransitions:
    """The windows of several `TransitionDataset`s, one after the other; a batch may hold windows of all of them.

    Args:
        parts: with the same model, `num_frames` and `frame_skip`.
    """

    def __init__(self, parts: Sequence[TransitionDataset]) -> None:
        self.parts = list(parts)
        self.num_draws = self.parts[0].num_draws
        lengths = torch.tensor([len(part) for part in self.parts])
        self._ends = lengths.cumsum(0)
        self._starts = self._ends - lengths

    def __len__(self) -> int:
        return int(self._ends[-1])

    def gather_drawn(self, indices: torch.Tensor, draws: torch.Tensor | None) -> TransitionBatch:
        """The batch of these items, in their order; `draws` as in `TransitionDataset.gather_drawn`."""
        batches, places = [], []
        for number, place in self._split(indices):
            own = indices[place] - self._starts[number]
            batches.append(self.parts[number].gather_drawn(own, None if draws is None else draws[place]))
            places.append(place)
        return batches[0] if len(batches) == 1 else _joined(batches, torch.cat(places).argsort())

    def episode_ids_of(self, indices: torch.Tensor) -> list[str]:
        """The episodes that items come from, for messages."""
        names = [""] * len(indices)
        for number, place in self._split(indices):
            found = self.parts[number].episode_ids_of(indices[place] - self._starts[number])
            for row, name in zip(place.tolist(), found):
                names[row] = name
        return names

    def _split(self, indices: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        """(part, places of its items in `indices`) for every part that has any."""
        part_of = torch.searchsorted(self._ends, indices, right=True)
        return [(number, (part_of == number).nonzero().flatten()) for number in part_of.unique().tolist()]


def _joined(batches: Sequence[Batch], order: torch.Tensor) -> Batch:
    """Concatenate every tensor of the batches and put its rows into `order`."""
    values = {}
    for field in fields(batches[0]):
        parts = [getattr(batch, field.name) for batch in batches]
        if isinstance(parts[0], ModelInput):
            values[field.name] = _joined(parts, order)
        else:
            values[field.name] = None if parts[0] is None else torch.cat(parts)[order]
    return type(batches[0])(**values)
