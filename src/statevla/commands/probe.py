"""`statevla probe`: what the state z of a checkpoint knows, measured on held-out episodes.

With the simulator installed, and data of `statevla collect`, the target object really is moved and drawn again; else
pictures of other episodes stand in (`diagnostics.object_surprise`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from statevla.commands.held_out import HeldOutArgs, print_results
from statevla.config import results_dir
from statevla.errors import UserError


@dataclass(frozen=True)
class ProbeArgs(HeldOutArgs):
    out: Path | None = None
    """Folder for probe.json and pictures; `probe_<checkpoint>` beside the checkpoint by default."""
    simulator: Literal["auto", "on", "off"] = "auto"
    """Move the target object in the simulator; `auto` does where it works."""


def probe(args: ProbeArgs) -> None:
    """Measure what z of a checkpoint of phase 1 or 2 knows, on held-out episodes: probe.json, tables and pictures."""
    from statevla.checkpoints.checkpoint import resolve_checkpoint
    from statevla.diagnostics.offline import measure_state, open_subject, write_results
    from statevla.machine.lock import only_writer_in

    folder = resolve_checkpoint(args.checkpoint)
    opened = open_subject(args.checkpoint, args.data, args.device, args.orientation)
    episodes = opened.held_out
    if not episodes:
        raise UserError(
            f"probe {folder}: no held-out episodes; train with data.train_split below 1, or give other --data"
        )
    results = opened.header("validation", episodes)
    if results["phase"] == "bc":
        raise UserError(f"probe {folder}: behaviour cloning trains no world model; give a run of phase 1 or 2")
    out = args.out or results_dir(folder, f"probe_{folder.name.strip('.')}")
    with only_writer_in(out, "choose another --out"):
        results |= measure_state(
            opened.subject, opened.train, opened.held_out, episodes, exchange=choose_exchange(args.simulator)
        )
        pictures = write_results(results, None, out / "probe.json")
    print_results(results, [], out / "probe.json", pictures)


def choose_exchange(simulator: str) -> Any:
    """How the pictures of moved objects are made; None for those of other episodes.

    Raises:
        UserError: the simulator is asked for and does not work here.
    """
    if simulator == "off":
        return None
    try:
        from statevla.worlds.libero.moved_objects import move_target_objects
    except (ImportError, UserError) as error:
        reason = " ".join(str(error).split())
        if simulator == "on":
            raise UserError(f"--simulator on: {reason}; pip install 'statevla[sim]', or see statevla doctor") from None
        print(f"no simulator ({reason}): pictures of other episodes stand in for moved objects")
        return None
    return move_target_objects
