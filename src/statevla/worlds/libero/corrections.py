"""Corrections: the policy acts, the expert shows the way on from where that leads (DAgger, Ross et al. 2011).

Demonstrations show what an expert meets. A policy errs, and from then on sees what no demonstration has; here the
expert answers from exactly there. An episode is the expert's alone, from a moment that the policy has reached to the
goal. Where the policy goes wrong there is most to learn: an episode in which it fails is preferred to successes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from statevla.acting.policy import StateVLAPolicy, load_policy
from statevla.checkpoints.checkpoint import MODEL_FILE, resolve_checkpoint
from statevla.machine.storage import sha256
from statevla.worlds.demo_file import EpisodeRecord
from statevla.worlds.fitting import check_fit
from statevla.worlds.libero.env import LiberoWorld
from statevla.worlds.libero.episodes import (
    START_POSTURE_NOISE,
    STEPS_BEYOND_LIMIT,
    CollectSettings,
    draw_start,
    generator,
    record_episode,
)
from statevla.worlds.libero.reach import SEEN_STEPS
from statevla.worlds.libero.rollout import Episode, run_expert
from statevla.worlds.libero.simulation import Snapshot
from statevla.worlds.libero.suite import LiberoSuite
from statevla.worlds.libero.tasks import find_task

MAX_TRIES = 4
"""So many episodes are the policy's, until it fails in one."""
REPLAN_STEPS = 8
"""Actions that the policy executes before it looks again, unless told otherwise."""
_FIRST_STEPS = 24
"""What the correction shows is at its start; it is drawn up to here, and at some places of the rest."""
_WINDOWS_AFTER = 3


@dataclass(frozen=True)
class CorrectionSettings(CollectSettings):
    """What, beside task and index, a correction depends on.

    Attributes:
        checkpoint: the policy; where it lies does not matter, see `weights_sha256`.
        weights_sha256: of its weights.
        replan_steps: actions that it executes before it looks again.
    """

    checkpoint: str = ""
    weights_sha256: str = ""
    replan_steps: int = REPLAN_STEPS

    @property
    def kind(self) -> str:
        return "correction"

    @property
    def worker_gb(self) -> float:
        return 2.5

    def as_dict(self) -> dict[str, Any]:
        settings = asdict(self)
        del settings["checkpoint"]
        return settings

    def prepare(self) -> None:
        super().prepare()
        policy = self.load()
        check_fit(policy.robot, policy.name, LiberoSuite(self.suite, rendering=self.rendering))

    def load(self) -> StateVLAPolicy:
        """The policy, on the CPU: there is one in every worker."""
        return load_policy(self.checkpoint, execute_steps=self.replan_steps, device="cpu")

    def open(self, index: int) -> CorrectionMaker:  # type: ignore[override] # both are recorders
        return CorrectionMaker(self, index)


def correcting(settings: CollectSettings, checkpoint: str, replan_steps: int) -> CorrectionSettings:
    """Settings of corrections of a policy.

    Args:
        settings: how demonstrations would be collected.
        checkpoint: folder or name of the policy.
        replan_steps: actions that it executes before it looks again.

    Raises:
        UserError: there is no such checkpoint.
    """
    weights_sha256 = sha256(resolve_checkpoint(checkpoint) / MODEL_FILE)
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return CorrectionSettings(**values, checkpoint=checkpoint, weights_sha256=weights_sha256, replan_steps=replan_steps)


class CorrectionMaker:
    """Makes the corrections of one task."""

    def __init__(self, settings: CorrectionSettings, task_index: int) -> None:
        self._settings = settings
        self._task = find_task(settings.suite, task_index)
        self._policy = settings.load()
        self._world = LiberoWorld(
            self._task,
            self._policy.frame_size,
            self._policy.robot.camera_names,
            initialization_noise=START_POSTURE_NOISE,
            rendering=settings.rendering,
        )

    def record(self, index: int) -> EpisodeRecord | None:
        """Correction number `index`, or None where the expert fails too."""
        simulation, settings, task = self._world.simulation, self._settings, self._task
        rng = generator(settings, task, index, 0xDA66E5)
        for _ in range(MAX_TRIES):
            visited, success = self._act(int(rng.integers(2**31)))
            if not success:
                break
        simulation.restore(visited[int(rng.integers(len(visited)))])
        rollout = run_expert(simulation, rng, settings.noise, int(task.max_steps * STEPS_BEYOND_LIMIT))
        if not rollout.success or len(rollout) <= SEEN_STEPS[-1]:
            return None
        episode = Episode(rollout, task.instruction, _seen_steps(len(rollout), rng), True)
        return record_episode(simulation, episode, settings, index)

    def _act(self, seed: int) -> tuple[list[Snapshot], bool]:
        """Let the policy act: the moments at which it looked, and whether it did the task."""
        world, simulation = self._world, self._world.simulation
        draw_start(simulation, self._settings, seed)
        session, visited = self._policy.new_session(seed), []
        for _ in range(0, self._task.max_steps, self._policy.execute_steps):
            visited.append(simulation.snapshot())
            self._policy.query([(session, world.observe())])
            for action in session.next_actions():
                world.step(action)
                if world.success():
                    return visited, True
        return visited, False

    def close(self) -> None:
        self._world.close()


def _seen_steps(count: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Which of `count` control steps are drawn."""
    stride = SEEN_STEPS[1] - SEEN_STEPS[0]
    firsts = [int(rng.integers(count - SEEN_STEPS[-1])) for _ in range(_WINDOWS_AFTER)]
    later = {first + step for first in firsts for step in SEEN_STEPS}
    return tuple(sorted(later.union(range(0, min(_FIRST_STEPS, count), stride))))
