"""A cache of a data set's frames at the model's size, read from disk frame by frame.

Decoding and resizing once saves them in every epoch. The cache is a folder named by a fingerprint of what it was made
from (files with sizes and times, cameras, size, orientation, codec, version), so a changed source makes a new one:

    frames.bin          uint8 [V, P, P, 3] of every frame, upright, episode after episode, raw or compressed
    <array>.npy         actions, robot states, ... [frames, dim]
    cache.json          robot, episodes, cameras, sizes; written last

Damage is noticed: of the index and the arrays when the cache is opened, of a frame whenever it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from statevla.data.cache_index import CACHE_FIX as CACHE_FIX
from statevla.data.cache_index import INDEX_FILE, read_array, read_index, write_index
from statevla.data.frame_codecs import RAW
from statevla.data.frame_store import FrameStore
from statevla.data.statistics import compute_statistics
from statevla.robots import RobotSpec
from statevla.transforms import ActionNormalization, RelativeActions, Statistics

ACTIONS, EXECUTED, OBJECTS, STATE_PREFIX = "actions", "executed_actions", "object_poses", "state_"
IS_SEEN = "is_seen"
FRAME_CRCS, FRAME_OFFSETS = "frame_crcs", "frame_offsets"


@dataclass(frozen=True)
class CachedEpisode:
    """One episode of a cache: frames `start` to `start + num_steps`.

    Attributes:
        episode_id: as the reader named it.
        task: name of the task.
        instruction: index into `FrameCache.instructions`.
        start: index of its first frame.
        num_steps: number of frames, each with its action.
        object_names: names of the objects whose poses are cached, 7 numbers each.
        success: whether the task was solved at the end; None where the source does not say.
    """

    episode_id: str
    task: str
    instruction: int
    start: int
    num_steps: int
    object_names: tuple[str, ...] = ()
    success: bool | None = None

    @property
    def stop(self) -> int:
        return self.start + self.num_steps


class FrameCache:
    """An open frame cache. Threads may read from it at the same time.

    Attributes:
        robot: as declared; its cameras are those of the cache.
        episodes: in the order of the frames.
        instructions: the different instructions, normalised; a language table has one row for each.
        cameras: in the order of the frames' axis `V`.
        image_size: `P`.
        frame_size: longer side of the frames as the data set stores them (pixels); None where they differ.
        num_frames: over all episodes.
        actions: float32 `[num_frames, A]`.
        executed_actions: float32 `[num_frames, A]`; equal to `actions` where the source recorded no difference.
        robot_states: state field → float32 `[num_frames, n]`, the fields that every episode has.
        robot_state: float32 `[num_frames, S]`, what the policy sees of them.
        is_seen: bool `[num_frames]`, which frames there are; the others are black.
        object_poses: float32 `[num_frames, 7·objects]`, NaN where an episode has fewer, or None. For probes only.
    """

    def __init__(self, folder: Path) -> None:
        """Open a finished cache folder; `statevla.data.open_frame_cache` builds one where needed.

        Raises:
            UserError: the folder is no cache, is damaged, or of another version.
        """
        self.folder = folder
        index = read_index(folder)
        self.robot = RobotSpec.from_dict(index["robot"], str(folder / INDEX_FILE))
        self.episodes = [
            CachedEpisode(**entry | {"object_names": tuple(entry["object_names"])}) for entry in index["episodes"]
        ]
        self.instructions: list[str] = index["instructions"]
        self.cameras: tuple[str, ...] = tuple(index["cameras"])
        self.image_size: int = index["image_size"]
        self.frame_size: int | None = index["frame_size"]
        self.num_frames = self.episodes[-1].stop if self.episodes else 0
        rows = {FRAME_OFFSETS: self.num_frames + 1}
        arrays = {n: read_array(folder, n, index, rows.get(n, self.num_frames)) for n in sorted(index["arrays"])}
        self.actions = arrays[ACTIONS]
        self.executed_actions = arrays.get(EXECUTED, self.actions)
        self.is_seen = arrays.get(IS_SEEN, np.ones(self.num_frames, bool))
        self.object_poses = arrays.get(OBJECTS)
        self.robot_states = {
            name.removeprefix(STATE_PREFIX): array for name, array in arrays.items() if name.startswith(STATE_PREFIX)
        }
        stateless = np.zeros((self.num_frames, 0), np.float32)
        self.robot_state = (
            self.robot.policy_state(self.robot_states, f"frame cache {folder}") if self.robot.state_dim else stateless
        )
        shape = (len(self.cameras), self.image_size, self.image_size, 3)
        self._store = FrameStore(folder, shape, index["codec"], arrays[FRAME_CRCS], arrays.get(FRAME_OFFSETS))

    def frames(self, indices: torch.Tensor | np.ndarray, out: torch.Tensor | None = None) -> torch.Tensor:
        """Read frames: any shape of indices `[...]` → uint8 `[..., V, P, P, 3]`, into `out` if given (contiguous).

        Raises:
            UserError: a frame is damaged.
        """
        return self._store.read(indices, out)

    def statistics(self, episode_indices: Sequence[int], normalization: ActionNormalization = "mean_std") -> Statistics:
        """Statistics over these episodes, without relative targets: pass the training episodes."""
        actions, states, _ = self.training_arrays(episode_indices, RelativeActions(self.robot, ()), 1)
        return compute_statistics(actions, states, normalization)

    def training_arrays(
        self, episode_indices: Sequence[int], relative: RelativeActions, horizon: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """What statistics over these episodes are made from.

        Returns:
            Actions `[steps, A]`, states `[steps, S]`, and all steps of all chunks of `horizon` steps as relative
            targets, un-normalised, `[rows, A]`; None where no group is relative.
        """
        steps = self.steps_of(episode_indices)
        targets = self._relative_targets(episode_indices, relative, horizon) if relative else None
        return self.actions[steps], self.robot_state[steps], targets

    def _relative_targets(self, episodes: Sequence[int], relative: RelativeActions, horizon: int) -> np.ndarray:
        """All steps of all chunks of these episodes; what lies past an end is left out."""
        rows = [np.zeros((0, self.actions.shape[1]), np.float32)]
        for index in episodes:
            episode = self.episodes[index]
            for ahead in range(min(horizon, episode.num_steps)):
                chunks = torch.from_numpy(self.actions[episode.start + ahead : episode.stop, None])
                starts = torch.from_numpy(self.robot_state[episode.start : episode.stop - ahead])
                rows.append(relative.to_relative(chunks, starts)[:, 0].numpy())
        return np.concatenate(rows)

    def is_whole(self, episode: CachedEpisode) -> bool:
        """Whether an episode has all its frames; a reach has a few."""
        return bool(self.is_seen[episode.start : episode.stop].all())

    def steps_of(self, episode_indices: Sequence[int]) -> np.ndarray:
        """Indices of all frames of these episodes, int64."""
        parts = [np.arange(self.episodes[i].start, self.episodes[i].stop) for i in episode_indices]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def close(self) -> None:
        self._store.close()


def write_cache(
    folder: Path,
    episodes: Sequence[CachedEpisode],
    instructions: Sequence[str],
    robot: RobotSpec,
    image_size: int,
    frame_size: int | None,
    arrays: Mapping[str, np.ndarray],
    codec: str = RAW,
) -> None:
    """Write everything of a cache but its frames; `arrays` are named as the constants above.

    Raises:
        UserError: the disk does not take it.
    """
    tree = {
        "robot": robot.to_dict(),
        "cameras": list(robot.camera_names),
        "image_size": image_size,
        "frame_size": frame_size,
        "codec": codec,
        "instructions": list(instructions),
        "episodes": [asdict(episode) for episode in episodes],
    }
    write_index(folder, tree, arrays)
