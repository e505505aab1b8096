"""Losses on held-out episodes, the same numbers whatever the number of processes."""

from __future__ import annotations

from typing import Any

import torch

from statevla.machine.device import autocast
from statevla.machine.processes import Processes
from statevla.training.phases import PhaseLoss, num_targets

VALIDATION_SEED = 0x5EED


@torch.no_grad()
def validate(
    loss: PhaseLoss,
    samples: Any,
    batch_size: int,
    max_batches: int,
    precision: str,
    device: torch.device,
    processes: Processes,
) -> dict[str, float]:
    """Mean of every loss term over evenly spread held-out samples, and `loss`, what "best" is chosen by.

    Batches, their noise and their order do not change between calls. Batch statistics (phase 1) are those of each
    validation batch. Processes share the batches out.

    Args:
        loss: of the phase, on `device`.
        samples: `gather_drawn`, `__len__`.
        batch_size: samples per batch.
        max_batches: an upper bound on batches.
        precision: as in training.
    """
    count = len(samples)
    num_batches = max(1, min(max_batches, count // batch_size))
    wanted = min(count, num_batches * batch_size)
    # Spread over the episodes: neighbouring samples say almost the same. Shuffled, as phase 1 compares samples.
    spread = torch.linspace(0, count - 1, wanted).round().long()
    order = spread[torch.randperm(wanted, generator=torch.Generator().manual_seed(VALIDATION_SEED))]
    names = None
    sums = torch.zeros(0, dtype=torch.float64, device=device)
    gather, loss.gather = loss.gather, None
    was_training = loss.training
    loss.eval()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            for number, indices in enumerate(order.chunk(num_batches)):
                if number % processes.world_size != processes.rank:
                    continue
                torch.manual_seed(VALIDATION_SEED + number)
                batch = samples.gather_drawn(indices, None).to(device)
                with autocast(device, precision):
                    _, terms = loss(batch)
                weight = num_targets(batch)
                row = torch.stack([*(value.double() * weight for value in terms.values())])
                row = torch.cat([row, row.new_tensor([weight])])
                names, sums = list(terms), row if names is None else sums + row
    finally:
        loss.gather = gather
        loss.train(was_training)
    if names is None:  # more processes than batches: take part in the sum with nothing
        names, sums = term_names(loss.phase), torch.zeros(len(term_names(loss.phase)) + 1, dtype=torch.float64)
        sums = sums.to(device)
    processes.sum(sums)
    *totals, weight_sum = sums.tolist()
    terms_mean = {name: total / weight_sum for name, total in zip(names, totals)}
    return {"loss": terms_mean["total"], **terms_mean}


def term_names(phase: str) -> list[str]:
    """Names of a phase's loss terms, in order."""
    from statevla.model.jepa.loss import JepaLosses
    from statevla.model.statevla_model import ActionLosses

    return list((JepaLosses if phase == "1" else ActionLosses)._fields)
