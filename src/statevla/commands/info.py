"""`statevla info`: what a configuration builds for a robot, or what a checkpoint is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Column, Table

from statevla.checkpoints.checkpoint import read_config, read_robot, resolve_checkpoint
from statevla.config import Config, fit_to_robot, load_config
from statevla.errors import UserError
from statevla.model.statevla_model import StateVLA
from statevla.robots import LIBERO, RobotSpec, load_robot
from statevla.robots.describe import camera_text, field_text, group_text

NOT_DEPLOYED = (
    "target encoder (EMA)",
    "temporal predictor",
    "inverse dynamics",
    "keyframe head",
    "later keyframe head",
)


@dataclass(frozen=True)
class InfoArgs:
    config: str | None = None
    """Configuration to describe: a preset's name or a YAML file; `config` by default."""
    robot: str | None = None
    """Robot that the configuration is to be built for: a known one's name or a YAML file; `data.robot` by default, and
    LIBERO's where that is `auto`."""
    checkpoint: str | None = None
    """A checkpoint to describe instead; it brings configuration and robot along."""


def info(args: InfoArgs) -> None:
    """Print the parameters of every part, the robot, the token sequence and the shapes."""
    if args.checkpoint is None:
        name = args.config or "config"
        config = load_config(name)
        declared = args.robot or config.data.robot
        robot = LIBERO if declared == "auto" else load_robot(declared)
    elif args.config is None and args.robot is None:
        name = args.checkpoint
        folder = resolve_checkpoint(name)
        config, robot = read_config(folder), read_robot(folder)
    else:
        raise UserError("info: expected --checkpoint alone, it has its configuration and robot; leave the others out")
    config, robot = fit_to_robot(config, robot)
    with torch.device("meta"):
        table = StateVLA(config, robot).parameter_table()
    console = Console(markup=False)
    console.print(_parameters(name, table))
    console.print(robot_table(robot))
    for sentence in robot.assumed:
        console.print(f"assumed: {sentence}", markup=False, highlight=False)
    console.print(_shapes(config, robot))


def robot_table(robot: RobotSpec) -> Table:
    """What a robot declares: its actions, its state, its cameras."""
    title = f"robot {robot.name}, {robot.control_freq_hz:g} Hz"
    table = Table("what", Column("name", no_wrap=True), "in order", title=title)
    parts = {
        "actions": [(group.name, group_text(group)) for group in robot.actions],
        "state": [(field.name, field_text(field)) for field in robot.state],
        "cameras": [(camera.name, camera_text(camera)) for camera in robot.cameras],
    }
    for what, rows in parts.items():
        for number, (name, text) in enumerate(rows):
            table.add_row("" if number else what, name, text)
        table.add_section()
    return table


def _parameters(name: str, parts: list[tuple[str, int]]) -> Table:
    table = Table("part", Column("parameters", justify="right"), title=f"parameters of {name}")
    for part, count in parts:
        table.add_row(part, f"{count:,}")
    table.add_section()
    table.add_row("total", f"{sum(count for _, count in parts):,}")
    table.add_row("needed to act", f"{sum(count for part, count in parts if part not in NOT_DEPLOYED):,}")
    return table


def _shapes(config: Config, robot: RobotSpec) -> Table:
    model = config.model
    cameras = " ".join(f"[{camera}({model.tokens_per_camera})]" for camera in model.cameras)
    table = Table("what", "shape", title="shapes")
    table.add_row("images", f"[B, {len(model.cameras)}, 3, {model.image_size}, {model.image_size}]")
    table.add_row("robot state", f"[B, {model.robot_state_dim}] {robot.describe_state()}")
    table.add_row("language", f"[B, {model.language_dim}]")
    table.add_row("token order", f"[lang(1)] [robot(1)] {cameras} [CLS(1)]")
    table.add_row("tokens", f"[B, {model.num_tokens}, {model.embed_dim}]")
    table.add_row("z", f"[B, {model.state_dim}]")
    table.add_row("actions", f"[B, {model.action_seq_len}, {model.action_dim}]")
    return table
