"""Every experiment of the list is made of commands that exist, on configurations that are valid."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import tyro
import yaml
from rich.console import Console

from command_lines import check
from statevla.commands.stages import mark_path
from statevla.errors import UserError
from statevla.machine.storage import write_json

ROOT = Path(__file__).parents[2]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_experiment", ROOT / "benchmarks" / "run_experiment.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()
LISTED = yaml.safe_load((ROOT / "benchmarks" / "experiments.yaml").read_text())["experiments"]


@pytest.mark.parametrize("name", LISTED)
def test_stages_are_commands_that_would_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    known = script.read_experiments(script.LIST)
    stages = list(script.stages(known, name, script.Args(seed=3), tmp_path))
    assert stages[0].command in ("collect", "data")
    phases = ["2"] if "phase1_of" in LISTED[name] else LISTED[name].get("phases", ["1", "2"])
    assert [stage.name for stage in stages if stage.command == "train"] == [f"phase_{phase}" for phase in phases]
    for stage in stages:
        named = check(["statevla", stage.command, *stage.arguments, *stage.resources])
        assert named is not None
        assert named.split()[0] == stage.command
        if stage.command in ("train", "rollout"):
            assert stage.arguments[stage.arguments.index("--seed") + 1] == "3"


def test_overrides_reach_the_command_as_they_stand_in_the_list(tmp_path: Path) -> None:
    from statevla.commands.train import parse_overrides
    from statevla.config import load_config

    known = script.read_experiments(script.LIST)
    stage = next(s for s in script.stages(known, "quick-faithful", script.Args(), tmp_path) if s.command == "train")
    begin = stage.arguments.index("--seed")
    experiment = known.experiments["quick-faithful"]
    preset = ROOT / experiment.config
    config = load_config(preset, parse_overrides(stage.arguments[begin:]))
    assert config.training.phase1.target.kind == "ema"
    assert config.training.phase1.loss.variance_weight == 1.0
    assert config.training.phase1.loss.sigreg_weight == config.training.phase1.loss.keyframe_weight == 0.0
    steps = config.training.phase1.max_steps
    assert steps == experiment.overrides["training.phase1.max_steps"] != load_config(preset).training.phase1.max_steps


def test_mistakes_in_the_list_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "list.yaml"
    data = "data: {d: {suite: libero_object}}\n"
    file.write_text(data + "experiments: {e: {about: x, data: other}}\n")
    with pytest.raises(UserError, match=r"experiments\.e: data 'other' is none of d"):
        script.read_experiments(file)
    file.write_text(data + "experiments: {e: {about: x, data: d, overides: {}}}\n")
    with pytest.raises(UserError, match=r"experiments\.e\.overides"):
        script.read_experiments(file)
    file.write_text(data + "experiments: {e: {about: x, data: d, rollouts: {a: {}}, headline: {k: [a, b]}}}\n")
    with pytest.raises(UserError, match=r"headline\.k: expected some of a, got a, b"):
        script.read_experiments(file)
    with pytest.raises(UserError, match="experiment 'absent'"):
        script.main(script.Args(names=("absent",)))


def test_phase_2_can_build_on_another_experiments_phase_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEVLA_HOME", str(tmp_path))
    file = tmp_path / "list.yaml"
    file.write_text(
        "data: {all/one: {suite: libero_object}, all/two: {suite: libero_spatial}}\n"
        "experiments:\n"
        "  base: {about: x, data: all}\n"
        "  late: {about: y, data: all, phase1_of: base, overrides: {model.policy.num_sampling_steps: 4}}\n"
    )
    known, args = script.read_experiments(file), script.Args(seed=2)
    names = [stage.name for stage in script.stages(known, "late", args, script.experiment_folder("late", 2))]
    assert names == ["collect_all_one", "collect_all_two", "phase_2", "offline"]
    before = script.training_stages(known, "base", args, "1")
    assert [stage.name for stage in before] == ["collect_all_one", "collect_all_two", "phase_1"]
    phase2 = list(script.stages(known, "late", args, tmp_path / "late"))[2]
    wanted = tmp_path / "experiments" / "base-s2" / "checkpoints" / "phase1_temporal_jepa" / "checkpoint_best.pt"
    assert str(wanted) in phase2.arguments
    assert phase2.arguments[phase2.arguments.index("--data.path") + 1] == str(tmp_path / "datasets" / "all")
    file.write_text(file.read_text().replace("phase1_of: base", "phase1_of: bass"))
    with pytest.raises(UserError, match=r"experiments\.late\.phase1_of: 'bass' is no experiment"):
        script.read_experiments(file)


def test_phase_1_can_go_on_from_another_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEVLA_HOME", str(tmp_path))
    file = tmp_path / "list.yaml"
    file.write_text(
        "data: {all/one: {suite: libero_object}, all/two: {suite: libero_spatial}}\n"
        "experiments:\n"
        "  base: {about: x, data: all/one}\n"
        "  late: {about: y, data: all, init_of: base}\n"
    )
    known, args = script.read_experiments(file), script.Args(seed=2)
    found = list(script.stages(known, "late", args, script.experiment_folder("late", 2)))
    assert [stage.name for stage in found][2:] == ["phase_1", "phase_2", "offline"]
    wanted = tmp_path / "experiments" / "base-s2" / "checkpoints" / "phase1_temporal_jepa" / "checkpoint_best.pt"
    assert found[2].arguments[found[2].arguments.index("--init_checkpoint") + 1] == str(wanted)
    assert "--init_checkpoint" not in found[3].arguments
    ran: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(
        script, "run_stages", lambda stages, folder, console: ran.append((folder.name, [s.name for s in stages]))
    )
    monkeypatch.setattr(script.subprocess, "run", lambda *args, **kwargs: SimpleNamespace(returncode=0))
    script.run("late", known, args, Console())
    assert ran[0] == ("base-s2", ["collect_all_one", "phase_1"])
    assert ran[1][0] == "late-s2"
    text = file.read_text()
    file.write_text(text + "  last: {about: z, data: all, phase1_of: late}\n")
    ran.clear()
    script.run("last", script.read_experiments(file), args, Console())
    assert [(folder, stages[-1]) for folder, stages in ran[:2]] == [("base-s2", "phase_1"), ("late-s2", "phase_1")]
    for wrong, message in (
        ("init_of: bass", r"experiments\.late\.init_of: 'bass' is no experiment"),
        ("init_of: late", r"experiments\.late\.init_of: 'late' is no experiment"),
        ("init_of: base, phase1_of: base", r"experiments\.late: expected one of phase1_of, init_of; leave"),
    ):
        file.write_text(text.replace("init_of: base", wrong))
        with pytest.raises(UserError, match=message):
            script.read_experiments(file)


def test_corrections_are_of_a_policy_that_was_trained_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEVLA_HOME", str(tmp_path))
    file = tmp_path / "list.yaml"
    file.write_text(
        "data:\n"
        "  all/one/demos: {suite: libero_object, frame_stride: 4}\n"
        "  all/one/corrections: {suite: libero_object, wide: true, dagger: first}\n"
        "  all/corrections: {suite: libero_object, dagger: second}\n"
        "experiments:\n"
        "  first: {about: x, data: all/one/demos}\n"
        "  second: {about: y, data: all/one}\n"
        "  third: {about: z, data: all}\n"
    )
    known, ran = script.read_experiments(file), []
    monkeypatch.setattr(script, "run_stages", lambda stages, folder, console: ran.append((folder.name, stages)))
    script.train_corrected("third", known, script.Args(seed=2), Console())
    assert [name for name, _ in ran] == ["first-s0", "second-s0"]  # whatever the seed of what is trained on them
    collected = ["collect_all_one_demos", "collect_all_one_corrections"]
    assert [stage.name for stage in ran[1][1]] == [*collected, "phase_1", "phase_2"]
    words = ran[1][1][1].arguments
    checkpoint = tmp_path / "experiments" / "first-s0" / "checkpoints" / "phase2_flow_matching"
    assert words[words.index("--dagger") + 1] == str(checkpoint)
    file.write_text(file.read_text().replace("dagger: second", "dagger: third"))
    with pytest.raises(UserError, match=r"data\.all/corrections\.dagger: 'third' is no experiment that"):
        script.read_experiments(file)


def test_a_policy_can_go_on_from_another_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEVLA_HOME", str(tmp_path))
    file = tmp_path / "list.yaml"
    file.write_text(
        "data: {all/one: {suite: libero_object}, all/two: {suite: libero_object, dagger: base}}\n"
        "experiments:\n"
        "  base: {about: x, data: all/one}\n"
        "  late: {about: y, data: all, phases: ['2'], init_of: base}\n"
    )
    known, args, ran = script.read_experiments(file), script.Args(seed=2), []
    found = list(script.stages(known, "late", args, script.experiment_folder("late", 2)))
    assert [stage.name for stage in found][2:] == ["phase_2", "offline"]
    wanted = tmp_path / "experiments" / "base-s2" / "checkpoints" / "phase2_flow_matching" / "checkpoint_best.pt"
    assert found[2].arguments[found[2].arguments.index("--init_checkpoint") + 1] == str(wanted)
    monkeypatch.setattr(script, "run_stages", lambda stages, folder, console: ran.append([s.name for s in stages]))
    script.train_base("late", known, args, Console())
    assert ran == [["collect_all_one", "phase_1", "phase_2"]]
    file.write_text(file.read_text() + "  later: {about: z, data: all, init_of: late}\n")
    with pytest.raises(UserError, match=r"later\.init_of: 'late' is no experiment that trains phase 1"):
        script.read_experiments(file)


def test_the_time_of_training_is_that_of_all_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEVLA_HOME", str(tmp_path))
    rows = {
        "base": script.Experiment(about="x", data="d"),
        "late": script.Experiment(about="y", data="d", phase1_of="base"),
        "further": script.Experiment(about="z", data="d", init_of="base"),
        "last": script.Experiment(about="z", data="d", phases=["2"], init_of="further"),
    }
    known = script.Experiments(data={"d": script.Data()}, experiments=rows)
    seconds = {"base1": 300.0, "base2": 50.0, "late2": 20.0, "further1": 7.0, "further2": 4.0, "last2": 1.0}
    for key, spent in seconds.items():
        stage = script.Stage(f"phase_{key[-1]}", "train", [])
        write_json(mark_path(script.experiment_folder(key[:-1], 2), stage), {"done": True, "seconds": spent})
    wanted = {"base": 350.0, "late": 320.0, "further": 311.0, "last": 312.0}
    assert {name: script.training_seconds(known, name, 2) for name in rows} == wanted


def test_the_record_is_of_all_rollouts_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from record_experiment import Args

    known = script.read_experiments(script.LIST)
    words = script.record_command(known, "object-keypoints", tmp_path / "object-keypoints-s0", 0)
    args = tyro.cli(Args, args=words[2:])
    assert [folder.name for folder in args.rollout] == list(known.experiments["object-keypoints"].rollouts)
    assert [folder.name for folder in args.rollout[:2]] == ["wide", "official"]
    assert args.headline == ("libero_object_wide_success=wide", "libero_object_success=official")
    assert args.command == "python benchmarks/run_experiment.py object-keypoints --seed 0"
    assert "--headline" not in script.record_command(known, "object-keypoints", tmp_path / "object-keypoints-s1", 1)


def test_headlines_are_means_of_whole_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from record_experiment import headlines

    def rollout(rate: float, complete: bool = True) -> dict[str, object]:
        return {"complete": complete, "total": {"success_rate": rate}, "episodes_in_this_run": 10, "wall_s": 60.0}

    rollouts = {"a": rollout(0.5), "b": rollout(1.0), "c": rollout(0.9, complete=False)}
    numbers = headlines(["one=a", "both=a,b"], rollouts)
    assert numbers == {"one": 0.5, "one_episodes_per_h": 600.0, "both": 0.75, "both_episodes_per_h": 600.0}
    with pytest.raises(UserError, match="rollout 'c' is not complete"):
        headlines(["all=a,c"], rollouts)
    with pytest.raises(UserError, match="no rollout 'd'"):
        headlines(["all=d"], rollouts)
