"""What comes along goes by name, from any folder, and what lies here comes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from statevla.checkpoints.checkpoint import resolve_checkpoint
from statevla.config import bundled_dir, bundled_policies, find_config, load_config, presets, results_dir
from statevla.errors import UserError

ROOT = Path(__file__).parents[2]


def test_presets_go_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_path = {path.stem: load_config(path) for path in (ROOT / "conf").glob("*.yaml")}
    monkeypatch.chdir(tmp_path)
    assert presets() == sorted(by_path) == ["compact", "config", "demo", "full"]
    assert {name: load_config(name) for name in presets()} == by_path


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compact").write_text("output_dir: mine")
    assert load_config("compact").output_dir == "mine"
    (tmp_path / "demo").mkdir()  # a folder is no configuration
    assert find_config("demo") == bundled_dir("conf") / "demo.yaml"


def test_an_unknown_configuration_names_the_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("compakt", "conf/compact.yaml"):
        with pytest.raises(UserError, match="path of a YAML file, or a preset's name: compact, config, demo, full"):
            load_config(name)


def test_policies_go_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundled_policies() == sorted(path.name for path in (ROOT / "models").iterdir())
    for name in bundled_policies():
        assert resolve_checkpoint(name) == ROOT / "models" / name
    with pytest.raises(UserError, match="policy that comes along: libero_object_compact"):
        resolve_checkpoint("libero_objects_compact")


def test_results_of_a_policy_that_came_along_are_not_written_into_the_package(tmp_path: Path) -> None:
    run = tmp_path / "run" / "best"
    assert results_dir(run, "probe_best") == tmp_path / "run" / "probe_best"
    assert results_dir(resolve_checkpoint("libero_object_compact"), "probe_x") == Path("probe_x")
