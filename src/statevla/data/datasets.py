"""Training samples out of a frame cache: windows for the world model, chunks for the policy.

Both data sets gather whole batches at once; which batch is drawn and how it is augmented is decided in
`statevla.data.loading`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from statevla.config import Phase1Config
from statevla.data.buffers import ReusedBuffers
from statevla.data.cache import CachedEpisode, FrameCache
from statevla.data.keyframes import keyframe_targets
from statevla.data.pixels import frames_to_float, num_draws
from statevla.errors import UserError
from statevla.transforms import Transform
from statevla.types import ChunkBatch, ModelInput, TransitionBatch

START_STEPS = 8
"""Control steps from an episode's start in which windows begin that `start_repeats` repeats."""


def split_episodes(
    cache: FrameCache, train_split: float, seed: int, demos_per_task: int | None = None
) -> tuple[list[int], list[int]]:
    """Split into training and validation episodes, task by task, so that both hold every task.

    Episodes that lack frames belong to neither: see `partial_episodes`.

    Args:
        train_split: share of the episodes of every task that is trained on, in (0, 1]; 1 leaves none for validation.
        seed: of the draw.
        demos_per_task: keep so many training episodes of every task; a smaller number takes a subset of a larger
            one's. Validation stays the same.

    Returns:
        Two sorted lists of indices into `cache.episodes`. Below 1, a task of two or more episodes has at least one
        on either side; a task of one episode is trained on.

    Raises:
        UserError: a task has fewer training episodes than `demos_per_task`.
    """
    by_task: dict[str, list[int]] = {}
    for index, episode in enumerate(cache.episodes):
        if cache.is_whole(episode):
            by_task.setdefault(episode.task, []).append(index)
    training: list[int] = []
    validation: list[int] = []
    for number, task in enumerate(sorted(by_task)):
        members = np.random.default_rng([seed, number]).permutation(by_task[task]).tolist()
        count = len(members) if train_split >= 1 or len(members) == 1 else round(train_split * len(members))
        if train_split < 1 and len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        kept = demos_per_task or count
        if kept > count:
            raise UserError(
                f"data.demos_per_task {kept}: task '{task}' has {count} training episodes of {len(members)} "
                f"(data.train_split {train_split}); lower it"
            )
        training += members[:kept]
        validation += members[count:]
    return sorted(training), sorted(validation)


def partial_episodes(cache: FrameCache) -> list[int]:
    """Indices of the episodes that lack frames, such as reaches: to train on, but nothing to measure progress by."""
    return [index for index, episode in enumerate(cache.episodes) if not cache.is_whole(episode)]


