"""How a policy acts: what a user may choose, beside the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from statevla.errors import UserError


@dataclass(frozen=True)
class ActingOptions:
    """Choices of acting; None takes the checkpoint's.

    Attributes:
        device: as in the configuration.
        num_sampling_steps: solver steps.
        sampling_temperature: scale of the noise that the flow starts from.
        execute_steps: actions executed per query; None is the whole chunk, or 1 with temporal ensembling.
        temporal_ensembling: decay of the blending weights (0.01 in ACT), or None for none.
        seed: of the flow's noise.
        precision: `auto`, `bf16` or `fp32`; `auto` takes bf16 where it is faster and the configuration trains with it.

    Raises:
        UserError: a value is out of range.
    """

    device: str = "auto"
    num_sampling_steps: int | None = None
    sampling_temperature: float | None = None
    execute_steps: int | None = None
    temporal_ensembling: float | None = None
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.num_sampling_steps is not None and self.num_sampling_steps < 1:
            raise UserError(f"num_sampling_steps: expected at least 1, got {self.num_sampling_steps}")
        temperature, decay = self.sampling_temperature, self.temporal_ensembling
        if temperature is not None and not 0 <= temperature < float("inf"):
            raise UserError(f"sampling_temperature: expected at least 0, such as 0 or 1, got {temperature}")
        if decay is not None and not 0 <= decay < float("inf"):
            raise UserError(f"temporal_ensembling: expected a decay of at least 0, such as 0.01, got {decay}")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise UserError(f"precision '{self.precision}': expected auto, bf16 or fp32")

    def steps_of(self, horizon: int, name: str) -> int:
        """Actions executed per query by the policy `name`, whose chunks have `horizon` of them.

        Raises:
            UserError: there are not so many in a chunk.
        """
        steps = self.execute_steps
        if steps is None:
            return horizon if self.temporal_ensembling is None else 1
        if not 1 <= steps <= horizon:
            raise UserError(
                f"execute_steps (--replan_steps): expected 1 to {horizon} (the chunk of '{name}'), got {steps}; choose "
                "a number in this range"
            )
        return steps
