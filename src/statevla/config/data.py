"""`language` and `data`: what the model is told and shown."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from statevla.config.section import NonNegative, Positive, Rate, Section
from statevla.robots import ImageOrientation


class LanguageConfig(Section):
    encoder: str = "minilm"
    """`minilm` (packaged, offline), `hf:<name or folder>` (CLIP, SigLIP or any text model), or a file of precomputed
    embeddings (`.safetensors`, `.npz`: instruction → vector)."""


class AugmentationConfig(Section):
    """Only in training; one draw per window, the same for all its frames."""

    random_shift_px: NonNegative = 0
    """Largest shift of the frames, each way (pixels); edges are repeated."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of brightness."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of contrast."""


class SourceConfig(Section):
    """A further data set that is trained on beside `data.path`."""

    path: str
    """As `data.path`."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often each of its samples is drawn in an epoch; 0.5 draws every other one."""
    labelled: bool = True
    """Whether its actions are worth imitating; unlabelled play (`statevla collect --play`) only helps phase 1, and none
    of it is held out."""
    format: Literal["auto", "libero", "lerobot"] = "auto"
    robot: str = "auto"
    """As `data.robot`; it must be the same robot after declaration."""


class DataConfig(Section):
    path: str = "$STATEVLA_HOME/datasets/libero_object"
    """A file or folder of LIBERO, robomimic or robosuite HDF5 files, or the folder of a LeRobotDataset (v2.1, v3)."""
    sources: list[SourceConfig] = []
    """Further data sets of the same robot: `[{path: more, weight: 0.5}, {path: play, labelled: false}]`."""
    format: Literal["auto", "libero", "lerobot"] = "auto"
    """`auto` looks at the files."""
    robot: str = "auto"
    """What actions, state and cameras mean: `auto` believes what the data set declares; else the name of a known robot
    or a YAML file (docs/robots.md)."""
    orientation: ImageOrientation | Literal["auto"] = "auto"
    """How the frames are stored; `auto` believes what the file declares, else the format's custom."""
    train_split: Rate = 0.9
    """Share of the episodes of every task that is trained on; the others validate."""
    demos_per_task: Positive | None = None
    """Trains on so many of every task's training episodes, a fixed draw; validation keeps its own. null takes all. Does
    not limit reaches, which are no whole demonstrations."""
    wordings: str | None = None
    """YAML file with other ways to say the instructions (`instruction: [wording, …]`): half of the training episodes
    are told one of them. For LIBERO conf/wordings/libero.yaml."""
    cache_dir: str = "$STATEVLA_HOME/frame_cache"
    """Where frames at the model's resolution are kept."""
    cache_codec: Literal["raw", "qoi", "jpeg"] = "raw"
    """How they are kept: `raw`, quickest to read; `qoi`, a half to an eighth of the room and the same pictures; `jpeg`
    (quality 95, full chroma), a sixth of the room, pictures that differ a little."""
    num_workers: NonNegative = 0
    """Threads that prepare batches ahead; 0 prepares them between steps."""
    relative_actions: Literal["none", "all"] | list[str] = "none"
    """Action groups whose targets are relative to the robot's state at the start of a chunk; `all` takes every absolute
    group that names the state field which measures it."""
    action_normalization: Literal["mean_std", "quantile"] = "mean_std"
    """Of the continuous dims: zero mean and unit deviation, or 1 % and 99 % quantiles to -1 and 1."""
    augmentation: AugmentationConfig = AugmentationConfig()
