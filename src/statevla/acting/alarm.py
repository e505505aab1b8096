"""Surprise alarm: does the robot see what its world model expected, and if not, is that unusual?

Surprise. From one look of the policy to the next it executes `n` actions. The predictor is rolled forward over them,
one block of `frame_skip` actions at a time as in phase 1, and the surprise is the mean squared difference between the
expected z and that of the new picture. Where `n` is no multiple of `frame_skip`, the last block is filled up with rest
(`RobotSpec.rest`): the expectation is then of the robot a few control steps after it has stopped.

Novelty, the baseline without a world model: the mean Euclidean distance of z to its nearest neighbours among z of
training frames (after Sun et al. 2022, arXiv 2204.06507).

Thresholds by split conformal prediction (Vovk, Gammerman & Shafer 2005; Lei et al. 2018, arXiv 1604.04173). The score
of an episode is its largest surprise. Of the scores of `m` calibration episodes the threshold is the
⌈(m + 1)(1 − α)⌉-th smallest. Whatever their distribution, a new episode that is exchangeable with them exceeds it with
probability at most α: one false alarm or more per episode, not per look. An episode of another kind (other lengths,
another controller, other tasks) has no such guarantee.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from statevla.checkpoints.checkpoint import ALARM_FILE, MEMORY_FILE
from statevla.errors import UserError
from statevla.machine.sealed import EDITED, check_seal, seal
from statevla.machine.storage import read_json, read_tensors, sha256, write_json, write_tensors, writing
from statevla.model.statevla_model import StateVLA
from statevla.transforms import Transform

NUM_NEIGHBORS = 5
_FIX = "delete it, 'statevla calibrate' makes it anew"
_MEMORY_NAME = re.compile(r"alarm(_[0-9a-f]{16})?\.safetensors")
SCORES = ("surprise", "novelty")


@dataclass(frozen=True)
class Sighting:
    """What one look told.

    Attributes:
        state: z, float32 `[Z]`.
        surprise: mean squared error of the world model's expectation of `state`; None where it had none.
        novelty: mean distance of `state` to its nearest training neighbours; None without a calibration.
    """

    state: Tensor
    surprise: float | None = None
    novelty: float | None = None


def expect(model: StateVLA, transform: Transform, state: Tensor, actions: np.ndarray | Tensor) -> Tensor:
    """The world model's expectation of z after `n` executed actions.

    Args:
        state: z before them, `[B, Z]`.
        actions: in the robot's units, `[B, n, A]`, n >= 1.

    Returns:
        float32 `[B, Z]`.
    """
    skip = model.config.training.phase1.frame_skip
    executed = torch.as_tensor(actions, dtype=torch.float32, device=state.device)
    missing = -executed.shape[1] % skip
    if missing:
        rest = torch.from_numpy(model.robot.rest(executed[:, -1:].cpu().numpy())).to(executed.device)
        executed = torch.cat([executed, rest.expand(-1, missing, -1)], dim=1)
    return roll_forward(model, state, transform.normalize_actions(executed).unflatten(1, (-1, skip)).flatten(2))


@torch.no_grad()
def roll_forward(model: StateVLA, state: Tensor, blocks: Tensor) -> Tensor:
    """Feed predictions back: z `[B, Z]` and normalised action blocks `[B, k, K·A]` → z expected k blocks later.

    Returns:
        float32 `[B, Z]`, on the device of the arguments.
    """
    for number in range(blocks.shape[1]):
        state = model.predict_next(state, blocks[:, number])
    return state.float()


def surprise_of(expected: Tensor, seen: Tensor) -> Tensor:
    """Surprise at z: mean squared difference of `[B, Z]` (or `[Z]`) and `[B, Z]` → `[B]`."""
    return (expected - seen).square().mean(dim=1)


def novelty_of(state: Tensor, memory: Tensor, num_neighbors: int = NUM_NEIGHBORS) -> Tensor:
    """Mean Euclidean distance of each `state` `[B, Z]` to its nearest rows of `memory` `[M, Z]` → `[B]`."""
    # By matrix products, small distances would be rounding noise that depends on the batch.
    distances = torch.cdist(state, memory, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.topk(min(num_neighbors, len(memory)), dim=1, largest=False).values.mean(dim=1)


def conformal_threshold(scores: np.ndarray, alpha: float) -> float:
    """The ⌈(m + 1)(1 − α)⌉-th smallest of `m` scores; a new exchangeable one exceeds it with probability at most α.

    Raises:
        UserError: `alpha` is out of range, or so small that `m` scores cannot bound it.
    """
    if not 0 < alpha < 1:
        raise UserError(f"alpha: expected a false-alarm rate between 0 and 1, got {alpha}; 0.1 is usual")
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    if rank > len(scores):
        needed = math.ceil(1 / alpha - 1 - 1e-9)
        raise UserError(
            f"alpha {alpha}: needs at least {needed} calibration episodes, got {len(scores)}; raise --alpha or give "
            "--data with more episodes"
        )
    return float(np.sort(np.asarray(scores, np.float64))[rank - 1])


@dataclass(frozen=True)
class Calibration:
    """Thresholds of a checkpoint, stored beside its weights.

    Attributes:
        alpha: bound on the probability of a false alarm in an episode.
        num_episodes: that it was calibrated on.
        thresholds: score (`surprise`, `novelty`) → number of actions between two looks → threshold.
        memory: z of training frames, float32 `[M, Z]`.
        weights_sha256: of the weights that it belongs to.
        source: what it was calibrated on, for people.
    """

    alpha: float
    num_episodes: int
    thresholds: Mapping[str, Mapping[int, float]]
    memory: Tensor
    weights_sha256: str
    source: str
    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    def save(self, folder: Path) -> None:
        """Write the memory, then `alarm.json`, which names it: a kill in between leaves the calibration of before.

        Raises:
            UserError: they cannot be written.
        """
        fresh = folder / f".{MEMORY_FILE}.new"
        write_tensors(fresh, {"memory": self.memory})
        digest = sha256(fresh)
        memory = folder / f"alarm_{digest[:16]}.safetensors"
        with writing(memory):
            fresh.replace(memory)
        tree = _STORED.dump_python(self, mode="json", exclude={"memory"})
        write_json(folder / ALARM_FILE, seal({**tree, "memory": memory.name, "memory_sha256": digest}))
        for earlier in folder.glob("alarm*.safetensors"):
            if earlier != memory:
                earlier.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path, weights_sha256: str | None, state_dim: int) -> Calibration | None:
        """That of a checkpoint's folder; None if there is none.

        Raises:
            UserError: it is damaged, or belongs to other weights.
        """
        path = folder / ALARM_FILE
        if not path.is_file():
            return None
        tree = read_json(path)
        if not isinstance(tree, dict):
            raise UserError(f"{path}: expected a mapping; {_FIX}")
        check_seal(tree, str(path), _FIX, was_sealed="memory" in tree)  # earlier versions named no memory
        memory = _read_memory(folder, tree)
        try:
            calibration = _STORED.validate_python({**tree, "memory": memory})
        except ValidationError:
            raise UserError(f"{path}: damaged; {_FIX}") from None
        shape = calibration.memory.shape
        if len(shape) != 2 or shape[1] != state_dim or not shape[0] or not {*SCORES} <= calibration.thresholds.keys():
            raise UserError(f"{path}: damaged; {_FIX}")
        if weights_sha256 is not None and calibration.weights_sha256 != weights_sha256:
            raise UserError(f"{path}: belongs to other weights; {_FIX}")
        return calibration

    def summary(self) -> dict[str, Any]:
        """What results name: α, number of episodes and source."""
        return {"alpha": self.alpha, "num_episodes": self.num_episodes, "source": self.source}


_STORED = TypeAdapter(Calibration)


def _read_memory(folder: Path, tree: Mapping[str, Any]) -> Tensor | None:
    """The memory that `alarm.json` names; earlier ones name none, and have no SHA-256 of it."""
    name = str(tree.get("memory", MEMORY_FILE))
    if not _MEMORY_NAME.fullmatch(name):  # no other file, wherever the checkpoint comes from
        raise UserError(f"{folder / ALARM_FILE}: memory is {name!r}; {_FIX}")
    path = folder / name
    if path.is_file() and tree.get("memory_sha256", EDITED) not in (EDITED, sha256(path)):
        raise UserError(
            f"{path}: damaged (its SHA-256 is not the one in {ALARM_FILE}); delete {ALARM_FILE}, 'statevla calibrate' "
            "makes it anew"
        )
    return read_tensors(path).get("memory")
