"""An episode under way, as the main process of an evaluation sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from statevla.acting.policy import PolicySession
from statevla.worlds.rollout_plan import EpisodeSpec
from statevla.worlds.rollout_results import EpisodeResult
from statevla.worlds.workers import Ended


@dataclass
class RunningEpisode:
    """What is remembered of it; `filming` once it is recorded and only shown again."""

    episode: EpisodeSpec
    session: PolicySession
    attempt: int
    started: float = field(default_factory=time.monotonic)
    policy_s: float = 0.0
    policy_ms: list[float] = field(default_factory=list)
    surprise: list[float] = field(default_factory=list)
    novelty: list[float] = field(default_factory=list)
    alarm_step: int | None = None
    novelty_alarm_step: int | None = None
    filming: bool = False

    def note_look(self, step: int) -> None:
        """Take down what the session says of the look at control step `step`."""
        session = self.session
        if session.surprise is not None:
            self.surprise.append(_rounded(session.surprise))
        if session.novelty is not None:
            self.novelty.append(_rounded(session.novelty))
        if session.alarm and self.alarm_step is None:
            self.alarm_step = step
        if session.novelty_alarm and self.novelty_alarm_step is None:
            self.novelty_alarm_step = step

    def result(self, success: bool | None, error: str | None, ended: Ended | None) -> EpisodeResult:
        episode = self.episode
        return EpisodeResult(
            task=episode.task.index,
            trial=episode.trial,
            task_name=episode.task.name,
            instruction=episode.instruction,
            init_state_index=episode.init_state_index,
            seed=episode.seed,
            success=success,
            error=error,
            num_steps=ended.num_steps if ended else self.session.num_steps,
            num_attempts=self.attempt,
            wall_s=round(time.monotonic() - self.started, 3),
            setup_s=round(ended.setup_s, 3) if ended else 0.0,
            physics_s=round(ended.physics_s, 3) if ended else 0.0,
            render_s=round(ended.render_s, 3) if ended else 0.0,
            policy_s=round(self.policy_s, 4),
            policy_ms=self.policy_ms,
            surprise=self.surprise,
            novelty=self.novelty,
            alarm_step=self.alarm_step,
            novelty_alarm_step=self.novelty_alarm_step,
        )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
