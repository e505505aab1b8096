"""Observations that no robot sends, given in Python: one line that blames them, never the weights."""

from __future__ import annotations

import numpy as np
import pytest

from statevla.acting.policy import StateVLAPolicy
from statevla.config import Config
from statevla.errors import UserError
from statevla.robots import LIBERO
from statevla.types import Observation
from untrained_policy import save_untrained

TEXT = "pick up the red block"
FRAME = np.zeros((32, 32, 3), np.uint8)
STATE = LIBERO.named_state(np.zeros(9), "test")


@pytest.fixture(scope="module")
def policy(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> StateVLAPolicy:
    folder = tmp_path_factory.mktemp("policy")
    return StateVLAPolicy.from_pretrained(save_untrained(tiny_config, LIBERO, [TEXT], folder), device="cpu")


def observe(picture: object = FRAME, fingers: object = (0.0, 0.0), text: object = TEXT) -> Observation:
    images = {"agentview": picture, "eye_in_hand": FRAME}
    return Observation(images, {**STATE, "finger_positions": fingers}, text)  # type: ignore[arg-type, dict-item]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fingers": np.array([0, np.nan])}, "robot_state 'finger_positions': NaN or infinite at 1"),
        ({"fingers": ["left", "right"]}, r"expected an array of numbers \[n\], got \['left', 'right'\]"),
        ({"fingers": None}, "got None"),
        ({"fingers": [[0.1], [0.2, 0.3]]}, r"got \[\[0.1\], \[0.2, 0.3\]\]"),
        # Finite, but too great for float32.
        ({"fingers": np.full(2, 1e300)}, "observation robot_state: expected numbers like those of the training data"),
        ({"picture": FRAME[:0, :0]}, r"image 'agentview': it has no pixels, got \[0, 0, 3\]"),
        ({"picture": FRAME.tolist()}, r"image 'agentview': expected uint8 \[H, W, 3\], got list"),
        ({"picture": [FRAME]}, "got list"),
        ({"text": 7}, "instruction: expected text, got int"),
        ({"text": " "}, "the instruction is empty"),
    ],
)
def test_it_is_blamed_in_one_line(policy: StateVLAPolicy, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        policy.act_chunk(observe(**changes))
    assert "\n" not in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_far_but_usable_states_are_answered(policy: StateVLAPolicy) -> None:
    assert np.isfinite(policy.act_chunk(observe(fingers=np.full(2, 1e5))).actions).all()


@pytest.mark.parametrize("given", [{}, {"images": {}}, None, 3, [{}]])
def test_what_is_no_observation_is_told_so(policy: StateVLAPolicy, given: object) -> None:
    policy.reset()
    for ask in (policy.act_chunk, policy.act) if isinstance(given, dict) else (policy.act_chunk,):
        with pytest.raises(UserError, match=r"expected a statevla\.types\.Observation, got (dict|NoneType|int)"):
            ask(given)  # type: ignore[arg-type]
