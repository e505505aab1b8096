"""Run a phase from a configuration: what `train.py` does, callable from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from statevla.checkpoints.checkpoint import ALIASES, BEST, LAST, RUN_FILE, RUN_FOLDERS
from statevla.checkpoints.provenance import run_info
from statevla.config import Config, expand_path
from statevla.diagnostics.offline import QUICK_EPISODES, finite_tree, measure_state
from statevla.diagnostics.plots import draw_all
from statevla.diagnostics.probes import thin
from statevla.errors import UserError
from statevla.machine.allocator import keep_freed_memory
from statevla.machine.device import resolve_device, resolve_precision
from statevla.machine.processes import Processes, join_processes
from statevla.machine.storage import whole_folder, write_json
from statevla.training.setup import Setup, prepare
from statevla.training.trainer import Trainer


def train(
    config: Config,
    phase: str,
    phase1_checkpoint: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    init_checkpoint: str | Path | None = None,
) -> Path:
    """Train one phase.

    Args:
        config: the whole configuration.
        phase: `1` (temporal JEPA), `2` (flow matching) or `bc` (behaviour cloning).
        phase1_checkpoint: what phase 2 builds on; a resumed run has it already.
        resume: continue `<run>/last` exactly.
        overwrite: start anew in a folder that holds checkpoints; they stay until the first new one is written.
        init_checkpoint: what phase 1 or `bc` begins with instead of random weights; a resumed run has them.

    Returns:
        Folder of the run, `<output_dir>/<phase's name>`, with `last`, `best`, their aliases, and logs.

    Raises:
        UserError: bad data or checkpoint, a run that would be overwritten, non-finite losses, a full disk.
    """
    if phase not in RUN_FOLDERS:
        raise UserError(f"phase '{phase}': expected one of {', '.join(RUN_FOLDERS)}")
    run = expand_path(config.output_dir) / RUN_FOLDERS[phase]
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; give one")
    if not (resume or overwrite) and whole_folder(run / LAST) is not None:
        raise UserError(f"{run}: holds a run already; continue it with --resume, or give --overwrite or --output_dir")
    if resume and phase == "2" and whole_folder(run / LAST) is not None:
        # The run carries its encoder: another one would not fit the policy that was trained on it.
        phase1_checkpoint = run / LAST
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    keep_freed_memory()
    with join_processes(resolve_device(config.device)) as (processes, device):
        _run(config, phase, phase1_checkpoint, init_checkpoint, resume, run, processes, device)
    return run


def _run(
    config: Config,
    phase: str,
    phase1_checkpoint: str | Path | None,
    init_checkpoint: str | Path | None,
    resume: bool,
    run: Path,
    processes: Processes,
    device: torch.device,
) -> None:
    def say(line: str) -> None:
        if processes.is_main:
            print(line, flush=True)

    setup = prepare(config, phase, phase1_checkpoint, device, processes, say, init_checkpoint)
    trainer = Trainer(setup, run, resume)
    say(
        f"phase {phase} on {device}, {processes.world_size} process(es): {len(setup.train_episodes)} training and "
        f"{len(setup.validation_episodes)} held-out episodes, {len(setup.train)} samples, "
        f"{sum(p.numel() for p in trainer.parameters.values()):,} trained parameters, steps {trainer.step} to "
        f"{trainer.total_steps}"
    )
    if processes.is_main:
        info: dict[str, Any] = {"phase": phase, **run_info(config.seed, processes.world_size, device)}
        info["precision"] = resolve_precision(config.training.precision, device)
        info["config"] = setup.config.model_dump(mode="json")
        write_json(run / RUN_FILE, info)
    trainer.fit()
    if phase == "1" and processes.is_main:
        _probe(setup, run, say)
    aliases = {name: alias for alias, name in ALIASES.items()}
    say(f"done: {run / LAST} and {run / BEST} (also {aliases[BEST]})")


def _probe(setup: Setup, run: Path, say: Callable[[str], None]) -> None:
    """What the trained state knows, the part that takes seconds: `<run>/probe.json` and pictures."""
    if not setup.validation_episodes:
        say("probes: skipped, no episodes are held out")
        return
    episodes = thin(setup.validation_episodes, QUICK_EPISODES)
    results = measure_state(setup.subject, setup.train_episodes, setup.validation_episodes, episodes, thorough=False)
    write_json(run / "probe.json", finite_tree(results))
    draw_all(results, None, run)
    for note in results.get("notes", []):
        say(note)
    read = ", ".join(f"{name} {scores['ridge']:.3f}" for name, scores in results["probes"].items())
    say(f"linear probes of z, R² on held-out episodes: {read}; {run / 'probe.json'}, more with `statevla probe`")