class _CachedSamples:
    """What both data sets share: items are first frames; an item knows its episode, its language, its last frame."""

    def __init__(
        self,
        cache: FrameCache,
        episode_ids: Sequence[int],
        offsets: Sequence[int],
        transform: Transform,
        language_table: torch.Tensor,
        start_repeats: int,
    ) -> None:
        """Items are all frames of `episode_ids` that have frames `offsets` control steps later in their episode."""
        if language_table.ndim != 2 or len(language_table) != len(cache.instructions):
            raise UserError(
                f"language table: expected one row for each of {len(cache.instructions)} instructions, "
                f"got shape {list(language_table.shape)}; encode FrameCache.instructions"
            )
        model = transform.model_config
        if cache.cameras != tuple(model.cameras) or cache.image_size != model.image_size:
            raise UserError(
                f"frame cache {cache.folder}: holds {', '.join(cache.cameras)} at {cache.image_size} px, the model "
                f"takes {', '.join(model.cameras)} at {model.image_size} px; build its own cache"
            )
        self.cache = cache
        self.transform = transform
        self.num_draws = num_draws(len(cache.cameras))
        firsts = [self._first_frames(cache.episodes[i], offsets) for i in episode_ids]
        self._first = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *firsts]))
        self._episode = torch.from_numpy(np.repeat(np.asarray(episode_ids, np.int64), [len(own) for own in firsts]))
        self._repeat_starts(start_repeats)
        self._last_frame = torch.tensor([episode.stop - 1 for episode in cache.episodes])
        self._instruction = torch.tensor([episode.instruction for episode in cache.episodes])
        self._language = language_table.float()
        self._bytes, self._floats = ReusedBuffers(np.uint8), ReusedBuffers(np.float32)
        self._raw_states = torch.from_numpy(cache.robot_state)
        self._states = transform.normalize_robot_state(self._raw_states)
        self._answers = torch.from_numpy(cache.actions)
        self._is_delta = torch.from_numpy(cache.robot.is_delta)

    def _first_frames(self, episode: CachedEpisode, offsets: Sequence[int]) -> np.ndarray:
        count = max(episode.num_steps - max(offsets), 0)
        seen = self.cache.is_seen[episode.start : episode.stop]
        return episode.start + np.flatnonzero(np.all([seen[ahead : ahead + count] for ahead in offsets], axis=0))

    def _repeat_starts(self, times: int) -> None:
        """Let every item near an episode's start be `times` more items, each with augmentations of its own."""
        begins = torch.tensor([episode.start for episode in self.cache.episodes])
        early = (self._first - begins[self._episode] < START_STEPS).nonzero().flatten().repeat(times)
        self._first = torch.cat([self._first, self._first[early]])
        self._episode = torch.cat([self._episode, self._episode[early]])

    def __len__(self) -> int:
        return len(self._first)

    def count_of(self, episode_ids: Sequence[int]) -> int:
        """How many items come from these episodes."""
        return int(torch.isin(self._episode, torch.tensor(episode_ids, dtype=torch.int64)).sum())

    def frame_indices_of(self, indices: torch.Tensor) -> torch.Tensor:
        """Index of every item's first frame in the cache, int64 `[B]`."""
        return self._first[indices]

    def episode_ids_of(self, indices: torch.Tensor) -> list[str]:
        """The episodes that items come from, for messages."""
        return [self.cache.episodes[i].episode_id for i in self._episode[indices].tolist()]

    def _draws(self, indices: torch.Tensor, generator: torch.Generator | None, augment: bool) -> torch.Tensor | None:
        if not augment or not self.transform.augments:
            return None
        return torch.rand(len(indices), self.num_draws, generator=generator, dtype=torch.float64)

    def _chunks(self, frames: torch.Tensor, indices: torch.Tensor, horizon: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The `horizon` actions from each of `frames` `[B, ...]` on: targets `[B, ..., H, A]`, and the padding."""
        steps = frames[..., None] + torch.arange(horizon)
        last = self._last_frame[self._episode[indices]].view(-1, *[1] * frames.ndim)
        is_pad = steps > last
        actions = self._answers[torch.minimum(steps, last)]
        actions[is_pad[..., None] & self._is_delta] = 0.0
        return self.transform.chunks_to_targets(actions, self._raw_states[frames]), is_pad

    def _observation(self, frames: torch.Tensor, indices: torch.Tensor, draws: torch.Tensor | None) -> ModelInput:
        """Observations at `frames` `[B, T]` of the cache, leading dims `[B, T]`."""
        language = self._language[self._instruction[self._episode[indices]]]
        size, cameras = self.cache.image_size, len(self.cache.cameras)
        stored = self.cache.frames(frames, out=self._bytes.take((*frames.shape, cameras, size, size, 3)))
        images = self._floats.take((*frames.shape, cameras, 3, size, size))
        return ModelInput(
            images=frames_to_float(stored, self.transform.augmentation, draws, out=images),
            robot_state=self._states[frames],
            language=language[:, None].expand(-1, frames.shape[1], -1),
        )


class TransitionDataset(_CachedSamples):
    """Phase 1: every window of `num_frames` frames, `frame_skip` control steps apart, with the actions in between.

    Args:
        cache: an open frame cache.
        episode_ids: indices into `cache.episodes`, as `split_episodes` gives them.
        phase1_config: `num_frames`, `frame_skip`; with weights of keyframes in `loss`, batches hold these too.
        transform: of the model that is trained.
        language_table: float `[len(cache.instructions), E]`.
        labelled: whether the actions are worth imitating; if not, no keyframe is known.
        start_repeats: how many more items windows near an episode's start are; for training, not for validation.

    Raises:
        UserError: no episode is long enough, the table or the cache does not fit, or keyframes cannot be had.
    """

    def __init__(
        self,
        cache: FrameCache,
        episode_ids: Sequence[int],
        phase1_config: Phase1Config,
        transform: Transform,
        language_table: torch.Tensor,
        labelled: bool = True,
        start_repeats: int = 0,
    ) -> None:
        skip, num_frames = phase1_config.frame_skip, phase1_config.num_frames
        span = skip * (num_frames - 1)
        super().__init__(cache, episode_ids, range(0, span + 1, skip), transform, language_table, start_repeats)
        if not len(self):
            longest = max((cache.episodes[i].num_steps for i in episode_ids), default=0)
            raise UserError(
                f"training.phase1: a window of {num_frames} frames every {skip} steps needs {span + 1} steps, the "
                f"longest of {len(episode_ids)} episodes has {longest}; lower num_frames or frame_skip"
            )
        self._keyframes = keyframe_targets(cache, transform, phase1_config.loss, labelled)
        self._frame_offsets = torch.arange(num_frames) * skip
        self._action_offsets = torch.arange(span).view(num_frames - 1, skip)
        # What was executed moves the world, not what an expert would rather have done.
        self._actions = transform.normalize_actions(torch.from_numpy(cache.executed_actions))

    def gather(
        self, indices: torch.Tensor, generator: torch.Generator | None = None, augment: bool = False
    ) -> TransitionBatch:
        """The batch of these items; `generator` draws the augmentation (the default one if None)."""
        return self.gather_drawn(indices, self._draws(indices, generator, augment))

    def gather_drawn(self, indices: torch.Tensor, draws: torch.Tensor | None) -> TransitionBatch:
        """Like `gather`, augmented by given uniform numbers `[B, num_draws]`; None does not augment."""
        first = self._first[indices]
        frames = first[:, None] + self._frame_offsets
        steps = first[:, None, None] + self._action_offsets
        return TransitionBatch(
            observation=self._observation(frames, indices, draws),
            actions=self._actions[steps].flatten(2),
            **{name: values[frames] for name, values in self._keyframes.items()},
        )


class ChunkDataset(_CachedSamples):
    """Phase 2 and behaviour cloning: every frame with the `horizon` actions that follow.

    Past the end of an episode the robot rests (`RobotSpec.rest`) and the chunk is marked as padding.

    Args:
        cache, episode_ids, transform, language_table, start_repeats: as for `TransitionDataset`.
        horizon: `H`, `model.action_seq_len`.

    Raises:
        UserError: there are no episodes, or the table or the cache does not fit.
    """

    def __init__(
        self,
        cache: FrameCache,
        episode_ids: Sequence[int],
        horizon: int,
        transform: Transform,
        language_table: torch.Tensor,
        start_repeats: int = 0,
    ) -> None:
        super().__init__(cache, episode_ids, [0], transform, language_table, start_repeats)
        if not len(self):
            raise UserError(
                f"frame cache {cache.folder}: no episodes to train on; check data.path and data.train_split"
            )
        self._horizon = horizon

    def gather(
        self, indices: torch.Tensor, generator: torch.Generator | None = None, augment: bool = False
    ) -> ChunkBatch:
        """The batch of these items; `generator` draws the augmentation (the default one if None)."""
        return self.gather_drawn(indices, self._draws(indices, generator, augment))

    def gather_drawn(self, indices: torch.Tensor, draws: torch.Tensor | None) -> ChunkBatch:
        """Like `gather`, augmented by given uniform numbers `[B, num_draws]`; None does not augment."""
        actions, is_pad = self._chunks(self._first[indices], indices, self._horizon)
        observation = self._observation(self._first[indices][:, None], indices, draws)
        return ChunkBatch(observation=observation.at((slice(None), 0)), actions=actions, is_pad=is_pad)

    def gather_latents(self, indices: torch.Tensor, latents: torch.Tensor) -> ChunkBatch:
        """The batch of these items with `state` from precomputed `latents`, `[cache.num_frames, Z]`, for frames."""
        actions, is_pad = self._chunks(self._first[indices], indices, self._horizon)
        return ChunkBatch(observation=None, actions=actions, is_pad=is_pad, state=latents[self._first[indices]])
