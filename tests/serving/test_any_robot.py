"""Served robots that are not LIBERO's: no gripper, absolute joints, other commands, other cameras, other rates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_server import HORIZON, save_tiny_checkpoint, serving, tiny_statistics

from statevla.acting.policy import StateVLAPolicy
from statevla.robots import LIBERO, LIBERO_EITHER, LIBERO_HAND, ActionGroup, Camera, RobotSpec, StateField
from statevla.types import Observation
from statevla_client import PolicyClient, PolicyClientError
from statevla_client.client import request_of

Observe = Callable[..., Observation]

JOINTS = tuple(f"joint_{i}" for i in range(6))
ARM = RobotSpec(
    name="arm",
    control_freq_hz=30,
    actions=(ActionGroup(name="arm", dims=JOINTS, state="joints"),),
    state=(StateField(name="joints", dims=JOINTS, units="rad"), StateField(name="force", dims=("z",), units="N")),
    cameras=(Camera(name="front", fit="crop"),),
)
"""Six absolute joints, nothing to grip with, one camera."""
SUCKER = RobotSpec(
    name="sucker",
    control_freq_hz=5,
    actions=(
        ActionGroup(name="valves", dims=("left", "right"), kind="binary", values=(0, 1), role="gripper"),
        ActionGroup(name="hand", dims=("x", "y"), mode="delta"),
    ),
    state=(StateField(name="pressure", dims=("left", "right"), units="bar"),),
    cameras=(Camera(name="top"), Camera(name="left"), Camera(name="right")),
)
"""Binary commands 0 and 1, before the continuous ones."""
ROBOTS = pytest.mark.parametrize("robot", [ARM, SUCKER], ids=["arm", "sucker"])


def flat_request(observation: Observation, robot: RobotSpec) -> dict:
    message = {key: value for key, value in request_of(observation).items() if not key.startswith("robot_state/")}
    return {**message, "robot_state": robot.policy_state(observation.robot_state, "test")}


@contextlib.contextmanager
def client_of(folder: Path, robot: RobotSpec) -> Iterator[PolicyClient]:
    policy = StateVLAPolicy.from_pretrained(save_tiny_checkpoint(folder, robot))
    with serving(policy) as server, PolicyClient(port=server.port) as client:
        yield client


@ROBOTS
def test_chunks_are_the_policys_own(robot: RobotSpec, tmp_path: Path, observe: Observe) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path, robot)
    served, local = (StateVLAPolicy.from_pretrained(checkpoint) for _ in range(2))
    with serving(served) as server, PolicyClient(port=server.port) as client:
        assert client.metadata["robot"] == robot.to_dict()
        assert RobotSpec.from_dict(client.metadata["robot"], "metadata") == robot
        assert client.metadata["control_freq_hz"] == robot.control_freq_hz
        assert client.metadata["cameras"] == list(robot.camera_names)
        assert (client.metadata["robot_state_dim"], client.metadata["action_dim"]) == (
            robot.state_dim,
            robot.action_dim,
        )
        for seed in range(3):
            chunk = client.act_chunk(observe(seed, robot)).actions
            assert chunk.shape == (HORIZON, robot.action_dim)
            np.testing.assert_allclose(chunk, local.act_chunk(observe(seed, robot)).actions, atol=1e-5)
            # In the robot's units: what the model answers is around 0, the actions of the data were 2 to 4.
            known = tiny_statistics(robot).actions
            continuous = ~robot.is_binary
            assert (chunk[:, continuous] >= known.min[continuous].astype(np.float32)).all()
            assert (chunk[:, continuous] <= known.max[continuous].astype(np.float32)).all()
            assert set(np.unique(chunk[:, robot.is_binary])) <= {0.0, 1.0}


def test_both_commands_of_a_binary_group_come_back(tmp_path: Path, observe: Observe) -> None:
    with client_of(tmp_path, SUCKER) as client:
        chunks = [client.act_chunk(observe(seed, SUCKER)).actions[:, SUCKER.is_binary] for seed in range(20)]
        client.reset()
        actions = [client.act(observe(0, SUCKER)) for _ in range(HORIZON)]
    assert set(np.unique(chunks)) == {0.0, 1.0}
    assert set(np.unique([action[:2] for action in actions])) <= {0.0, 1.0}


@ROBOTS
def test_flat_and_named_states_are_answered_alike(robot: RobotSpec, tmp_path: Path, observe: Observe) -> None:
    with client_of(tmp_path, robot) as client:
        seen = observe(2, robot)
        client.reset(4)
        named = [client.act(seen) for _ in range(HORIZON)]
        client.reset(4)
        flat = [client.act(flat_request(seen, robot)) for _ in range(HORIZON)]
        np.testing.assert_array_equal(named, flat)
        client.reset(4)
        chunk = client.act_chunk(flat_request(seen, robot)).actions
        np.testing.assert_array_equal(named, chunk)
        # Positive control: the state matters.
        client.reset(4)
        other = flat_request(seen, robot)
        other["robot_state"] = other["robot_state"][::-1].copy()
        assert not np.array_equal(client.act_chunk(other).actions, chunk)


def test_relative_targets_come_back_absolute(tmp_path: Path, observe: Observe) -> None:
    """The same picture and a joint state moved beyond every bound: the answer ends at the bounds of the data."""
    checkpoint = save_tiny_checkpoint(tmp_path, ARM, relative_actions=("arm",))
    served, local = (StateVLAPolicy.from_pretrained(checkpoint) for _ in range(2))
    seen, known = observe(0, ARM), tiny_statistics(ARM).actions
    far = Observation(seen.images, {**seen.robot_state, "joints": np.full(6, 50.0)}, seen.instruction)
    near = Observation(seen.images, {**seen.robot_state, "joints": np.full(6, 3.0)}, seen.instruction)
    with serving(served) as server, PolicyClient(port=server.port) as client:
        np.testing.assert_allclose(client.act_chunk(far).actions, np.tile(known.max, (HORIZON, 1)), rtol=1e-6)
        local.act_chunk(far)
        np.testing.assert_allclose(client.act_chunk(near).actions, local.act_chunk(near).actions, atol=1e-5)


def test_unfit_observations_are_refused_in_one_line(tmp_path: Path, observe: Observe) -> None:
    seen = request_of(observe(0, ARM))
    flat = flat_request(observe(0, ARM), ARM)
    unfit = [
        (
            {**seen, "robot_state/joints": np.zeros(7)},
            r"robot_state/joints: expected 6 numbers \(joint_0, .*shape \[7\]",
        ),
        ({**seen, "robot_state/joints": np.full(6, np.nan)}, "robot_state/joints: expected finite numbers, got NaN"),
        ({**flat, "robot_state": np.zeros(6)}, r"robot_state: expected 7 numbers \(joints \(6\), force \(1\)\), got"),
        ({**flat, "robot_state": np.full(7, np.inf)}, "robot_state: expected finite numbers, got NaN or infinity"),
        (
            {key: value for key, value in seen.items() if key != "robot_state/force"},
            "robot_state/force: expected 1 num",
        ),
        ({key: value for key, value in seen.items() if key != "images/front"}, "cameras: expected front, got none"),
        ({**seen, "images/front": np.zeros((32, 32), np.uint8)}, r"images/front: expected uint8 \[H, W, 3\]"),
        ({**flat, "executed_actions": np.zeros((1, 7))}, r"executed_actions: expected floats \[n, 6\]"),
    ]
    with serving(StateVLAPolicy.from_pretrained(save_tiny_checkpoint(tmp_path, ARM))) as server:
        with PolicyClient(port=server.port) as client:
            for request, words in unfit:
                with pytest.raises(PolicyClientError, match=words) as caught:
                    client.infer(request)
                assert "\n" not in str(caught.value)
            assert client.act_chunk(seen).actions.shape == (HORIZON, 6)
        assert server.metrics.errors == {"unfit": len(unfit)}


def test_either_way_of_saying_the_state_is_served(either_checkpoint: Path, observe: Observe) -> None:
    """openpi's eight numbers, the specification's nine, all of them; flat or by field; each is acted on as it is."""
    served, local = (StateVLAPolicy.from_pretrained(either_checkpoint, sampling_temperature=0.0) for _ in range(2))
    whole = observe(0, LIBERO_EITHER)
    answers = []
    with serving(served) as server, PolicyClient(port=server.port) as client:
        for robot in (LIBERO, LIBERO_HAND, LIBERO_EITHER):
            fields = {field.name: whole.robot_state[field.name] for field in robot.policy_fields}
            seen = Observation(whole.images, fields, whole.instruction)
            answers.append(local.act_chunk(seen).actions)
            for request in (request_of(seen), flat_request(seen, robot)):
                np.testing.assert_allclose(client.infer(request)["actions"], answers[-1], atol=1e-5)
            if robot is LIBERO_HAND:
                frames = [np.ascontiguousarray(image[:, ::-1]) for image in whole.images.values()]
                openpis = dict(zip(("observation/image", "observation/wrist_image"), frames))
                openpis |= {"observation/state": flat_request(seen, robot)["robot_state"], "prompt": seen.instruction}
                np.testing.assert_allclose(client.infer(openpis)["actions"], answers[-1], atol=1e-5)
        for one, other in ((0, 1), (1, 2), (0, 2)):
            assert np.abs(answers[one] - answers[other]).max() > 1e-3
        words = (
            r"robot_state: expected 15 numbers \(.*\), or 9 numbers \(joint_positions \(7\), finger_positions \(2\)\), "
            r"or 8 numbers \(hand_position \(3\), .*\), got shape \[7\]; send these"
        )
        with pytest.raises(PolicyClientError, match=words) as caught:
            client.infer({**flat_request(whole, LIBERO_EITHER), "robot_state": np.zeros(7)})
        assert "\n" not in str(caught.value)


def test_openpis_libero_client_is_told_that_this_is_another_robot(tmp_path: Path) -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    request = {
        "observation/image": frame,
        "observation/wrist_image": frame,
        "observation/state": np.zeros(7),  # as many as the robot has
        "prompt": "open the drawer",
    }
    words = r"expected state joints \(6, rad\), force \(1, N\), got hand_position"
    with client_of(tmp_path, ARM) as client, pytest.raises(PolicyClientError, match=words):
        client.infer(request)


def test_frames_of_any_shape_are_fitted_as_declared(tmp_path: Path, observe: Observe) -> None:
    """The camera declares `crop`: what lies beside the middle of a wide frame changes nothing."""
    seen = observe(1, ARM)
    wide = np.zeros((48, 80, 3), np.uint8)
    wide[:, 16:64] = seen.images["front"]
    with client_of(tmp_path, ARM) as client:
        square = client.act_chunk(seen).actions
        client.reset()
        cropped = client.act_chunk(Observation({"front": wide}, seen.robot_state, seen.instruction)).actions
    np.testing.assert_array_equal(square, cropped)


def test_a_robot_of_many_numbers_reaches_the_client(tmp_path: Path, observe: Observe) -> None:
    """Lists of names may be longer than those of requests."""
    skin = RobotSpec(
        name="skin",
        control_freq_hz=100,
        actions=(ActionGroup(name="arm", dims=("a",)),),
        state=(StateField(name="skin", dims=tuple(f"taxel_{i}" for i in range(700))),),
        cameras=(Camera(name="front"),),
    )
    with client_of(tmp_path, skin) as client:
        assert client.metadata["robot"] == skin.to_dict()
        assert client.act_chunk(observe(0, skin)).actions.shape == (HORIZON, 1)
        with pytest.raises(PolicyClientError, match="expected 700 numbers") as caught:
            client.infer({**request_of(observe(0, skin)), "robot_state/skin": np.zeros(3)})
    assert len(str(caught.value)) <= 1000
