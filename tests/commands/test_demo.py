"""The demo: which commands it is made of, and the whole way on a tiny scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from statevla.commands.demo import DemoArgs, demo, outcome_table, plan
from statevla.config import find_config
from statevla.errors import UserError


def test_the_plan_follows_the_flags(tmp_path: Path) -> None:
    stages = {stage.name: stage for stage in plan(DemoArgs(tasks="0,2", phase2_steps=7, trials=3), tmp_path)}
    assert list(stages) == ["collect", "phase_1", "phase_2", "offline", "rollout"]
    assert "--training.phase2.max_steps 7" in stages["phase_2"].shown([])
    assert "max_steps" not in stages["phase_1"].shown([])
    assert "--num_trials 3" in stages["rollout"].shown([])
    assert str(tmp_path / "checkpoints" / "phase1_temporal_jepa") in stages["phase_2"].shown([])
    with pytest.raises(UserError, match="at least 1"):
        plan(DemoArgs(trials=0), tmp_path)


def test_a_changed_configuration_changes_the_stages_that_read_it(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    tree = yaml.safe_load(find_config("demo").read_text())

    def settings() -> dict[str, str]:
        path.write_text(yaml.safe_dump(tree))
        return {stage.name: stage.settings for stage in plan(DemoArgs(config=str(path)), tmp_path)}

    first = settings()
    tree["training"]["phase2"]["max_steps"] = 17
    second = settings()
    assert first["phase_1"] == second["phase_1"]
    assert first["phase_2"] != second["phase_2"]
    tree["model"]["encoder_depth"] = 1
    assert settings()["phase_1"] != second["phase_1"]


def test_before_anything_has_run_there_are_no_results(tmp_path: Path) -> None:
    assert outcome_table(tmp_path).row_count == 0


@pytest.mark.slow
def test_the_whole_way_with_a_tiny_model(tmp_path: Path) -> None:
    pytest.importorskip("libero")
    tree = yaml.safe_load(find_config("demo").read_text())
    tree["model"] |= {"embed_dim": 32, "encoder_depth": 1, "image_size": 64, "state_dim": 32}
    tree["model"]["stem"] = {"kind": "conv", "channels": [16, 32], "strides": [8, 2]}
    tree["training"]["validate_every_steps"] = 5
    for phase in ("phase1", "phase2"):
        tree["training"][phase] |= {"max_steps": 5, "batch_size": 8, "warmup_steps": 2}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tree))
    args = DemoArgs(dir=str(tmp_path / "demo"), config=str(config), tasks="0", demos=2, trials=1, videos=1, workers=1)
    assert demo(args) == 0
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "Success in simulation: libero_object" in page
    assert "data:video/mp4" in page
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.safetensors")}
    assert demo(args) == 0  # everything is done already
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.safetensors")}
