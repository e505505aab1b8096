"""The first batch of a run, logged: shapes, and a picture of exactly what the model sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from statevla.machine.extras import missing
from statevla.machine.storage import replacing, writing
from statevla.types import ChunkBatch, ModelInput, TransitionBatch

MAX_SAMPLES = 4


def describe(batch: TransitionBatch | ChunkBatch) -> dict[str, list[int]]:
    """Name → shape of every tensor of a batch."""
    tensors = {name: tensor for name, tensor in vars(batch).items() if name != "observation"}
    if batch.observation is not None:
        tensors |= vars(batch.observation)
    return {name: list(tensor.shape) for name, tensor in tensors.items() if tensor is not None}


def draw_observations(observation: ModelInput, cameras: Sequence[str], titles: Sequence[str], path: Path) -> None:
    """Write a PNG: a row per sample, a column per retained frame and camera, as the model gets them.

    Without the extra `plots` there is none.

    Args:
        observation: leading dims `[B]` or `[B, T]`.
        cameras: names, in the order of the axis `V`.
        titles: one per sample, such as episode ids.
    """
    if missing("plots"):
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images = observation.images.detach().float().cpu()
    images = images.unsqueeze(1) if images.ndim == 5 else images
    count, time = min(len(images), MAX_SAMPLES), images.shape[1]
    figure = Figure(figsize=(2.0 * len(cameras) * time, 2.4 * count), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(count, 1, squeeze=False)[:, 0]
    for sample, row in enumerate(rows):
        row.suptitle(titles[sample], fontsize=8)
        axes = row.subplots(1, time * len(cameras), squeeze=False)[0]
        for place, axis in enumerate(axes):
            step, camera = divmod(place, len(cameras))
            axis.imshow(((images[sample, step, camera] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy())
            axis.set_axis_off()
            axis.set_title(f"{cameras[camera]}, frame {step}", fontsize=7)
    with writing(path), replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)
