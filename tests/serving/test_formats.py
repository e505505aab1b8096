"""Requests to observations: which way up pictures are, which state is which, and what is refused with which words."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from statevla.errors import UserError
from statevla.robots import (
    ALOHA,
    DROID,
    KNOWN_ROBOTS,
    LIBERO,
    LIBERO_EITHER,
    LIBERO_HAND,
    ActionGroup,
    Camera,
    RobotSpec,
    StateField,
)
from statevla.serving.formats import ORIENTATIONS, read_request
from statevla.serving.openpi import OPENPI_LIBERO
from statevla.types import Observation
from statevla_client.client import request_of

GRIP = DROID.actions[1]
BLIND = RobotSpec(
    name="blind",
    control_freq_hz=10,
    actions=(ActionGroup(name="push", dims=("x", "y")),),
    cameras=(Camera(name="top"),),
)
"""It reports no state."""


def openpi_request(upright: np.ndarray) -> dict:
    """As openpi's LIBERO script makes it from the simulator's raw frame, which is upside down."""
    raw = upright[::-1]
    sent = np.ascontiguousarray(raw[::-1, ::-1])
    return {
        "observation/image": sent,
        "observation/wrist_image": sent,
        "observation/state": np.arange(8.0),
        "prompt": "push the red block",
    }


@pytest.fixture
def upright() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def test_openpis_frames_become_upright(upright: np.ndarray) -> None:
    request = read_request(openpi_request(upright), LIBERO_HAND)
    assert request.mode == "chunk"
    observation = request.observation
    assert observation is not None
    assert set(observation.images) == {"agentview", "eye_in_hand"}
    for image in observation.images.values():
        np.testing.assert_array_equal(image, upright)
    assert LIBERO_HAND.policy_state(observation.robot_state, "test").tolist() == list(range(8))
    assert observation.robot_state["hand_orientation"].tolist() == [3, 4, 5]
    assert observation.instruction == "push the red block"


def test_one_way_of_saying_the_state_is_enough(upright: np.ndarray, observe: Callable[..., Observation]) -> None:
    sent = read_request(openpi_request(upright), LIBERO_EITHER).observation
    assert sent is not None
    assert set(sent.robot_state) == {"hand_position", "hand_orientation", "finger_positions"}
    own = read_request(request_of(observe(0, LIBERO)), LIBERO_EITHER).observation
    assert own is not None
    assert set(own.robot_state) == {"joint_positions", "finger_positions"}
    message = request_of(observe(0, LIBERO_HAND))
    del message["robot_state/hand_orientation"]
    with pytest.raises(UserError, match=r"robot_state/hand_orientation: expected 3 numbers"):
        read_request(message, LIBERO_EITHER)


@pytest.mark.parametrize(
    ("name", "store"),
    [
        ("upright", lambda image: image),
        ("flipped_vertically", lambda image: image[::-1]),
        ("rotated_180", lambda image: image[::-1, ::-1]),
        ("mirrored", lambda image: image[:, ::-1]),
    ],
)
def test_every_orientation_becomes_upright(
    name: str, store: Callable, upright: np.ndarray, observe: Callable[..., Observation]
) -> None:
    message = request_of(observe())
    message["images/agentview"], message["image_orientation"] = store(upright), name
    observation = read_request(message, LIBERO).observation
    assert observation is not None
    np.testing.assert_array_equal(observation.images["agentview"], upright)
    assert name in ORIENTATIONS


@pytest.mark.parametrize("robot", KNOWN_ROBOTS.values(), ids=str)
def test_own_names_come_back(robot: RobotSpec, observe: Callable[..., Observation]) -> None:
    sent = observe(3, robot)
    got = read_request(request_of(sent), robot).observation
    assert got is not None
    assert list(got.robot_state) == [field.name for field in robot.policy_fields]
    for field, values in sent.robot_state.items():
        np.testing.assert_array_equal(got.robot_state[field], values)
    assert got.images.keys() == sent.images.keys()
    for camera, image in sent.images.items():
        np.testing.assert_array_equal(got.images[camera], image)
    assert got.instruction == sent.instruction


def flat_request(observation: Observation, robot: RobotSpec) -> dict:
    named = request_of(observation)
    others = {key: value for key, value in named.items() if not key.startswith("robot_state/")}
    return {**others, "robot_state": robot.policy_state(observation.robot_state, "test")}


@pytest.mark.parametrize("robot", KNOWN_ROBOTS.values(), ids=str)
def test_flat_states_are_the_named_ones_in_declared_order(
    robot: RobotSpec, observe: Callable[..., Observation]
) -> None:
    sent = observe(4, robot)
    got = read_request(flat_request(sent, robot), robot).observation
    assert got is not None
    assert got.robot_state.keys() == sent.robot_state.keys()
    for field, values in sent.robot_state.items():
        np.testing.assert_array_equal(got.robot_state[field], values)


def test_fields_that_the_policy_does_not_see_are_dropped(observe: Callable[..., Observation]) -> None:
    seen = {**observe().robot_state, "hand_position": np.zeros(3), "unheard_of": np.zeros(50)}
    message = request_of(Observation(observe().images, seen, "push"))
    observation = read_request(message, LIBERO).observation
    assert observation is not None
    assert list(observation.robot_state) == ["joint_positions", "finger_positions"]


def test_a_robot_without_state_sends_none(observe: Callable[..., Observation]) -> None:
    message = request_of(observe(0, BLIND))
    assert set(message) == {"images/top", "instruction"}
    observation = read_request(message, BLIND).observation
    assert observation is not None
    assert observation.robot_state == {}


def test_lists_of_numbers_are_states_too(observe: Callable[..., Observation]) -> None:
    message = {**flat_request(observe(), LIBERO), "robot_state": [0.5, 1, 2, 3, 4, 5, 6, 7, 8]}
    observation = read_request(message, LIBERO).observation
    assert observation is not None
    assert LIBERO.policy_state(observation.robot_state, "test").tolist() == [0.5, *range(1, 9)]
    message = {**request_of(observe()), "robot_state/finger_positions": [0.25, 1]}
    observation = read_request(message, LIBERO).observation
    assert observation is not None
    assert observation.robot_state["finger_positions"].tolist() == [0.25, 1]


def test_cameras_that_the_model_has_not_are_dropped(observe: Callable[..., Observation], upright: np.ndarray) -> None:
    for name in ("extra", "../../etc/passwd"):
        observation = read_request({**request_of(observe()), f"images/{name}": upright}, LIBERO).observation
        assert observation is not None
        assert set(observation.images) == {"agentview", "eye_in_hand"}


def redeclared(field: StateField, **changes: object) -> RobotSpec:
    """LIBERO_HAND with one field declared otherwise."""
    state = tuple(own.model_copy(update=changes) if own == field else own for own in LIBERO_HAND.state)
    return LIBERO_HAND.model_copy(update={"name": "other", "state": state})


HAND, TURN = LIBERO_HAND.state[:2]
ABSOLUTE = LIBERO_HAND.model_copy(
    update={"actions": (LIBERO_HAND.actions[0].model_copy(update={"mode": "absolute"}), LIBERO_HAND.actions[1])}
)
"""The state is openpi's, the numbers of an action are as many, but they are places and not steps."""


