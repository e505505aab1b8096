"""Losses on held-out episodes, the same numbers whatever the number of processes."""

from __future__ import annotations

from typing import Any

import torch

from statevla.config import TrainingConfig
from statevla.machine.device import autocast
from statevla.model.jepa.loss import JepaLosses
from statevla.model.statevla_model import ActionLosses
from statevla.training.phases import PhaseLoss, num_targets
from statevla.training.setup import RunContext

VALIDATION_SEED = 0x5EED


@torch.no_grad()
def validate(
    loss: PhaseLoss, samples: Any, batch_size: int, settings: TrainingConfig, context: RunContext
) -> dict[str, float]:
    """Mean of every loss term over evenly spread held-out samples, and `loss`, what "best" is chosen by.

    Batches, their noise and their order do not change between calls. Batch statistics (phase 1) are those of each
    validation batch. Processes share the batches out.

    Args:
        loss: of the phase, on the device of `context`.
        samples: `gather_drawn`, `__len__`.
        batch_size: samples per batch.
        settings: the largest number of batches, and the precision, which is as in training.
    """
    count, device, processes = len(samples), context.device, context.processes
    num_batches = max(1, min(settings.max_validation_batches, count // batch_size))
    wanted = min(count, num_batches * batch_size)
    # Spread over the episodes: neighbouring samples say almost the same. Shuffled, as phase 1 compares samples.
    spread = torch.linspace(0, count - 1, wanted).round().long()
    order = spread[torch.randperm(wanted, generator=torch.Generator().manual_seed(VALIDATION_SEED))]
    names = (JepaLosses if loss.phase == "1" else ActionLosses)._fields
    sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)  # of every term, and of the weights
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
                with autocast(device, settings.precision):
                    _, terms = loss(batch)
                values = torch.stack([*(terms[name].double() for name in names), sums.new_ones(())])
                sums += values * num_targets(batch)
    finally:
        loss.train(was_training)
    processes.sum(sums)
    *totals, weight_sum = sums.tolist()
    terms_mean = {name: total / weight_sum for name, total in zip(names, totals)}
    return {"loss": terms_mean["total"], **terms_mean}
