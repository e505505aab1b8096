"""docs/robots.md is true: its example trains, its tables are those of the code, its messages are what one gets."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from robot_files import BENCH, write_bench_file
from statevla.acting.policy import StateVLAPolicy
from statevla.checkpoints.checkpoint import check_robot
from statevla.config import Config, config_from_dict
from statevla.data import open_reader
from statevla.errors import UserError
from statevla.model.statevla_model import StateVLA
from statevla.robots import KNOWN_ROBOTS, ActionGroup, Camera, RobotSpec, StateField, load_robot
from statevla.training.run import train
from statevla.transforms import RelativeActions
from statevla.types import Observation

PAGE = (Path(__file__).parents[2] / "docs" / "robots.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's `robot.yaml`."""
    found = re.search(r'^```yaml title="robot.yaml"\n(.*?)^```', PAGE, re.M | re.S)
    assert found is not None
    file = tmp_path_factory.mktemp("page") / "robot.yaml"
    file.write_text(found[1])
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data that fit the example and declare nothing."""
    return write_bench_file(tmp_path_factory.mktemp("data") / "turn_demo.hdf5", robot=None)


def config_for(tiny_config: Config, folder: Path, data: Path, robot: Path) -> Config:
    np.savez(folder / "language.npz", **{"turn the handle": np.ones(16, np.float32)})
    tree = tiny_config.model_dump(mode="json")
    tree["model"] |= {"action_dim": "auto", "robot_state_dim": "auto", "cameras": "auto"}
    tree["data"] |= {"path": str(data), "cache_dir": str(folder), "robot": str(robot), "relative_actions": "all"}
    tree["language"]["encoder"] = str(folder / "language.npz")
    tree["training"]["phase1"]["loss"]["keyframe_weight"] = 1.0
    tree["output_dir"] = str(folder / "runs")
    return config_from_dict(tree, "test")


def test_the_example_trains_and_acts(tiny_config: Config, example: Path, data: Path, tmp_path: Path) -> None:
    config = config_for(tiny_config, tmp_path, data, example)
    policy = StateVLAPolicy.from_pretrained(train(config, "2", train(config, "1")), device="cpu")
    assert policy.robot == load_robot(example).model_copy(update={"cameras": policy.robot.cameras})
    state = {"arm": np.array([0.1, -0.2]), "base": np.array([0.3])}
    action = policy.act(Observation({"side": np.zeros((48, 64, 3), np.uint8)}, state, "turn the handle"))
    assert action.shape == (4,)
    assert action[2] in (0.0, 1.0)


def rows(heading: str) -> list[list[str]]:
    """Cells of the table below a heading, without its header."""
    table = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_all_known_robots_are_listed() -> None:
    listed = {row[0].strip("`"): row for row in rows("Known robots")}
    assert listed.keys() == KNOWN_ROBOTS.keys()
    for name, robot in KNOWN_ROBOTS.items():
        _, actions, _, cameras, freq_hz = listed[name]
        assert cameras == ", ".join(robot.camera_names)
        assert float(freq_hz) == robot.control_freq_hz
        if "same" not in actions:
            mode = "delta" if robot.is_delta.any() else "absolute"
            assert mode in actions
            assert ("binary" in actions) == bool(robot.num_binary)


@pytest.mark.parametrize(
    ("heading", "declared"), [("Actions", ActionGroup), ("State", StateField), ("Cameras", Camera)]
)
def test_all_keys_are_explained(heading: str, declared: type) -> None:
    named = {name for row in rows(heading) for name in re.findall(r"`(\w+)[:`]", row[0])}
    assert named == declared.model_fields.keys()


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_messages_are_what_one_gets(tiny_config: Config, example: Path, data: Path, tmp_path: Path) -> None:
    robot = load_robot(example)

    def read(**changes: object) -> Callable[[], object]:
        """Read the data as the example's robot with other keys."""
        return lambda: open_reader(data, robot=robot.model_copy(update=changes)).read(0)

    arm, gripper, base = robot.actions
    seven = tiny_config.model_copy(update={"model": tiny_config.model.model_copy(update={"action_dim": 7})})
    other = StateField(name="arm", dims=("pan", "lift"), key="joints")
    wrong = gripper.model_copy(update={"values": (-1.0, 1.0)})
    found = [
        message(read(actions=(arm, gripper))),
        message(read(state=(other, robot.state[1]))),
        message(read(actions=(arm, wrong, base))),
        message(lambda: StateVLA(seven, robot)),
        message(lambda: RelativeActions(robot, ["hand"])),
        message(lambda: check_robot(robot, BENCH, "checkpoint x")),
    ]
    shown = [row[0].strip("`") for row in rows("When it does not fit")]
    assert len(shown) == len(found)
    for text, raised in zip(shown, found):
        pattern = re.sub(r"\d+", r"-?\\d+", re.escape(text)).replace("my_arm", r"\w+")
        assert re.search(pattern, raised), (text, raised)


def test_a_declaration_is_written_and_given_back(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of the page: write what the file says, correct it, look again."""
    from statevla.commands.data import InspectArgs, inspect

    file = tmp_path / "robot.yaml"
    inspect(InspectArgs(data, write_robot=file))
    assert "# Assumed:" in file.read_text()
    tree = yaml.safe_load(file.read_text())
    tree["control_freq_hz"] = 10
    file.write_text(yaml.safe_dump(tree))
    assert inspect(InspectArgs(data, robot=str(file))) in (0, 1)
    assert RobotSpec.from_dict(tree, "test").action_dim == 4
    assert "binary" in capsys.readouterr().out  # one of the four numbers has two values only