@pytest.mark.parametrize(
    ("robot", "expected"),
    [
        (LIBERO, "expected state joint_positions (7, rad), finger_positions (2, m), got hand_position (3, m), hand_or"),
        # As many numbers as openpi sends, that mean something else.
        (redeclared(HAND, name="elbow_position"), "expected state elbow_position (3, m), .*, got hand_position (3, m)"),
        (redeclared(TURN, units="rad, Euler angles"), "rad, Euler angles.*, got .*rad, axis-angle"),
        (
            ABSOLUTE,
            "expected a client that takes hand (6 continuous, absolute), .* got one for hand (6 continuous, del",
        ),
        (KNOWN_ROBOTS["so101"], "expected state arm (5, rad), gripper (1, rad), got hand_position"),
    ],
)
def test_a_format_of_another_robot_is_refused_with_the_way_out(
    robot: RobotSpec, expected: str, upright: np.ndarray
) -> None:
    with pytest.raises(UserError) as caught:
        read_request(openpi_request(upright), robot)
    text = str(caught.value)
    assert re.search(expected.replace("(", r"\(").replace(")", r"\)"), text), text
    assert text.startswith("openpi's LIBERO keys: ")
    assert "send StateVLA's own keys (images/" in text
    assert "serve a policy of robot 'libero_hand'" in text
    assert "\n" not in text
    assert len(text) < 600


