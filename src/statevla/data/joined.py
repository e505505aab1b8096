"""Several data sets as one, each as often as its weight says: two laboratories, demonstrations and play."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeVar

import torch

from statevla.types import ChunkBatch, ModelInput, TransitionBatch

Batch = TypeVar("Batch", ModelInput, TransitionBatch, ChunkBatch)


class NamedSamples(Protocol):
    """What can be joined: `TransitionDataset`, `ChunkDataset`, `LatentSamples`."""

    num_draws: int

    def __len__(self) -> int: ...

    def gather_drawn(self, indices: torch.Tensor, draws: torch.Tensor | None) -> Any: ...

    def episode_ids_of(self, indices: torch.Tensor) -> list[str]: ...


class JoinedSamples:
    """The items of several data sets, one after the other; a batch may hold items of all of them.

    Args:
        parts: of the same kind, for the same model.
        weights: how often each item of a part counts; of a fraction, evenly spread items count once more.
    """

    def __init__(self, parts: Sequence[NamedSamples], weights: Sequence[float]) -> None:
        self.parts = list(parts)
        self.num_draws = self.parts[0].num_draws
        items = [_repeated(len(part), weight) for part, weight in zip(self.parts, weights, strict=True)]
        self._item = torch.cat(items)
        self._part = torch.repeat_interleave(torch.arange(len(items)), torch.tensor([len(own) for own in items]))

    def __len__(self) -> int:
        return len(self._item)

    def gather_drawn(self, indices: torch.Tensor, draws: torch.Tensor | None) -> Any:
        """The batch of these items, in their order; `draws` as the parts take them."""
        batches, places = [], []
        for number, place in self._split(indices):
            own = self._item[indices[place]]
            batches.append(self.parts[number].gather_drawn(own, None if draws is None else draws[place]))
            places.append(place)
        return batches[0] if len(batches) == 1 else _joined(batches, torch.cat(places).argsort())

    def observations(self, indices: torch.Tensor) -> ModelInput:
        """What stored states of these items were made from; of parts that have such states."""
        found = [(self.parts[number], place) for number, place in self._split(indices)]
        parts = [part.observations(self._item[indices[place]]) for part, place in found]  # type: ignore[attr-defined]
        return _joined(parts, torch.cat([place for _, place in found]).argsort())

    def episode_ids_of(self, indices: torch.Tensor) -> list[str]:
        """The episodes that items come from, for messages."""
        names = [""] * len(indices)
        for number, place in self._split(indices):
            found = self.parts[number].episode_ids_of(self._item[indices[place]])
            for row, name in zip(place.tolist(), found):
                names[row] = name
        return names

    def _split(self, indices: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        """(part, places of its items in `indices`) for every part that has any."""
        part_of = self._part[indices]
        return [(number, (part_of == number).nonzero().flatten()) for number in part_of.unique().tolist()]


def _repeated(count: int, weight: float) -> torch.Tensor:
    """Items 0 to `count` - 1, `weight` times each, int64."""
    whole, share = divmod(weight, 1.0)
    more = round(share * count)
    spread = torch.linspace(0, count - 1, more).round().long() if more else torch.zeros(0, dtype=torch.int64)
    return torch.cat([torch.arange(count).repeat(int(whole)), spread])


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
