"""Flow matching: probability path and ODE sampler. Nothing here knows a model.

Convention: `x_0` = data (action), `x_1` = noise, `x_t = (1 - t) x_0 + t x_1`, target velocity `x_1 - x_0`;
sampling integrates from t = 1 to t = 0.
"""

from statevla.model.flow.path import (
    FlowDraws,
    flow_matching_loss,
    interpolate,
    target_velocity,
)
from statevla.model.flow.solver import check_steps, solve

__all__ = [
    "FlowDraws",
    "check_steps",
    "flow_matching_loss",
    "interpolate",
    "solve",
    "target_velocity",
]
