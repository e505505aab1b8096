"""How far a run is, and how fast it learns there.

LeRobot tells a policy neither the step nor the length of its run (`--steps`); the scheduler that it builds knows both.
The two meet at the parameters: the policy marks those it trains with its `Progress`, and the scheduler fills it in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lerobot.optim.schedulers import LRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from statevla.errors import UserError
from statevla.training.optimization import learning_rate_factor

_MARK = "_statevla_progress"
NOT_YET = -1


class Progress:
    """Where a run is.

    Args:
        share: of the steps, that belongs to phase 1 where a run has both phases.

    Attributes:
        switched_at: step at which phase 2 began, where it has; `NOT_YET` before.
    """

    def __init__(self, share: float) -> None:
        self._share, self.switched_at = share, NOT_YET
        self._scheduler: LambdaLR | None = None
        self._length = 0

    def mark(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let the scheduler of these parameters find this object."""
        for parameter in parameters:
            setattr(parameter, _MARK, self)

    def follow(self, scheduler: LambdaLR, length: int) -> None:
        """Ask `scheduler`, of a run of `length` steps, from now on."""
        self._scheduler, self._length = scheduler, length

    @property
    def is_running(self) -> bool:
        """Whether this is a training, rather than a policy that acts."""
        return self._scheduler is not None

    @property
    def step(self) -> int:
        """Optimizer steps that the run has done.

        Raises:
            UserError: the run has another scheduler.
        """
        if self._scheduler is None:
            raise UserError(
                "statevla: its schedules follow --steps by its own scheduler; leave --use_policy_training_preset on"
            )
        return int(self._scheduler.last_epoch)

    @property
    def length(self) -> int:
        """Optimizer steps of the whole run."""
        return self._length

    def switch_of(self, step: int, length: int) -> int:
        """The step at which phase 2 begins or has begun, as seen from `step` of a run of `length`."""
        # A run that starts with the weights of another one begins anew, whatever that one had reached.
        if self.switched_at != NOT_YET and step > 0:
            return self.switched_at
        return min(max(round(self._share * length), 1), max(length - 1, 1))


@LRSchedulerConfig.register_subclass("statevla")
@dataclass
class StateVLASchedulerConfig(LRSchedulerConfig):
    """The trainer's own schedule, over LeRobot's `--steps`: linear warm-up and cosine, once per phase.

    Attributes:
        num_warmup_steps: of each phase in turn; at most a tenth of the phase's steps.
        peaks: learning rate of each phase in turn.
    """

    num_warmup_steps: list[int]  # type: ignore[assignment]  # LeRobot's own schedulers have one
    peaks: list[float]

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
        """The schedule of a run of `num_training_steps`; tells the policy's `Progress`."""
        first = optimizer.param_groups[0]["params"][0]
        progress: Progress = getattr(first, _MARK, None) or Progress(0.5)
        base = optimizer.param_groups[0]["lr"]
        scheduler = LambdaLR(optimizer, lambda step: self.rate(step, num_training_steps, progress) / base)
        progress.follow(scheduler, num_training_steps)
        return scheduler

    def rate(self, step: int, length: int, progress: Progress) -> float:
        """Learning rate of the step that follows `step` of a run of `length`; after the last one, that one's."""
        step = min(step, length - 1)
        if len(self.peaks) == 1:
            return self._rate_in(0, step, length)
        switch = progress.switch_of(step, length)
        if step < switch:
            return self._rate_in(0, step, switch)
        return self._rate_in(1, step - switch, length - switch)

    def _rate_in(self, phase: int, step: int, length: int) -> float:
        warmup = max(1, min(self.num_warmup_steps[phase], length // 10))
        return self.peaks[phase] * learning_rate_factor(step + 1, length, warmup)
