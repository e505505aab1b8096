"""Run a phase from a configuration: what `train.py` does, callable from Python."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from statevla.checkpoints.checkpoint import ALIASES, BEST, LAST, RUN_FILE
from statevla.checkpoints.provenance import run_info
from statevla.config import Config, expand_path, phase_of
from statevla.diagnostics.offline import QUICK_EPISODES, measure_state, write_results
from statevla.diagnostics.probes import thin
from statevla.errors import UserError
from statevla.machine.allocator import keep_freed_memory
from statevla.machine.device import resolve_device, resolve_precision
from statevla.machine.lock import only_writer_in
from statevla.machine.processes import join_processes
from statevla.machine.storage import whole_folder, write_json
from statevla.training.setup import RunContext, Setup, prepare
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
        init_checkpoint: what a phase begins with instead of random weights (for phase 2 a policy and its encoder); a
            resumed run has them.

    Returns:
        Folder of the run, `<output_dir>/<phase's name>`, with `last`, `best`, their aliases, and logs.

    Raises:
        UserError: bad data or checkpoint, a run that would be overwritten, non-finite losses, a full disk.
    """
    run = expand_path(config.output_dir) / phase_of(phase).folder
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; give one")
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    keep_freed_memory()
    with (
        join_processes(resolve_device(config.device)) as (processes, device),
        processes.main_holds(only_writer_in(run, "give another --output_dir"), device),
    ):
        has_run = whole_folder(run / LAST) is not None
        if has_run and not (resume or overwrite):
            raise UserError(
                f"{run}: holds a run already; continue it with --resume, or give --overwrite or --output_dir"
            )
        if has_run and resume and phase == "2":
            # The run carries its encoder: another one would not fit the policy that was trained on it.
            phase1_checkpoint, init_checkpoint = run / LAST, None
        say = partial(print, flush=True) if processes.is_main else lambda line: None
        context = RunContext(device, processes, say)
        trainer = Trainer(prepare(config, phase, phase1_checkpoint, init_checkpoint, context), run, resume)
        _fit(trainer)
    return run


def _fit(trainer: Trainer) -> None:
    """Train, with `run.json` written before and phase 1's probes after."""
    setup, run = trainer.setup, trainer.run
    context, config = setup.context, setup.config
    num_trained = sum(parameter.numel() for parameter in trainer.parameters.values())
    context.say(
        f"phase {setup.phase} on {context.device}, {context.processes.world_size} process(es): {len(setup.main.train)} "
        f"training and {len(setup.main.held_out)} held-out episodes, {len(setup.train)} samples, {num_trained:,} "
        f"trained parameters, steps {trainer.step} to {trainer.total_steps}"
    )
    if context.processes.is_main:
        made = run_info(config.seed, context.processes.world_size, context.device)
        precision = resolve_precision(config.training.precision, context.device)
        config_tree = config.model_dump(mode="json")
        info: dict[str, Any] = {"phase": setup.phase, **made, "precision": precision, "config": config_tree}
        write_json(run / RUN_FILE, info)
    trainer.fit()
    if setup.phase == "1" and context.processes.is_main:
        _probe(setup, run)
    aliases = {name: alias for alias, name in ALIASES.items()}
    context.say(f"done: {run / LAST} and {run / BEST} (also {aliases[BEST]})")


def _probe(setup: Setup, run: Path) -> None:
    """What the trained state knows, the part that takes seconds: `<run>/probe.json` and pictures."""
    say, held_out = setup.context.say, setup.main.held_out
    if not held_out:
        say("probes: skipped, no episodes are held out")
        return
    episodes = thin(held_out, QUICK_EPISODES)
    results = measure_state(setup.subject, setup.main.train, held_out, episodes, thorough=False)
    write_results(results, None, run / "probe.json")
    for note in results.get("notes", []):
        say(note)
    read = ", ".join(f"{name} {scores['ridge']:.3f}" for name, scores in results["probes"].items())
    say(f"linear probes of z, R² on held-out episodes: {read}; {run / 'probe.json'}, more with `statevla probe`")
