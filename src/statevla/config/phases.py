"""The phases of training: what each is called, and where its settings and runs are."""

from __future__ import annotations

from typing import Literal, NamedTuple

from statevla.errors import UserError

PhaseName = Literal["1", "2", "bc"]


class Phase(NamedTuple):
    """One phase.

    Attributes:
        title: what it trains, for people.
        section: of `training` in the configuration.
        folder: of its run, in `output_dir`.
    """

    title: str
    section: str
    folder: str


PHASES: dict[str, Phase] = {
    "1": Phase("phase 1: temporal JEPA", "phase1", "phase1_temporal_jepa"),
    "2": Phase("phase 2: flow matching", "phase2", "phase2_flow_matching"),
    "bc": Phase("behaviour cloning, end to end", "bc", "behaviour_cloning"),
}


def phase_of(name: str) -> Phase:
    """The phase of that name.

    Raises:
        UserError: there is none.
    """
    if name not in PHASES:
        raise UserError(f"phase '{name}': expected one of {', '.join(PHASES)}")
    return PHASES[name]
