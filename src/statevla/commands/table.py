"""The `statevla` command: a table of commands, each loaded only when it is called."""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable

from statevla import __version__
from statevla.commands.earlier_flags import refuse_earlier_flags
from statevla.commands.entry import run_command
from statevla.errors import UserError

# command → (module:function, one line of help). A function takes one dataclass, whose fields become its flags, or the
# list of arguments itself.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("statevla.commands.demo:demo", "the whole way in one command: collect, train, evaluate, simulate, report"),
    "doctor": ("statevla.commands.doctor:doctor", "what works on this machine, and how to mend what does not"),
    "info": ("statevla.commands.info:info", "parameters, shapes and tokens of a configuration"),
    "collect": (
        "statevla.commands.collect:collect",
        "demonstrations of an expert in any world, in LIBERO's HDF5 layout",
    ),
    "replay": ("statevla.commands.replay:replay", "recorded actions in the simulator: do they succeed?"),
    "data inspect": ("statevla.commands.data:inspect", "what is in a data set, and what is likely wrong"),
    "data convert": ("statevla.commands.data:convert", "LIBERO HDF5 to LeRobotDataset v3 and back, v2.1 to v3"),
    "data draw": (
        "statevla.commands.data:draw",
        "robosuite's human demonstrations, which have no pictures, drawn",
    ),
    "data cache": ("statevla.commands.data:cache", "build the frame cache of a configuration ahead of training"),
    "train": ("statevla.commands.train:train", "phase 1, phase 2, or behaviour cloning (also train.py)"),
    "eval": (
        "statevla.commands.eval:offline",
        "held-out episodes: action errors, world model, probes (also eval.py)",
    ),
    "probe": (
        "statevla.commands.probe:probe",
        "what the state z knows: copy skill, action sensitivity, probes, a moved object",
    ),
    "rollout": ("statevla.commands.rollout:rollout", "success in simulation (also run_libero_eval.py)"),
    "calibrate": ("statevla.commands.calibrate:calibrate", "thresholds of the surprise alarm, on held-out episodes"),
    "share": (
        "statevla.commands.share:share",
        "a checkpoint with its model card, to a folder or to the Hugging Face hub",
    ),
    "view": ("statevla.commands.view:view", "a data set or the episodes of a rollout in the Rerun viewer"),
    "report": ("statevla.commands.report:report", "one self-contained HTML page of runs and evaluations"),
    "serve": ("statevla.commands.serve:serve", "a checkpoint as a policy server (openpi's protocol)"),
    "completion": ("statevla.commands.completion:completion", "a script with which the shell completes all this"),
}


def main() -> None:
    """Entry point of the console script and of `python -m statevla`."""
    run_command(lambda: dispatch(sys.argv[1:]))


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
            return _call(name, arguments[length:])
    known = ", ".join(COMMANDS)
    raise UserError(f"command '{arguments[0]}': expected one of {known}; `statevla help` says what they do")


def _call(name: str, arguments: list[str]) -> int:
    import tyro

    refuse_earlier_flags(name, arguments)
    module, _, attribute = COMMANDS[name][0].partition(":")
    function: Callable[[typing.Any], int | None] = getattr(importlib.import_module(module), attribute)
    (argument_type, *_) = (t for key, t in typing.get_type_hints(function).items() if key != "return")
    if argument_type == list[str]:
        return function(arguments) or 0
    parsed = tyro.cli(argument_type, prog=f"statevla {name}", args=arguments, description=inspect.getdoc(function))
    return function(parsed) or 0


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: statevla COMMAND [flags]",
            "       statevla help [COMMAND]",
            "       statevla --version",
            "",
            "A compact robot policy: learn how the world moves (Temporal JEPA), then act (flow matching).",
            "",
            *lines,
        ]
    )
