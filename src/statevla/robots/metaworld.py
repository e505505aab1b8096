"""Meta-World's Sawyer: three hand deltas and a continuous gripper effort (McLean et al. 2025, arXiv 2505.11289)."""

from statevla.robots.declaration import ActionGroup, Camera, StateField
from statevla.robots.spec import RobotSpec

METAWORLD = RobotSpec(
    name="metaworld",
    control_freq_hz=80.0,
    actions=(
        # Fractions of 0.01 m a step.
        ActionGroup(name="hand", dims=("x", "y", "z"), mode="delta", low=-1.0, high=1.0),
        # An effort that is held until the next one, from open (-1) to closed (+1).
        ActionGroup(name="gripper", dims=("gripper",), low=-1.0, high=1.0, role="gripper"),
    ),
    state=(
        StateField(name="hand_position", dims=("x", "y", "z"), units="m", role="hand_position"),
        StateField(name="gripper", dims=("opening",), role="gripper_opening"),
    ),
    cameras=(Camera(name="corner2"),),
)
