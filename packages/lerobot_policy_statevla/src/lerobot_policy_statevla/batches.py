"""LeRobot's batches as the trainer's own: the same pixels, states, targets and keyframes for the same frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import ACTION, OBS_STATE, OBS_STR
from torch import Tensor

from lerobot_policy_statevla.recorded import Recorded
from statevla.config import Config
from statevla.data.keys import split_key
from statevla.data.lerobot_robot import FIELD_PREFIX
from statevla.data.pixels import frames_to_float, num_draws
from statevla.errors import UserError
from statevla.model.language import LanguageEncoder
from statevla.robots import Camera, RobotSpec
from statevla.transforms import Transform, planes_to_upright, resize_planes
from statevla.types import ChunkBatch, ModelInput, Observation, TransitionBatch

_COMMAND_TOLERANCE = 1e-3


class BatchReader:
    """Reads batches of one robot.

    Args:
        transform: of the model; its robot's keys are LeRobot's features.
        config: of the model and its training.
        language: embeds tasks.
        aliases: feature → what it may be called instead: a data set and a robot may use different names.
        sizes: feature → how many numbers it has in all, where that is known.
        recorded: what phase 1 needs of whole episodes, or None.
        default_task: for environments that say none.
    """

    def __init__(
        self,
        transform: Transform,
        config: Config,
        language: LanguageEncoder,
        aliases: Mapping[str, str],
        sizes: Mapping[str, int],
        recorded: Recorded | None = None,
        default_task: str = "",
    ) -> None:
        self.transform, self.robot, self.config = transform, transform.robot, config
        self._language, self._aliases, self.recorded = language, aliases, recorded
        self._sizes, self._default_task = sizes, default_task
        self._is_delta = torch.from_numpy(self.robot.is_delta)

    def windows(self, batch: Mapping[str, Any]) -> TransitionBatch:
        """Phase 1: windows of frames and the actions in between. Those that an episode's end cuts short are left out.

        Raises:
            UserError: a feature is missing, has too few numbers, or a binary number is neither of its commands.
        """
        batch = self._whole_windows(batch)
        phase1 = self.config.training.phase1
        skip, span = phase1.frame_skip, phase1.frame_skip * (phase1.num_frames - 1)
        actions = self._actions(batch)[:, :span]
        keyframes: dict[str, Tensor] = {}
        if self.recorded is not None:
            first = batch["index"].reshape(-1).cpu()
            frames = first[:, None] + torch.arange(phase1.num_frames) * skip
            keyframes = {name: own[frames].to(actions.device) for name, own in self.recorded.keyframes.items()}
            steps = first[:, None] + torch.arange(span)
            if self.recorded.executed is not None:
                # What was executed moves the world, not what an expert would rather have done.
                actions = self.recorded.executed[steps].to(actions.device)
        blocks = self.transform.normalize_actions(actions).reshape(len(actions), phase1.num_frames - 1, -1)
        return TransitionBatch(self._model_input(batch), blocks, **keyframes)

    def chunks(self, batch: Mapping[str, Any]) -> ChunkBatch:
        """Phase 2 and behaviour cloning: the present frame and the chunk that follows.

        Raises:
            UserError: as `windows`.
        """
        horizon = self.config.model.action_seq_len
        actions = self._actions(batch)[:, :horizon].clone()
        is_pad = batch.get(f"{ACTION}_is_pad")
        is_pad = torch.zeros_like(actions[..., 0], dtype=torch.bool) if is_pad is None else is_pad[:, :horizon]
        actions[is_pad[..., None] & self._is_delta.to(actions.device)] = 0.0
        present = self._present(batch)
        targets = self.transform.chunks_to_targets(actions, self._state(present)[:, 0])
        observation = self._model_input(present)
        return ChunkBatch(observation.at((slice(None), 0)), targets, is_pad)

    def observations(self, batch: Mapping[str, Any]) -> list[Observation]:
        """What a robot or an environment reports, one per sample.

        Raises:
            UserError: a feature is missing or has another number of numbers, or there is no task in words.
        """
        present = self._present(_unnested(batch))
        states = self._sent_state(present)
        count = len(self._feature(present, str(self.robot.cameras[0].key)))
        views = {
            camera.name: self._upright(present, camera)[:, 0].movedim(-3, -1).contiguous().cpu().numpy()
            for camera in self.robot.cameras
        }
        said = batch.get("task") or ""
        tasks = [task or self._default_task for task in self._tasks(said, count)]
        if not all(tasks):
            raise UserError(
                "observation: the environment says no task; say what to do, as in the training data, by "
                "--policy.default_task"
            )
        return [
            Observation(
                {name: frames[row] for name, frames in views.items()},
                {name: values[row] for name, values in states.items()},
                tasks[row],
            )
            for row in range(count)
        ]

    # Parts of a batch -------------------------------------------------------------------------------------------------

    def _whole_windows(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        is_pad = batch.get(f"{self._key(batch, str(self.robot.cameras[0].key))}_is_pad")
        if is_pad is None or not bool(is_pad.any()):
            return batch
        kept = ~is_pad.any(dim=1)
        if int(kept.sum()) < 2:  # the loss compares samples
            return batch
        rows = kept.nonzero().flatten().tolist()
        return {
            key: value[kept]
            if isinstance(value, Tensor) and value.ndim and len(value) == len(kept)
            else [value[row] for row in rows]
            if isinstance(value, list | tuple) and len(value) == len(kept)
            else value
            for key, value in batch.items()
        }

    def _present(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch with the present frame alone, of a window or by itself; all observations `[B, 1, ...]`."""
        has_time = self._feature(batch, str(self.robot.cameras[0].key)).ndim == 5

        def present(value: Tensor) -> Tensor:
            if has_time:
                return value[:, :1]
            # A feature of one number has no dims at all where there is one sample.
            return value[:, None] if value.ndim else value.reshape(1, 1)

        return {
            key: present(value)
            if key.startswith(f"{OBS_STR}.") and isinstance(value, Tensor) and not key.endswith("_is_pad")
            else value
            for key, value in batch.items()
        }

    def _actions(self, batch: Mapping[str, Any]) -> Tensor:
        """Raw actions, float32 `[B, T, A]`."""
        robot, actions = self.robot, batch[ACTION]
        actions = actions.reshape(*actions.shape[:2], robot.action_dim).float()
        commands = torch.from_numpy(np.stack(robot.binary_values())).float().to(actions.device)  # [2, G]
        chosen = actions[..., torch.from_numpy(robot.is_binary).to(actions.device)]
        if (torch.minimum(*(chosen - commands[:, None, None]).abs()) > _COMMAND_TOLERANCE).any():
            raise UserError(
                f"'{ACTION}': expected the binary numbers of robot '{robot.name}' to be {commands[0].tolist()} or "
                f"{commands[1].tolist()}, got {chosen.min():g} to {chosen.max():g}; declare what was recorded "
                "(policy.robot)"
            )
        return actions

    def _sent_state(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The state fields that an environment sends, by name, float32 `[B, n]` each.

        Of several ways of saying the state (`state_ways`) one is enough: by the features of the training data, or, as
        LeRobot's own environments send it, flat in `observation.state` alone.
        """
        keys = {field.name: split_key(str(field.key))[0] for field in self.robot.policy_fields}
        robot = self.robot.with_ways(name for name, key in keys.items() if self._find(batch, key) is not None)
        needed = {keys[field.name] for field in robot.policy_fields}
        if self.robot.state_ways and OBS_STATE in batch and not all(self._is_whole(batch, key) for key in needed):
            flat = self._numbers(batch, OBS_STATE)[:, 0]
            return self.robot.named_state(flat.float().cpu().numpy(), OBS_STATE)
        return robot.named_state(self._state(batch, robot)[:, 0].cpu().numpy(), "observation")

    def _state(self, batch: Mapping[str, Any], robot: RobotSpec | None = None) -> Tensor:
        """The raw state that the policy sees, or that of `robot`, float32 `[B, T, S]`."""
        images = self._feature(batch, str(self.robot.cameras[0].key))
        parts = []
        for field in (robot or self.robot).policy_fields:
            key, part = split_key(str(field.key))
            values = self._numbers(batch, key)
            whole = self._sizes.get(key, values.shape[-1])
            if values.shape[-1] != whole or values[..., part].shape[-1] != field.size:
                raise UserError(
                    f"'{key}': expected {whole} numbers, with state field '{field.name}' ({', '.join(field.dims)}) in "
                    f"{field.key}, got {values.shape[-1]}; send what robot '{self.robot.name}' declares"
                )
            parts.append(values[..., part].to(images.device).float())
        return torch.cat(parts, dim=-1) if parts else torch.zeros(*images.shape[:-3], 0, device=images.device)

    def _numbers(self, batch: Mapping[str, Any], key: str) -> Tensor:
        """A feature of the state, `[B, T, n]`."""
        images = self._feature(batch, str(self.robot.cameras[0].key))
        # LeRobot drops the last dim of features of one number.
        return self._feature(batch, key).reshape(*images.shape[:-3], -1)

    def _is_whole(self, batch: Mapping[str, Any], key: str) -> bool:
        """Whether a feature of the state is there, with all of its numbers."""
        if self._find(batch, key) is None:
            return False
        size = self._numbers(batch, key).shape[-1]
        return size == self._sizes.get(key, size)

    def _model_input(self, batch: Mapping[str, Any]) -> ModelInput:
        """Observations `[B, T]` as the model takes them."""
        state = self._state(batch)
        language = self._embed(batch.get("task"), len(state)).to(state.device)
        return ModelInput(
            images=self._pixels(batch).to(state.device),
            robot_state=self.transform.normalize_robot_state(state),
            language=language[:, None].expand(-1, state.shape[1], -1),
        )

    def _pixels(self, batch: Mapping[str, Any]) -> Tensor:
        """Frames float `[B, T, V, 3, P, P]`, augmented as the configuration says."""
        size = self.config.model.image_size
        views = []
        for camera in self.robot.cameras:
            planes = self._upright(batch, camera)
            views.append(resize_planes(planes.flatten(0, -4), size, camera.fit).unflatten(0, planes.shape[:-3]))
        frames = torch.stack(views, dim=-4).movedim(-3, -1)
        if not self.transform.augments:
            return self.transform.images_to_float(frames)
        draws = torch.rand(len(frames), num_draws(len(views)), dtype=torch.float64)
        return frames_to_float(frames.cpu().contiguous(), self.transform.augmentation, draws)

    def _upright(self, batch: Mapping[str, Any], camera: Camera) -> Tensor:
        """A camera's frames, uint8 `[..., 3, H, W]`: LeRobot has them in [0, 1]."""
        images = self._feature(batch, str(camera.key))
        if images.dtype != torch.uint8:
            images = (images * 255).round().to(torch.uint8)
        return planes_to_upright(images, camera.orientation)

    def _embed(self, tasks: Any, count: int) -> Tensor:
        return self._language.encode(self._tasks(tasks, count))  # it remembers the latest of them

    def _tasks(self, tasks: Any, count: int) -> Sequence[str]:
        if isinstance(tasks, str):
            tasks = [tasks] * count
        if not isinstance(tasks, Sequence) or len(tasks) != count:
            raise UserError(f"statevla: expected a task in words per sample ({count}), got {tasks!r:.80}")
        return tasks

    def _feature(self, batch: Mapping[str, Any], key: str) -> Tensor:
        return batch[self._key(batch, key)]

    def _find(self, batch: Mapping[str, Any], key: str) -> str | None:
        """What a batch calls a feature; None where it has none."""
        return next((name for name in (key, self._aliases.get(key, key)) if name in batch), None)

    def _key(self, batch: Mapping[str, Any], key: str) -> str:
        name = self._find(batch, key)
        if name is not None:
            return name
        present = ", ".join(sorted(name for name in batch if name.startswith(OBS_STR))) or "none"
        raise UserError(
            f"observation: expected '{key}' of robot '{self.robot.name}', got {present}; send it, or say which it is "
            "(--rename_map)"
        )


def _unnested(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The batch with the parts of `observation.robot_state`, as environments send it, under data sets' names."""
    nested = batch.get(f"{OBS_STR}.robot_state")
    if not isinstance(nested, Mapping):
        return batch
    return {**{FIELD_PREFIX + name: value for name, value in nested.items()}, **batch}


def same_names(robot: RobotSpec, other: RobotSpec) -> dict[str, str]:
    """Feature of `robot` → the one that holds the same in `other`, where they differ in nothing but the name."""

    def places(of: RobotSpec) -> dict[tuple[str, Any], str]:
        found: dict[tuple[str, Any], str] = {(camera.name, None): str(camera.key) for camera in of.cameras}
        for field in of.policy_fields:
            key, part = split_key(str(field.key))
            found[f"state {field.name}", (part.start, part.stop)] = key
        return found

    theirs = places(other)
    return {key: theirs[place] for place, key in places(robot).items() if theirs.get(place, key) != key}
