"""Requests to observations: which way up pictures are, which state is which, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from statevla.config import ModelConfig
from statevla.errors import UserError
from statevla.serving.client import request_of
from statevla.serving.formats import ORIENTATIONS, read_request
from statevla.types import Observation, RobotStateLayout

JOINT = ModelConfig()
EE = ModelConfig(robot_state_layout=RobotStateLayout.EE_GRIPPER, robot_state_dim=8)


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
    request = read_request(openpi_request(upright), EE)
    assert request.mode == "chunk"
    observation = request.observation
    assert observation is not None
    assert set(observation.images) == {"agentview", "eye_in_hand"}
    for image in observation.images.values():
        np.testing.assert_array_equal(image, upright)
    assert observation.robot_state_layout is RobotStateLayout.EE_GRIPPER
    assert observation.robot_state.tolist() == list(range(8))
    assert observation.instruction == "push the red block"


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
    observation = read_request(message, JOINT).observation
    assert observation is not None
    np.testing.assert_array_equal(observation.images["agentview"], upright)
    assert name in ORIENTATIONS


def test_own_names_come_back(observe: Callable[..., Observation]) -> None:
    sent = observe(3)
    got = read_request(request_of(sent), JOINT).observation
    assert got is not None
    np.testing.assert_array_equal(got.robot_state, sent.robot_state)
    for camera, image in sent.images.items():
        np.testing.assert_array_equal(got.images[camera], image)
    assert (got.instruction, got.robot_state_layout) == (sent.instruction, sent.robot_state_layout)


def test_lists_of_numbers_are_states_too(observe: Callable[..., Observation]) -> None:
    message = {**request_of(observe()), "robot_state": [0.5, 1, 2, 3, 4, 5, 6, 7, 8]}
    observation = read_request(message, JOINT).observation
    assert observation is not None
    assert observation.robot_state.tolist() == [0.5, *range(1, 9)]


def test_cameras_that_the_model_has_not_are_dropped(observe: Callable[..., Observation], upright: np.ndarray) -> None:
    observation = read_request({**request_of(observe()), "images/extra": upright}, JOINT).observation
    assert observation is not None
    assert set(observation.images) == {"agentview", "eye_in_hand"}


def test_other_layout_is_refused_with_the_way_out(upright: np.ndarray) -> None:
    with pytest.raises(UserError) as caught:
        read_request(openpi_request(upright), JOINT)
    text = str(caught.value)
    assert "expected layout 'joint_gripper' (9 numbers), got 'ee_gripper' (8)" in text
    assert "serve a policy trained on 'ee_gripper'" in text
    assert "\n" not in text


GOOD = np.zeros((16, 16, 3), np.uint8)
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
    ({"robot_state": None}, "request keys"),
    ({"robot_state_layout": None}, "request keys"),
    ({"instruction": None}, "request keys"),
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
    ({"robot_state": np.zeros(8)}, r"expected 9 numbers .* got shape \[8\]"),
    ({"robot_state": np.zeros((1, 9))}, "got shape"),
    ({"robot_state": np.full(9, np.nan)}, "finite"),
    ({"robot_state": np.full(9, 1e300)}, "finite"),
    ({"robot_state": np.zeros(9, bool)}, "got bool"),
    ({"robot_state": "nine"}, "got str"),
    ({"robot_state": [1, 2, True]}, "got list"),
    ({"robot_state_layout": "ee_gripper", "robot_state": np.zeros(8)}, "expected layout 'joint_gripper'"),
    ({"robot_state_layout": "other"}, "robot_state_layout: expected one of"),
    ({"robot_state_layout": np.zeros(2)}, "robot_state_layout: expected one of"),
    ({"robot_state_layout": {}}, "robot_state_layout: expected one of"),
    ({"instruction": " "}, "instruction: expected the task in words"),
    ({"instruction": 5}, "instruction: expected the task in words"),
    ({"instruction": "x" * 1025}, "at most 1024"),
]


@pytest.mark.parametrize(("changes", "words"), UNFIT)
def test_unfit_requests(changes: dict, words: str, observe: Callable[..., Observation]) -> None:
    whole = {**request_of(observe()), **changes}
    message = {key: value for key, value in whole.items() if value is not None}
    if "images/agentview" not in message:
        words = "cameras: expected agentview, eye_in_hand, got eye_in_hand; send images/agentview"
    with pytest.raises(UserError, match=words) as caught:
        read_request(message, JOINT)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_requests_without_observation() -> None:
    assert read_request({"reset": True, "episode": 7}, JOINT).only_resets
    assert read_request({"mode": "act"}, JOINT).observation is None
    with pytest.raises(UserError, match="expected an observation"):
        read_request({}, JOINT)
