"""The `statevla` command: a table of commands, each loaded only when it is called."""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path

from statevla import __version__
from statevla.commands.earlier_flags import refuse_earlier_flags
from statevla.commands.entry import run_command
from statevla.errors import UserError

# command → (module:function of this package, one line of help). A function takes one dataclass, whose fields become its
# flags, or the list of arguments itself.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo:demo", "the whole way in one command: collect, train, evaluate, simulate, report"),
    "doctor": ("doctor:doctor", "what works on this machine, and how to mend what does not"),
    "info": ("info:info", "parameters, shapes and tokens of a configuration"),
    "collect": ("collect:collect", "demonstrations of an expert in any world, in LIBERO's HDF5 layout"),
    "replay": ("replay:replay", "recorded actions in the simulator: do they succeed?"),
    "data inspect": ("data:inspect", "what is in a data set, and what is likely wrong"),
    "data convert": ("data:convert", "LIBERO HDF5 to LeRobotDataset v3 and back, v2.1 to v3"),
    "data draw": ("data:draw", "robosuite's human demonstrations, which have no pictures, drawn"),
    "data cache": ("data:cache", "build the frame cache of a configuration ahead of training"),
    "train": ("train:train", "phase 1, phase 2, or behaviour cloning (also train.py)"),
    "eval": ("eval:offline", "held-out episodes: action errors, world model, probes (also eval.py)"),
    "probe": ("probe:probe", "what the state z knows: copy skill, action sensitivity, probes, a moved object"),
    "rollout": ("rollout:rollout", "success in simulation (also run_libero_eval.py)"),
    "calibrate": ("calibrate:calibrate", "thresholds of the surprise alarm, on held-out episodes"),
    "share": ("share:share", "a checkpoint with its model card, to a folder or to the Hugging Face hub"),
    "view": ("view:view", "a data set or the episodes of a rollout in the Rerun viewer"),
    "report": ("report:report", "one self-contained HTML page of runs and evaluations"),
    "serve": ("serve:serve", "a checkpoint as a policy server (openpi's protocol)"),
    "completion": ("completion:completion", "a script with which the shell completes all this"),
}

_USAGE = """\
usage: statevla COMMAND [flags]
       statevla help [COMMAND]
       statevla --version

A compact robot policy: learn how the world moves (Temporal JEPA), then act (flow matching).
"""


def main() -> None:
    """Entry point of the console script and of `python -m statevla`."""
    run_command(lambda: dispatch(sys.argv[1:]))


def run_script(command: str) -> None:
    """Entry point of a script that is one of the commands: `eval.py`, for one."""
    run_command(lambda: _call(command, sys.argv[1:], Path(sys.argv[0]).name))


def dispatch(arguments: list[str]) -> int:
    """Run the command that the first words name, with the others as its flags; the exit status.

    Raises:
        UserError: there is no such command, a flag is one of the project's earlier scripts, or the command's own.
    """
    if arguments[:1] in (["--version"], ["-V"]):
        print(f"statevla {__version__}")
        return 0
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    # Commands of two words (`data inspect`) come first.
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in COMMANDS:
            return _call(name, arguments[length:], f"statevla {name}")
    known = ", ".join(COMMANDS)
    raise UserError(f"command '{arguments[0]}': expected one of {known}; `statevla help` says what they do")


def load_command(name: str) -> tuple[Callable[[typing.Any], int | None], typing.Any]:
    """The function of a command, and the type of its one argument."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    function = getattr(importlib.import_module(f"statevla.commands.{module}"), attribute)
    (argument_type, *_) = (found for key, found in typing.get_type_hints(function).items() if key != "return")
    return function, argument_type


def _call(name: str, arguments: list[str], prog: str) -> int:
    import tyro

    refuse_earlier_flags(name, arguments)
    function, argument_type = load_command(name)
    if argument_type == list[str]:
        return function(arguments) or 0
    parsed = tyro.cli(argument_type, prog=prog, args=arguments, description=inspect.getdoc(function))
    return function(parsed) or 0


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([_USAGE, *lines])
