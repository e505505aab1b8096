"""The one training loop, for every phase."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from statevla.checkpoints.checkpoint import (
    LAST,
    Contents,
    TrainingState,
    check_language,
    load_strict,
    load_training_state,
    save_checkpoint,
)
from statevla.config import PHASES
from statevla.data import BatchSampler, Prefetcher
from statevla.diagnostics.world_model import THRESHOLDS, measure_world_model
from statevla.errors import UserError
from statevla.machine.device import autocast
from statevla.machine.fair_threads import FairThreads
from statevla.machine.processes import gather_rows
from statevla.model.flow import FlowDraws
from statevla.training.first_batch import describe, draw_observations
from statevla.training.optimization import (
    build_optimizer,
    learning_rate_factor,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)
from statevla.training.phases import (
    Batch,
    PhaseLoss,
    check_micro_batch,
    is_finite,
    num_targets,
    phase_config,
)
from statevla.training.run_log import RunLog
from statevla.training.setup import Setup
from statevla.training.start import resume_differences
from statevla.training.validation import validate

MAX_NAMED_EPISODES = 8
SEEDS_PER_STEP = 4_096
"""Random streams of a step: one per micro-batch and process, and the last for what the whole batch draws at once."""
MAX_PROBED_EPISODES = 8
"""Held-out episodes that the world model is measured on while training; all of them at the end."""


class Trainer:
    """Trains one phase in one run folder.

    All randomness is a function of the seed, the step and the place in the batch (order of samples, augmentation,
    noise, dropout), so a resumed run continues bit for bit and there are no generator states to carry along.

    Args:
        setup: data and model, on this process.
        run: folder of the run.
        resume: continue from `<run>/last`.

    Raises:
        UserError: nothing to resume, or it was another run.
    """

    def __init__(self, setup: Setup, run: Path, resume: bool = False) -> None:
        self.setup, self.run = setup, run
        config, processes = setup.config, setup.context.processes
        self.settings, self.phase_settings = config.training, phase_config(config, setup.phase)
        check_micro_batch(config, setup.phase)
        model = setup.model
        if processes.world_size > 1 and setup.context.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        gather = gather_rows if processes.world_size > 1 else None
        self.loss = PhaseLoss(model, setup.phase, gather)
        self.parameters = dict(model.phase_parameters(setup.phase))
        self.optimizer = build_optimizer(self.parameters, self.phase_settings.learning_rate, self.settings)
        self.accumulation = self.settings.gradient_accumulation_steps
        sampler = BatchSampler(
            len(setup.train),
            self.phase_settings.batch_size,
            config.seed,
            processes.rank,
            processes.world_size,
            self.accumulation,
        )
        self.total_steps = self.phase_settings.num_epochs * sampler.batches_per_epoch
        if self.phase_settings.max_steps is not None:
            self.total_steps = min(self.total_steps, self.phase_settings.max_steps)
        self.loader = Prefetcher(setup.train, sampler, augment=True, num_workers=config.data.num_workers)
        self.step, self.best_loss, self.trained_s = 0, math.inf, 0.0
        self.metrics: dict[str, Any] = {}
        if resume:
            self._restore()
        self.wrapped = self._wrap()

    def fit(self) -> dict[str, Any]:
        """Train to the end; returns the metrics of the last validation.

        Raises:
            UserError: a loss or a gradient is not finite (the episodes are named), or the disk is full.
        """
        setup = self.setup
        self.log = RunLog(
            self.run,
            PHASES[setup.phase].title,
            self.total_steps,
            self.step,
            setup.config.model_dump(mode="json"),
            self.settings.wandb,
            enabled=setup.context.processes.is_main,
        )
        may_choose = setup.context.processes.world_size == 1 and not setup.config.num_threads
        with contextlib.closing(self.log), self.loader, FairThreads(may_choose) as self.threads:
            if self.step >= self.total_steps:
                self.log.say(f"this run has all its {self.total_steps} steps already; nothing to do")
                return self.metrics
            self._loop()
        return self.metrics

    def _loop(self) -> None:
        settings, started, saved_at = self.settings, time.monotonic() - self.trained_s, time.monotonic()
        shown: list[Tensor] = []
        self.loss.train()
        while self.step < self.total_steps:
            pieces = [next(self.loader) for _ in range(self.accumulation)]
            if self.step == 0:
                self._log_first_batch(*pieces[0])
            shown.append(self._optimize(pieces))
            self.step += 1
            self.threads.step()
            is_last = self.step == self.total_steps
            self.trained_s = time.monotonic() - started
            save = is_last or self.step % settings.checkpoint_every_steps == 0
            if is_last or self.step % settings.log_every_steps == 0:
                self._log_step(shown)
                shown = []
                too_old = time.monotonic() - saved_at > settings.checkpoint_every_s
                save = save or self.setup.context.processes.main_says(too_old, self.setup.context.device)
            is_best = False
            if is_last or self.step % settings.validate_every_steps == 0:
                is_best = self._validate(is_last)
                self.log.pause_clock()
            if save or is_best:
                self._save(is_best)
                saved_at = time.monotonic()
                self.log.pause_clock()

    def _optimize(self, pieces: Sequence[tuple[Batch, Tensor]]) -> Tensor:
        """One optimizer step on this process's micro-batches; returns its share of the mean of every loss term."""
        setup, step = self.setup, self.step + 1
        processes, device = setup.context.processes, setup.context.device
        rate = self.phase_settings.learning_rate * learning_rate_factor(
            step, self.total_steps, self.phase_settings.warmup_steps
        )
        set_learning_rate(self.optimizer, rate)
        counts = torch.tensor([float(num_targets(batch)) for batch, _ in pieces], device=device)
        shares = counts / processes.sum(counts.sum()).clamp_min(1.0)
        terms: dict[str, Tensor] = {}
        draws = self._draw_flow(step)
        for number, (batch, _) in enumerate(pieces):
            self._seed_draws(step, number)
            is_last = number + 1 == len(pieces)
            sync = contextlib.nullcontext() if is_last or self.wrapped is self.loss else self.wrapped.no_sync()
            with sync:
                with autocast(device, self.settings.precision):
                    mine = None if draws is None else draws.at(self.loader.sampler.rows(number)).to(device)
                    total, here = self.wrapped(batch.to(device), shares[number] * processes.world_size, mine)
                total.backward()
            terms = {name: terms.get(name, 0.0) + value * shares[number] for name, value in here.items()}
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.grad_clip_norm)
        row = torch.stack([*terms.values(), norm / processes.world_size])
        if not torch.isfinite(row).all():
            self._stop_at_bad_batch(pieces, step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if setup.phase == "1":
            setup.model.update_target(step, self.total_steps)
        self.term_names = [*terms, "grad_norm"]
        return row.detach()

    def _seed_draws(self, step: int, piece: int) -> None:
        """Seed what the model draws itself (dropout, projections), for one micro-batch.

        Counted over accumulation steps and processes, so that two processes draw what one process draws in two
        accumulation steps. Phase 1 draws alike on all processes, as they share terms over the whole batch.
        """
        processes = self.setup.context.processes
        place = piece if self.setup.phase == "1" else piece * processes.world_size + processes.rank
        torch.manual_seed(self._seed(step, place))

    def _draw_flow(self, step: int) -> FlowDraws | None:
        """Noise and flow times of the whole step's batch, on the CPU, however it is cut; None in phase 1.

        Every process draws them all: sample i of a step has the same noise whichever process and micro-batch it is in.
        """
        if self.setup.phase == "1":
            return None
        generator = torch.Generator().manual_seed(self._seed(step, SEEDS_PER_STEP - 1))
        return self.setup.model.draw_flow(self.phase_settings.batch_size, generator=generator)

    def _seed(self, step: int, place: int) -> int:
        return (self.setup.config.seed * 1_000_003 + step) * SEEDS_PER_STEP + place

    def _stop_at_bad_batch(self, pieces: Sequence[tuple[Batch, Tensor]], step: int) -> None:
        """Raise a UserError that names the episodes whose numbers are not finite, or else all of the batch."""
        dataset, bad, every = self.setup.train, [], []
        for batch, indices in pieces:
            finite = is_finite(batch)
            every += dataset.episode_ids_of(indices)
            bad += dataset.episode_ids_of(indices[~finite.cpu()])
        episodes = sorted(set(bad or every))
        named = ", ".join(episodes[:MAX_NAMED_EPISODES])
        named += f" and {len(episodes) - MAX_NAMED_EPISODES} more" if len(episodes) > MAX_NAMED_EPISODES else ""
        cause = (
            f"the data of these episodes has NaN or infinite values: {named}; drop or repair them"
            if bad
            else f"its inputs are finite ({named}); lower the learning rate or set training.precision=fp32"
        )
        raise UserError(f"training stopped at step {step}: loss or gradient is not finite; {cause}")

    def _log_step(self, rows: list[Tensor]) -> None:
        mean = self.setup.context.processes.sum(torch.stack(rows).mean(dim=0)).tolist()
        values = dict(zip(self.term_names, mean)) | {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "epoch": self.loader.epoch,
        }
        self.log.progress(self.step, values, self.phase_settings.batch_size)

    def _validate(self, is_last: bool) -> bool:
        """Validate; returns whether they are the best so far."""
        setup = self.setup
        if setup.validation is None:
            # Nothing is held out: the newest weights are as good as any.
            self.metrics = {"step": self.step}
            return True
        values: dict[str, Any] = validate(
            self.loss,
            setup.validation,
            self.phase_settings.batch_size,
            self.settings,
            setup.context,
        )
        is_best = values["loss"] < self.best_loss
        self.best_loss = min(values["loss"], self.best_loss)
        self.metrics = {"step": self.step, "validation": values}
        if setup.phase == "1":
            episodes = setup.main.held_out[: None if is_last else MAX_PROBED_EPISODES]
            world_model = measure_world_model(setup.subject, episodes) if setup.context.processes.is_main else {}
            setup.context.processes.wait()
            self.loss.train()
            self.metrics["world_model"] = world_model
            values = values | world_model
        self.log.record("validation", self.step, values)
        shown = {**self.metrics["validation"], **{k: v for k, v in values.items() if k in THRESHOLDS}}
        self.log.say(f"step {self.step}: validation " + " ".join(f"{k} {v:.4g}" for k, v in shown.items()))
        if not math.isfinite(self.metrics["validation"]["loss"]):
            raise UserError(
                f"validation at step {self.step}: the loss is not finite; lower the learning rate or set "
                "training.precision=fp32, and go on from the last checkpoint with --resume"
            )
        return is_best

    def _save(self, is_best: bool) -> None:
        setup, processes = self.setup, self.setup.context.processes
        if processes.is_main:
            tensors = optimizer_tensors(self.optimizer, self.parameters)
            values = {
                "phase": setup.phase,
                "step": self.step,
                "total_steps": self.total_steps,
                "sampler": self.loader.state_dict(),
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
                "trained_s": self.trained_s,
                "num_processes": processes.world_size,
                "gradient_accumulation_steps": self.accumulation,
            }
            metrics = {"phase": setup.phase, "trained_s": round(self.trained_s, 1), **self.metrics}
            contents = Contents(
                setup.model.state_dict(),
                setup.config,
                setup.transform.robot,
                setup.statistics,
                setup.language,
                setup.data,
                metrics,
            )
            save_checkpoint(self.run, contents, TrainingState(tensors, values), is_best)
        processes.wait()

    def _restore(self) -> None:
        setup = self.setup
        source = f"--resume {self.run / 'last'}"
        # One process recovers a replacement that was cut off; the others only read.
        if setup.context.processes.is_main:
            load_training_state(self.run)
        setup.context.processes.wait()
        state, weights, config = load_training_state(self.run)
        if differing := resume_differences(setup.config, config, state.values["phase"], setup.phase):
            raise UserError(f"{source}: was another run; {'; '.join(differing[:4])}; use the same configuration")
        check_language(setup.language, self.run / LAST)
        load_strict(setup.model, weights, source)
        restore_optimizer(self.optimizer, self.parameters, state.tensors, source)
        values = state.values
        self.loader.load_state_dict(values["sampler"])
        self.step, self.trained_s = values["step"], values["trained_s"]
        self.best_loss = math.inf if values["best_loss"] is None else values["best_loss"]

    def _wrap(self) -> Any:
        if self.settings.compile:
            self.loss.compile()
        if self.setup.context.processes.world_size == 1:
            return self.loss
        device = self.setup.context.device
        return DistributedDataParallel(self.loss, device_ids=[device.index] if device.type == "cuda" else None)

    def _log_first_batch(self, batch: Batch, indices: Tensor) -> None:
        if not self.setup.context.processes.is_main:
            return
        shapes = describe(batch)
        self.log.say("first batch: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
        self.log.record("first_batch", 0, {"shapes": {name: str(shape) for name, shape in shapes.items()}})
        source = self.setup.train
        observation = batch.observation
        if observation is None:  # trained on stored states: show the frames that they were made from
            observation = source.observations(indices[:MAX_NAMED_EPISODES])
        titles = source.episode_ids_of(indices[:MAX_NAMED_EPISODES])
        draw_observations(observation, self.setup.main.cache.cameras, titles, self.run / "first_batch.png")
