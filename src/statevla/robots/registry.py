"""Known robots by name, by LeRobot's `robot_type`, and robots out of a user's YAML file."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

from statevla.errors import UserError
from statevla.machine.storage import write_text
from statevla.machine.yaml_text import read_yaml
from statevla.robots.aloha import ALOHA
from statevla.robots.droid import DROID
from statevla.robots.libero import LIBERO, LIBERO_EITHER, LIBERO_HAND, LIBERO_HUB, LIBERO_OPENPI
from statevla.robots.metaworld import METAWORLD
from statevla.robots.so101 import SO101
from statevla.robots.spec import RobotSpec
from statevla.robots.unitree_g1 import UNITREE_G1

_ALL = (
    *(LIBERO, LIBERO_HAND, LIBERO_EITHER, LIBERO_HUB, LIBERO_OPENPI),
    *(METAWORLD, SO101, ALOHA, DROID, UNITREE_G1),
)
KNOWN_ROBOTS: dict[str, RobotSpec] = {robot.name: robot for robot in _ALL}
ROBOT_TYPES = {"Unitree_G1_Inspire": "unitree_g1"}
"""`robot_type` of a LeRobot data set → the known robot whose features it has."""


def load_robot(name: str | Path) -> RobotSpec:
    """A known robot by its name, or one out of a YAML file.

    Raises:
        UserError: no such robot or file, or a malformed one.
    """
    text = str(name)
    if text in KNOWN_ROBOTS:
        return KNOWN_ROBOTS[text]
    file = Path(text).expanduser()
    if file.suffix not in (".yaml", ".yml"):
        near = difflib.get_close_matches(text, KNOWN_ROBOTS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(
            f"robot '{text}': {hint}known are {', '.join(KNOWN_ROBOTS)}; or give a YAML file (docs/robots.md)"
        )
    if not file.exists():
        raise UserError(f"robot {file}: no such file; known robots are {', '.join(KNOWN_ROBOTS)}")
    return RobotSpec.from_dict(read_yaml(file, f"robot {file}"), str(file))


def save_robot(robot: RobotSpec, file: Path) -> None:
    """Write a declaration as YAML, to be edited; what was assumed becomes comments.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    if file.exists():
        raise UserError(f"robot {file}: exists already; choose another file or delete it")
    lines = ["# A robot (docs/robots.md): correct it, and give this file as data.robot or --robot."]
    lines += [f"# Assumed: {' '.join(sentence.split())}" for sentence in robot.assumed]
    tree = {key: value for key, value in robot.to_dict().items() if key != "assumed"}
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)
    write_text(file, "\n".join([*lines, text]), "choose another file")
