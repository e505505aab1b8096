"""Worlds under gymnasium's ids: registered by importing statevla, checked by gymnasium's checker, vectorized."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium")

import gymnasium
from gymnasium.utils.env_checker import check_env

from statevla.errors import UserError
from statevla.worlds.gym_ids import GYM_IDS

DOTS = {"id": "statevla/World-v0", "world": "toy_worlds:DotWorld", "image_size": 24}
SMALL = {
    "LIBERO": {"id": "statevla/LIBERO-v0", "suite": "libero_object", "task": 3, "image_size": 64},
    "SO101": {"id": "statevla/SO101-v0", "image_size": 64},
}
SIMULATED = [
    pytest.param(SMALL[name], id=name, marks=pytest.mark.skipif(not importlib.util.find_spec(package), reason=package))
    for name, package in (("LIBERO", "libero"), ("SO101", "lerobot_env_so101"))
]

VECTORS = """
import sys
import gymnasium
import numpy as np
import statevla

if __name__ == "__main__":
    arguments, seen = eval(sys.argv[1]), {}
    for mode in ("async", "sync"):  # what has drawn cannot be forked
        worlds = gymnasium.make_vec(num_envs=2, vectorization_mode=mode, **arguments)
        worlds.action_space.seed(0)
        first, _ = worlds.reset(seed=3)
        first = {camera: image.copy() for camera, image in first["images"].items()}
        last = [worlds.step(worlds.action_space.sample()) for _ in range(3)][-1][0]
        assert last in worlds.observation_space
        again, _ = worlds.reset(seed=3)
        for camera, image in first.items():
            np.testing.assert_array_equal(image, again["images"][camera])
            assert (image[0] != image[1]).any(), "two seeds, one picture"
        seen[mode] = last
        worlds.close()
    for field, values in seen["sync"]["robot_state"].items():
        np.testing.assert_array_equal(values, seen["async"]["robot_state"][field])
    print("alike")
"""


@pytest.mark.parametrize("order", ["import statevla, gymnasium", "import gymnasium, statevla"])
def test_importing_registers_and_loads_no_simulator(order: str) -> None:
    code = (
        f"import sys\n{order}\nassert {set(GYM_IDS)} <= set(gymnasium.registry)\n"
        "assert not {'torch', 'mujoco', 'libero', 'robosuite'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_costs_nothing_without_gymnasium() -> None:
    """It is not imported for the ids, and where it is missing, that is said by whoever imports it."""
    code = (
        "import sys, statevla\n"
        "assert not {'gymnasium', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "from importlib.util import find_spec\nassert find_spec('gymnasium') and 'gymnasium' not in sys.modules\n"
        "sys.path = []\n"
        "try:\n    import gymnasium\nexcept ModuleNotFoundError as error:\n    assert error.name == 'gymnasium'\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of unbounded joint angles
@pytest.mark.parametrize("arguments", [DOTS, *SIMULATED])
def test_gymnasiums_checker_passes(arguments: dict[str, Any]) -> None:
    env = gymnasium.make(**arguments)
    check_env(env.unwrapped)
    seen, _ = env.reset(seed=1)
    size = arguments["image_size"]
    assert {image.shape for image in seen["images"].values()} == {(size, size, 3)}
    assert list(seen["robot_state"]) == [field.name for field in env.unwrapped.robot.state]
    env.close()
    drawing = gymnasium.make(**arguments, render_mode="rgb_array")
    drawing.reset(seed=1)
    np.testing.assert_array_equal(drawing.render(), next(iter(seen["images"].values())))
    drawing.close()


@pytest.mark.parametrize("arguments", [DOTS, *SIMULATED])
def test_pictures_are_left_out(arguments: dict[str, Any]) -> None:
    env = gymnasium.make(**arguments, images=False, render_mode="rgb_array")
    seen, _ = env.reset(seed=1)
    assert list(seen) == list(env.observation_space) == ["robot_state"]
    assert seen in env.observation_space
    assert env.render().shape[-1] == 3
    env.close()


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("arguments", [DOTS, *SIMULATED])
def test_vectors_repeat_by_seed_and_are_alike(arguments: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", VECTORS, repr(arguments)], capture_output=True, text=True, timeout=300, cwd="tests"
    )
    assert done.stdout == "alike\n", done.stderr[-2000:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": 5}, "task 5"),
        ({"world": "toy_worlds:Dot"}, "module 'toy_worlds' has no 'Dot'"),
        ({"cameras": ("left",)}, "no camera 'left', it has top, side"),
        ({"cameras": ()}, "cameras: expected at least one; leave pictures out with images=False"),
        ({"colour": "red"}, "takes no option 'colour'"),
        ({"render_mode": "ansi"}, "render_mode: expected rgb_array or none, got 'ansi'"),
        ({"id": "statevla/LIBERO-v0", "world": None, "suite": "so101"}, "suite 'so101': LIBERO has no such suite"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_does_not_fit_is_one_line(changes: dict[str, Any], message: str) -> None:
    arguments = {key: value for key, value in {**DOTS, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=message) as caught:
        gymnasium.make(**arguments)
    assert "\n" not in str(caught.value)
