"""Learning rate, weight decay, averages, latents, logs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from statevla.config import Config, TrainingConfig
from statevla.errors import UserError
from statevla.machine.processes import Processes
from statevla.model.statevla_model import StateVLA
from statevla.training.optimization import (
    build_optimizer,
    learning_rate_factor,
    optimizer_tensors,
    restore_optimizer,
)
from statevla.training.run_log import RunLog
from statevla.training.setup import RunContext, prepare


@given(total=st.integers(2, 500), warmup=st.integers(0, 100))
def test_learning_rate_rises_then_falls_towards_zero(total: int, warmup: int) -> None:
    factors = [learning_rate_factor(step, total, warmup) for step in range(1, total + 1)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = min(warmup, total)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    if warmup < total:
        assert factors[-1] < 0.5 + 0.5 * (total - warmup < 3)


def test_only_matrices_decay(tiny_config: Config) -> None:
    model = StateVLA(tiny_config)
    parameters = dict(model.phase_parameters("bc"))
    optimizer = build_optimizer(parameters, 1e-3, TrainingConfig(weight_decay=0.3))
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay_of) == len(parameters)
    for name, parameter in parameters.items():
        exempt = parameter.ndim <= 1 or name.endswith(("A_log", ".D", "positions", "modality", "cls"))
        assert decay_of[id(parameter)] == (0.0 if exempt else 0.3), name


def test_optimizer_state_survives_as_flat_tensors() -> None:
    torch.manual_seed(0)
    parameters = {"a": nn.Parameter(torch.randn(3, 2)), "b.c": nn.Parameter(torch.randn(4))}
    copies = {name: nn.Parameter(p.detach().clone()) for name, p in parameters.items()}
    first, second = (build_optimizer(own, 1e-2, TrainingConfig()) for own in (parameters, copies))

    def step(own: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        for parameter in own.values():
            parameter.grad = parameter.detach().clone()
        optimizer.step()

    step(parameters, first)
    for name, parameter in copies.items():
        parameter.data.copy_(parameters[name].data)
    restore_optimizer(second, copies, optimizer_tensors(first, parameters), "test")
    step(parameters, first)
    step(copies, second)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, copies[name])
    with pytest.raises(UserError, match=r"does not fit .*first: b\.c"):
        restore_optimizer(second, {"a": copies["a"]}, optimizer_tensors(first, parameters), "test")


def test_stored_states_are_what_the_encoder_says(tiny_config: Config, tmp_path: Path) -> None:
    from statevla.training.run import train

    data = tiny_config.data.model_copy(update={"cache_dir": str(tmp_path / "cache")})  # where nobody has stored them
    config = tiny_config.model_copy(update={"output_dir": str(tmp_path), "data": data})
    phase1 = train(config, "1")
    said: list[str] = []
    setup = prepare(config, "2", phase1, context=RunContext(say=said.append))
    assert any(line.startswith("encoding frames") for line in said)
    samples = setup.train
    assert samples.states.shape == (setup.main.cache.num_frames, 16)
    indices = torch.tensor([0, 5, 40])
    observation = samples.dataset.gather(indices).observation
    with torch.no_grad():
        expected = setup.model.encode_for_policy(observation)
    plain = samples.gather_drawn(indices, None)
    torch.testing.assert_close(plain.state, expected, rtol=1e-4, atol=1e-5)
    # The second time they are read, not made; another encoder makes its own.
    said.clear()
    prepare(config, "2", phase1, context=RunContext(say=said.append))
    assert said == []


def test_wandb_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"statevla\[wandb\]"):
        RunLog(tmp_path, "title", 10, 0, {}, wandb="offline")


def test_uneven_batches_are_refused(tiny_config: Config, tmp_path: Path) -> None:
    from statevla.training.trainer import Trainer

    setup = prepare(tiny_config, "bc")
    with pytest.raises(UserError, match="expected a multiple of 3 processes"):
        Trainer(replace(setup, context=RunContext(processes=Processes(0, 0, 3))), tmp_path)
