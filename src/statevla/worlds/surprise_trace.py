"""What surprised a policy in an episode, for its video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SurpriseTrace:
    """What surprised the policy in an episode.

    Attributes:
        values: control step of a look → surprise there.
        threshold: above it the alarm rises; None without a calibration.
    """

    values: Mapping[int, float] = field(default_factory=dict)
    threshold: float | None = None

    def at(self, step: int) -> tuple[str, bool]:
        """What is known at a control step, in words, and whether the alarm is on."""
        before = [value for look, value in self.values.items() if look <= step]
        if not before:
            return "", False
        if self.threshold is None:
            return f"surprise {before[-1]:.3g}", False
        return f"surprise {before[-1] / self.threshold:.2f} of threshold", max(before) > self.threshold
