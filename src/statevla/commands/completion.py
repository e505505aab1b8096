"""`statevla completion`: what the shell needs to complete commands and flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import tyro

from statevla.commands.table import COMMANDS, load_command
from statevla.commands.train import TrainArgs


@dataclass(frozen=True)
class CompletionArgs:
    shell: tyro.conf.Positional[Literal["bash", "zsh", "tcsh"]]
    """Whose script to print: `statevla completion bash > ~/.local/share/bash-completion/completions/statevla`."""


def completion(args: CompletionArgs) -> None:
    """Print a script with which the shell completes the commands, their flags and choices."""
    # It exits when it has printed.
    tyro.cli(_all_commands(), prog="statevla", args=["--tyro-print-completion", args.shell])


def _all_commands() -> Any:
    """The type of a command line with all commands: those of two words are a command within another."""
    groups: dict[str, list[Any]] = {}
    for name, (_, text) in COMMANDS.items():
        group, _, within = name.rpartition(" ")
        groups.setdefault(group, []).append(
            Annotated[_arguments_of(name), tyro.conf.subcommand(name=within, description=text, prefix_name=False)]
        )
    top = groups.pop("")
    for group, members in groups.items():
        top.append(Annotated[_union(members), tyro.conf.subcommand(name=group, prefix_name=False)])
    return _union(top)


def _arguments_of(name: str) -> Any:
    _, kind = load_command(name)
    return TrainArgs if kind == list[str] else kind  # which takes any key of the configuration besides


def _union(kinds: list[Any]) -> Any:
    return Union[tuple(kinds)]  # noqa: UP007 a union of what is known when it runs
