"""The report shows what the files of a real, tiny run hold, and refers to nothing outside itself."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from statevla.commands.report import ReportArgs, report
from statevla.config import Config
from statevla.diagnostics.tables import result_tables
from statevla.errors import UserError
from statevla.machine.sealed import seal
from statevla.report import write_report
from statevla.report.charts import training_curves
from statevla.report.sources import Run, find_sources
from statevla.robots import KNOWN_ROBOTS

UNITREE_G1 = KNOWN_ROBOTS["unitree_g1"]
VOID = {"meta", "img", "br", "link", "path", "use", "input"}


class Outline(HTMLParser):
    """Collects tags and attributes, and checks that tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def outline(path: Path) -> Outline:
    parser = Outline()
    parser.feed(path.read_text())
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def trained(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phase 1 and 2 of the tiny model, really trained for a few steps, and an offline evaluation of it."""
    from statevla.commands.eval import EvalArgs, offline
    from statevla.training.run import train

    folder = tmp_path_factory.mktemp("report")
    config = tiny_config.model_copy(update={"output_dir": str(folder)})
    phase1 = train(config, "1")
    phase2 = train(config, "2", phase1_checkpoint=phase1)
    offline(EvalArgs(str(phase2), out=str(folder / "evaluation"), num_seeds=2))
    return folder


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    """Results of an evaluation in simulation, written by the code that writes them."""
    from statevla.machine.storage import write_json
    from statevla.worlds.rollout_results import EpisodeLog, EpisodeResult, summarize, summarize_alarms

    results = [
        EpisodeResult(
            0,
            trial,
            "soup",
            "pick up the <soup>",
            trial,
            1,
            trial < 3,
            None,
            120,
            1,
            3.0,
            policy_ms=[9.0] * 3,
            surprise=[0.01, 0.5 if trial == 3 else 0.02],
            alarm_step=16 if trial == 3 else None,
        )
        for trial in range(4)
    ]
    results.append(EpisodeResult(0, 4, "soup", "pick up the <soup>", 4, 1, None, "worker gone", 0, 2, 3.0))
    settings = {
        "task_suite": "libero_object",
        "init_states": "official",
        "execute_steps": 8,
        "num_sampling_steps": 4,
        "temporal_ensembling": None,
        "surprise_threshold": 0.2,
    }
    alarm = {"alpha": 0.1, "num_episodes": 20, "source": "20 held-out <episodes>", "threshold": 0.2}
    summary = {
        "settings": settings,
        **summarize(results, 6),
        "alarm": summarize_alarms(results, alarm),
        "versions": {"mujoco": "3.3.2"},
        "command": ["run", "a b"],
    }
    write_json(tmp_path / "rollouts" / "summary.json", summary)
    log = EpisodeLog(tmp_path / "rollouts" / "episodes.jsonl")
    for result in results:
        log.append(result)
    log.close()
    (tmp_path / "rollouts" / "videos").mkdir()
    (tmp_path / "rollouts" / "videos" / "task00_trial000_success.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    return tmp_path


def test_page_of_a_trained_run_is_whole_and_self_contained(trained: Path, tmp_path: Path) -> None:
    page = write_report([trained], tmp_path / "page.html", title="tiny & small")
    text = page.read_text()
    seen = outline(page)
    for heading in ("Phase 1: temporal JEPA", "Phase 2: flow matching", "Offline evaluation", "How this was made"):
        assert heading in text
    assert "tiny &amp; small" in text
    assert sum(tag == "svg" for tag, _ in seen.tags) >= 3  # curves of both phases and the copy skill
    pictures = [attributes["src"] or "" for tag, attributes in seen.tags if tag == "img"]
    assert len(pictures) >= 3
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    for _, attributes in seen.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    evaluation = json.loads((trained / "evaluation" / "evaluation.json").read_text())
    assert f"{evaluation['actions']['normalized']['mse']:.3g}" in text
    assert evaluation["versions"]["torch"] in text
    assert (
        "Robot libero, 20 Hz. Actions: hand (6 continuous, delta), gripper (1 binary). State: joint_positions" in text
    )
    assert "<td>rz</td>" in text
    assert "Gripper: accuracy" in text
    # Every id is defined once: charts do not borrow each other's clip paths.
    ids = re.findall(r'<clipPath id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) > 0


def test_results_that_were_damaged_are_not_shown(tmp_path: Path) -> None:
    tree = seal({"num_episodes": 2, "split": "validation", "actions": {}})
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(tree).replace('"num_episodes": 2', '"num_episodes": 3'))
    with pytest.raises(UserError, match=r"evaluation\.json: damaged, or edited"):
        write_report([tmp_path], tmp_path / "page.html")


def evaluation_of(folder: Path, actions: dict, **more: object) -> str:
    """The page of an evaluation with these metrics of actions."""
    folder.mkdir(parents=True)
    tree = {"num_episodes": 2, "split": "validation", "actions": actions, **more}
    (folder / "evaluation.json").write_text(json.dumps(tree))
    page = write_report([folder], folder / "page.html")
    outline(page)
    return page.read_text()


def test_any_robots_numbers_are_shown_by_name_and_beside_the_present_state(tmp_path: Path) -> None:
    names = list(UNITREE_G1.action_names)
    values = [0.01 * number for number in range(1, 27)]
    errors = {"mse": 0.2, "mae": 0.3, "mse_of_mean_action": 1.0, "mse_per_dim": values, "mae_per_dim": values}
    still = {"mse": 0.5, "mae": 0.6, "mae_per_dim": [2 * value for value in values], "policy": errors}
    actions = {
        "names": names,
        "units": ["rad"] * 26,
        "normalized": errors,
        "real": errors,
        "spread": values,
        "repeat_state": {"names": names, "units": ["rad"] * 26, "normalized": still, "real": still},
    }
    text = evaluation_of(tmp_path / "g1", actions, robot=UNITREE_G1.to_dict(), notes=["a role <is> missing"])
    for name, value in zip(names, values):
        assert f"<td>{name} (rad)</td><td>{value:.3g}</td>" in text
        assert f"<td>{2 * value:.3g}</td></tr>" in text
    assert "<b>40%</b>of the error of repeating the present state" in text
    assert "60% below that of repeating the present state (0.2 against 0.5)" in text
    assert "<td>present state</td><td>0.5</td><td>0.6</td>" in text
    assert "Robot unitree_g1, 30 Hz" in text
    assert "A role &lt;is&gt; missing." in text


def test_evaluations_without_continuous_numbers_and_earlier_ones_are_shown(tmp_path: Path) -> None:
    scores = {"accuracy": 0.75, "precision": 1.0, "recall": 0.5, "f1": 0.7}
    text = evaluation_of(tmp_path / "valves", {"binary": {"left": scores, "right": scores}})
    assert text.count("accuracy 0.750, F1 of switching on 0.700") == 2
    errors = {"mse": 0.2, "mae": 0.3, "mse_of_mean_action": 1.0, "mse_per_dim": [0.2], "mae_per_dim": [0.3]}
    earlier = {"normalized": errors, "real": errors, "spread": [0.1], "gripper": scores}
    assert "<td>number 0</td><td>0.2</td>" in evaluation_of(tmp_path / "earlier", earlier)


def test_rollouts_are_shown_with_intervals_and_errors(rollouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ReportArgs([str(rollouts)])) == 0
    page = rollouts / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text()
    outline(page)
    assert "3/4" in text
    assert "75.0%" in text
    assert "30.1% to 95.4%" in text  # Wilson's interval of 3 in 4
    assert "worker gone" in text
    assert "it rose in 0 of 3 successes and in 1 of 1 failures" in text
    assert "20 held-out &lt;episodes&gt;" in text
    assert "alarm above" in text  # the threshold, in the chart's legend
    assert "pick up the &lt;soup&gt;" in text
    assert "pick up the <soup>" not in text
    assert "Not complete" in text
    assert "data:video/mp4;base64,AAAAGGZ0eXBtcDQy" in text
    assert "run &#x27;a b&#x27;" in text


def test_nothing_to_show_and_damage_are_input_errors(rollouts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_sources([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to show"):
        find_sources([tmp_path / "empty"])
    with pytest.raises(UserError, match="at least one folder"):
        report(ReportArgs([]))
    (rollouts / "rollouts" / "summary.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        find_sources([rollouts])


def test_a_running_log_is_read_up_to_its_torn_line(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    source = trained / "phase1_temporal_jepa"
    (run / "run.json").write_text((source / "run.json").read_text())
    lines = (source / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join(lines) + '\n{"kind": "train", "st')
    (found,) = find_sources([tmp_path]).runs
    assert len(found.log) == len(lines)
    assert found.phase == "1"


@pytest.mark.parametrize("what", ["video", "videos", "picture", "log", "summary"])
def test_links_out_of_the_folders_are_not_followed(
    rollouts: Path, tmp_path_factory: pytest.TempPathFactory, what: str
) -> None:
    """A folder of results may come from anywhere; what the user has elsewhere shall not get into a page."""
    elsewhere, folder = tmp_path_factory.mktemp("elsewhere"), rollouts / "rollouts"
    path = {
        "video": folder / "videos" / "task00_trial000_success.mp4",
        "videos": folder / "videos",
        "picture": folder / "contact_sheet.png",
        "log": folder / "episodes.jsonl",
        "summary": folder / "summary.json",
    }[what]
    if path.exists():
        path.rename(elsewhere / "secret")
    else:
        (elsewhere / "secret").write_bytes(b"the user's own")
    path.symlink_to(elsewhere / "secret")
    with pytest.raises(UserError, match=r"expected a file of its own folder, got a link to .*secret"):
        write_report([rollouts], rollouts / "report.html")
    assert not (rollouts / "report.html").exists()
    # What the user names is the user's choice.
    write_report([rollouts, elsewhere], rollouts / "report.html")


def test_a_log_without_losses_draws_nothing(tmp_path: Path) -> None:
    for log in ([], [{"kind": "train", "step": 1, "total": 0.0, "epoch": 3}]):
        assert training_curves(Run(tmp_path, {}, log)) == ""


def test_the_page_has_the_tables_of_the_terminal(tmp_path: Path) -> None:
    ratios = {"repeated_ratio": 1.02, "unmoved_ratio": 20.5, "moved_ratio": 197.0}
    results = {
        "checkpoint": "run/best",
        "num_episodes": 3,
        "split": "validation",
        "world_model": {"copy_skill_1": 0.125, "straightness": 0.5},
        "go_no_go": {"copy_skill_1": False},
        "goals": {"4": {"median_m": 0.031, "chance_m": 0.087, "num_episodes": 3}},
        "object_surprise": {**ratios, "source": "other episodes", "num_pairs": 10, "moved_more": 1.0, "p_value": 0.001},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(results))
    page = write_report([tmp_path], tmp_path / "page.html").read_text()
    console = Console(markup=False, width=120, file=io.StringIO(), record=True)
    tables = result_tables(results)
    for table in tables:
        console.print(table)
    shown = " ".join(console.export_text().split())
    assert [table.title for table in tables] == [
        "world model: run/best, 3 validation episodes",
        "where is the hand going?",
        "surprise at a moved object: pictures from other episodes, 10 pairs",
    ]
    for text in ("copy skill 1", "0.125", "too low", "3.1", "8.7", "20.5", "197", "in 100% of the pairs, p = 0.001"):
        assert text in shown
        assert text in page
    assert "<h3>Surprise at a moved object: pictures from other episodes, 10 pairs</h3>" in page
