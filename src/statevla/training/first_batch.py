"""The first batch of a run, logged: shapes, and a picture of exactly what the model sees."""

from __future__ import annotations

from pathlib import Path

import torch

from statevla.training.storage import writing
from statevla.types import ChunkBatch, ModelInput, TransitionBatch

MAX_SAMPLES = 4


def describe(batch: TransitionBatch | ChunkBatch) -> dict[str, list[int]]:
    """Name → shape of every tensor of a batch."""
    tensors = {"actions": batch.actions}
    if isinstance(batch, ChunkBatch):
        tensors["is_pad"] = batch.is_pad
        if batch.state is not None:
            tensors["state"] = batch.state
    if batch.observation is not None:
        tensors |= vars(batch.observation)
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def draw_observations(observation: ModelInput, titles: list[str], path: Path) -> None:
    """Write a PNG: a row per sample and retained frame, a column per camera, as the model gets them.

    Args:
        observation: leading dims `[B]` or `[B, T]`.
        titles: one per sample, such as episode ids.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images = observation.images.detach().float().cpu()
    images = images.unsqueeze(1) if images.ndim == 5 else images
    count, time, cameras = min(len(images), MAX_SAMPLES), images.shape[1], images.shape[2]
    figure = Figure(figsize=(2.0 * cameras * time, 2.3 * count), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(count, cameras * time, squeeze=False)
    for sample in range(count):
        for step in range(time):
            for camera in range(cameras):
                axis = axes[sample][step * cameras + camera]
                axis.imshow(((images[sample, step, camera] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy())
                axis.set_axis_off()
                axis.set_title(f"frame {step}, camera {camera}", fontsize=7)
        axes[sample][0].text(0, 1.25, titles[sample], fontsize=7, transform=axes[sample][0].transAxes)
    low, high = torch.aminmax(images)
    figure.suptitle(f"model input, values {low:.2f} to {high:.2f}", fontsize=8)
    with writing(path):
        figure.savefig(path, dpi=110)