def test_what_a_policy_does_not_see_makes_no_format_unfit(upright: np.ndarray) -> None:
    """openpi's state by name: a policy that sees only the hand's place takes it from there; units may be unsaid."""
    few = LIBERO_HAND.model_copy(update={"state": (LIBERO_HAND.state[2].model_copy(update={"units": ""}), HAND)})
    assert OPENPI_LIBERO.misfit(few) is None
    observation = read_request(openpi_request(upright), few).observation
    assert observation is not None
    assert few.policy_state(observation.robot_state, "test").tolist() == [6, 7, 0, 1, 2]


def droid_request(upright: np.ndarray) -> dict:
    """As openpi's DROID script makes it."""
    return {
        "observation/exterior_image_1_left": upright,
        "observation/wrist_image_left": upright[::-1],
        "observation/joint_position": np.arange(7.0),
        "observation/gripper_position": np.array([0.25]),
        "prompt": "push the red block",
    }


def aloha_request(upright: np.ndarray, cameras: tuple[str, ...] = ("cam_high",)) -> dict:
    """As openpi's ALOHA environments make it: pictures channels first in a mapping, and no prompt."""
    frame = np.ascontiguousarray(upright.transpose(2, 0, 1))
    return {"state": np.arange(14.0), "images": {name: frame + np.uint8(i) for i, name in enumerate(cameras)}}


STATION = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
ALOHA_STATION = ALOHA.model_copy(update={"cameras": tuple(Camera(name=name) for name in STATION)})
LEFT_RIGHT = [f"{side}_{dim}" for side in ("left", "right") for dim in (*ALOHA.actions[0].dims, "gripper")]
ALOHA_BY_ITS_DATA = RobotSpec(
    name="aloha",
    control_freq_hz=50,
    actions=(ActionGroup(name="action", dims=tuple(LEFT_RIGHT), state="state"),),
    state=(StateField(name="state", dims=tuple(LEFT_RIGHT)),),
    cameras=(Camera(name="top"),),
)
"""What is derived from the names in a data set of the hub."""


def test_openpis_droid_keys_are_a_droids(upright: np.ndarray) -> None:
    observation = read_request(droid_request(upright), DROID).observation
    assert observation is not None
    np.testing.assert_array_equal(observation.images["exterior_image_1_left"], upright)
    np.testing.assert_array_equal(observation.images["wrist_image_left"], upright[::-1])
    assert DROID.policy_state(observation.robot_state, "test").tolist() == [*range(7), 0.25]
    assert observation.robot_state["gripper_position"].tolist() == [0.25]
    scalar = {**droid_request(upright), "observation/gripper_position": np.float64(0.25)}
    found = read_request(scalar, DROID).observation
    assert found is not None
    assert found.robot_state["gripper_position"].tolist() == [0.25]


@pytest.mark.parametrize("robot", [ALOHA, ALOHA_STATION, ALOHA_BY_ITS_DATA], ids=["one camera", "four", "derived"])
def test_openpis_aloha_keys_are_an_alohas(robot: RobotSpec, upright: np.ndarray) -> None:
    cameras = STATION if robot is ALOHA_STATION else STATION[:1]
    message = aloha_request(upright, cameras)
    observation = read_request(message, robot, default_prompt="transfer the cube").observation
    assert observation is not None
    assert observation.instruction == "transfer the cube"
    assert tuple(observation.images) == robot.camera_names
    for i, image in enumerate(observation.images.values()):
        np.testing.assert_array_equal(image, upright + np.uint8(i))
    assert robot.policy_state(observation.robot_state, "test").tolist() == list(range(14))
    own = read_request({**message, "prompt": "open it"}, robot, default_prompt="transfer the cube").observation
    assert own is not None
    assert own.instruction == "open it"
    with pytest.raises(
        UserError, match=r"prompt: expected the task in words, got none; send it, or .*--default-prompt"
    ):
        read_request(message, robot)


