"""`statevla info`: what a configuration builds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from statevla.config import Config, load_config
from statevla.statevla_model import StateVLA

NOT_DEPLOYED = ("target encoder (EMA)", "temporal predictor", "inverse dynamics", "keyframe head", "loss balance")


@dataclass(frozen=True)
class InfoArgs:
    config: str = "conf/config.yaml"
    """YAML configuration to describe."""


def info(args: InfoArgs) -> None:
    """Print the parameters of every part, the token sequence and the shapes that a configuration builds."""
    config = load_config(args.config)
    with torch.device("meta"):
        table = StateVLA(config).parameter_table()
    console = Console()
    console.print(_parameters(args.config, table))
    console.print(_shapes(config))


def _parameters(name: str, parts: list[tuple[str, int]]) -> Table:
    table = Table(title=f"parameters of {name}")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for part, count in parts:
        table.add_row(part, f"{count:,}")
    table.add_section()
    table.add_row("total", f"{sum(count for _, count in parts):,}")
    table.add_row("needed to act", f"{sum(count for part, count in parts if part not in NOT_DEPLOYED):,}")
    return table


def _shapes(config: Config) -> Table:
    model = config.model
    cameras = " ".join(f"[{camera}({model.tokens_per_camera})]" for camera in model.cameras)
    table = Table(title="shapes")
    table.add_column("what")
    table.add_column("shape")
    table.add_row("images", f"[B, {len(model.cameras)}, 3, {model.image_size}, {model.image_size}]")
    table.add_row("robot state", f"[B, {model.robot_state_dim}] ({model.robot_state_layout.value})")
    table.add_row("language", f"[B, {model.language_dim}]")
    table.add_row("token order", f"[lang(1)] [robot(1)] {cameras} [CLS(1)]".replace("[", r"\["))
    table.add_row("tokens", f"[B, {model.num_tokens}, {model.embed_dim}]")
    table.add_row("z", f"[B, {model.state_dim}]")
    table.add_row("actions", f"[B, {model.action_seq_len}, {model.action_dim}]")
    return table