def test_a_default_prompt_serves_own_names_too(observe: Callable[..., Observation]) -> None:
    message = request_of(observe())
    del message["instruction"]
    observation = read_request(message, LIBERO, default_prompt="open the drawer").observation
    assert observation is not None
    assert observation.instruction == "open the drawer"


@pytest.mark.parametrize(
    ("make", "robot"), [(openpi_request, LIBERO_HAND), (droid_request, DROID), (aloha_request, ALOHA)]
)
def test_what_openpis_clients_send_besides_is_ignored_and_said(
    make: Callable, robot: RobotSpec, upright: np.ndarray
) -> None:
    message = {"prompt": "push", **make(upright)}
    assert read_request(message, robot).ignored == ""
    more = {**message, "timestamp": 3.5, "evil\nkey": 1, "observation/depth": np.zeros((4, 4))}
    request = read_request(more, robot)
    assert request.ignored == "timestamp, ?, observation/depth"
    plain = read_request(message, robot).observation
    assert request.observation is not None
    assert plain is not None
    for camera, image in plain.images.items():
        np.testing.assert_array_equal(request.observation.images[camera], image)


@pytest.mark.parametrize(
    ("change", "robot", "words"),
    [
        ({"observation/wrist_image_left": None}, DROID, "got no observation/wrist_image_left; send this picture too"),
        ({"observation/joint_position": np.zeros(6)}, DROID, r"expected 7 numbers \(joint_position\), got shape \[6\]"),
        ({"observation/gripper_position": np.zeros(2)}, DROID, r"expected 1 numbers \(gripper_position\), got shape"),
        ({}, LIBERO_HAND, "openpi's DROID keys: expected state hand_position .* serve a policy of robot 'droid'"),
        (
            {},
            DROID.model_copy(update={"cameras": (*DROID.cameras, Camera(name="chest"))}),
            "expected cameras .*, it has none for 'chest'; send StateVLA's own keys",
        ),
        (
            {},
            DROID.model_copy(update={"actions": (DROID.actions[0].model_copy(update={"mode": "absolute"}), GRIP)}),
            "expected a client that takes joint_velocity .7 continuous, absolute",
        ),
        (
            {},
            DROID.model_copy(update={"actions": (DROID.actions[0], GRIP.model_copy(update={"low": -1.0}))}),
            "expected a client whose lowest 'gripper' is -1, got one for 0",
        ),
    ],
)
def test_what_does_not_fit_openpis_droid_keys(change: dict, robot: RobotSpec, words: str, upright: np.ndarray) -> None:
    message = {key: value for key, value in {**droid_request(upright), **change}.items() if value is not None}
    with pytest.raises(UserError, match=words) as caught:
        read_request(message, robot)
    assert "\n" not in str(caught.value)


def test_aloha_pictures_are_channels_first(upright: np.ndarray) -> None:
    message = {**aloha_request(upright), "prompt": "push"}
    message["images"]["cam_high"] = upright
    with pytest.raises(UserError, match=r"images/cam_high: expected uint8 \[3, H, W\], got uint8 \[16, 24, 3\]"):
        read_request(message, ALOHA)


GOOD = np.zeros((16, 16, 3), np.uint8)
FLAT: dict = {"robot_state/joint_positions": None, "robot_state/finger_positions": None}
"""Removes the named fields."""
NINE = r"robot_state: expected 9 numbers \(joint_positions \(7\), finger_positions \(2\)\)"
UNFIT: list[tuple[dict, str]] = [
    ({"mode": "chunks"}, "mode: expected"),
    ({"mode": 3}, "mode: expected"),
    ({"mode": []}, "mode: expected"),
    ({"mode": np.zeros(2)}, "mode: expected"),
    ({"reset": 1}, "reset: expected"),
    ({"reset": True, "episode": -1}, "episode: expected"),
    ({"reset": True, "episode": 1.5}, "episode: expected"),
    ({"episode": 1}, "together with reset"),
    ({"images/agentview": None}, "request keys: expected images/agentview"),
    ({"robot_state/joint_positions": None}, r"robot_state/joint_positions: expected 7 numbers \(joint_1, .* got none"),
    ({"robot_state/joint_positions": None, "robot_state/finger_positions": None}, "request keys: .* robot_state as"),
    ({"instruction": None}, "request keys"),
    ({"robot_state_layout": "joint_gripper"}, "request keys"),
    ({"robot_state": np.zeros(9)}, "robot_state: expected flat or by field, got both"),
    ({"bonus": 1}, "got images/agentview.*bonus"),
    ({"evil\nkey {}": 1}, r"\?"),
    ({"images/agentview": GOOD.astype(np.float32)}, "got float32"),
    ({"images/agentview": GOOD[None]}, r"got uint8 \[1, 16, 16, 3\]"),
    ({"images/agentview": GOOD.transpose(2, 0, 1)}, "channels last"),
    ({"images/agentview": GOOD[:0]}, "sides of 8"),
    ({"images/agentview": np.zeros((5000, 8, 3), np.uint8)}, "sides of 8"),
    ({"images/agentview": b"png"}, "got bytes"),
    ({"image_orientation": "sideways"}, "image_orientation: expected one of upright"),
    ({"image_orientation": ["upright"]}, "image_orientation"),
    (FLAT | {"robot_state": np.zeros(8)}, NINE + r", got shape \[8\]"),
    (FLAT | {"robot_state": np.zeros((1, 9))}, NINE + r", got shape \[1, 9\]"),
    (FLAT | {"robot_state": np.zeros(())}, r"got shape \[\]"),
    (FLAT | {"robot_state": np.full(9, np.nan)}, "robot_state: expected finite"),
    (FLAT | {"robot_state": np.full(9, 1e300)}, "robot_state: expected finite"),
    (FLAT | {"robot_state": np.zeros(9, bool)}, "got bool"),
    (FLAT | {"robot_state": "nine"}, NINE + " as an array, got str"),
    (FLAT | {"robot_state": [1, 2, True]}, "got list"),
    (FLAT | {"robot_state": {}}, "got dict"),
    ({"robot_state/finger_positions": np.zeros(3)}, r"expected 2 numbers \(left, right\), got shape \[3\]"),
    ({"robot_state/finger_positions": np.float32(1)}, "robot_state/finger_positions: .* got float32"),
    ({"robot_state/finger_positions": np.full(2, np.inf)}, "robot_state/finger_positions: expected finite"),
    ({"robot_state/finger_positions": None, "robot_state/fingers": np.zeros(2)}, "got none but .*robot_state/fingers"),
    ({"instruction": " "}, "instruction: expected the task in words"),
    ({"instruction": 5}, "instruction: expected the task in words"),
    ({"instruction": "x" * 1025}, "at most 1024"),
    ({"instruction": "open\x1b[2Jit"}, "instruction: expected printable text, got control characters"),
    ({"instruction": "open\x00it"}, "instruction: expected printable text"),
    # Shapes of a thousand billion rows that hold nothing.
    ({"images/agentview": np.zeros((10**12, 0, 3), np.uint8)}, r"got uint8 \[1000000000000, 0, 3\]"),
    (FLAT | {"robot_state": np.zeros((10**12, 0))}, NINE + r", got shape \[1000000000000, 0\]"),
    ({"executed_actions": np.zeros((10**12, 0))}, r"expected floats \[n, 7\] .* got float64 \[1000000000000, 0\]"),
    ({"../../x": 1}, r"request keys: .* got .*\?"),
]


@pytest.mark.parametrize(("changes", "words"), UNFIT)
def test_unfit_requests(changes: dict, words: str, observe: Callable[..., Observation]) -> None:
    whole = {**request_of(observe()), **changes}
    message = {key: value for key, value in whole.items() if value is not None}
    if "images/agentview" not in message:
        words = "cameras: expected agentview, eye_in_hand, got eye_in_hand; send images/agentview"
    with pytest.raises(UserError, match=words) as caught:
        read_request(message, LIBERO)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_requests_without_observation() -> None:
    assert read_request({"reset": True, "episode": 7}, LIBERO).only_resets
    assert read_request({"mode": "act"}, LIBERO).observation is None
    with pytest.raises(UserError, match="expected an observation"):
        read_request({}, LIBERO)
