"""The table of docs/results.md with LeRobot's policies, and who uses the machine while it is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def burst(*wall_s: float, cpu_s: float = 0.0, others: float = 0.0) -> dict[str, Any]:
    return {"wall_s": list(wall_s), "cpu_s": cpu_s, "others": others}


def results(fast: dict[str, Any], slow: dict[str, Any]) -> dict[str, Any]:
    """Of one policy in two precisions, as `bench_peers.py` writes them."""

    def run(precision: str, bursts: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": "ours",
            "precision": precision,
            "bursts": bursts,
            "start_up": {"wall_s": [2.0], "others": 0.0},
            "parameters": 5_200_000,
            "actions_per_query": 16,
            "peak_memory_mib": 500.0 if precision == "bf16" else 700.0,
            "versions": {"torch": "1", "lerobot": "2", "transformers": "3"},
        }

    machine = {"cpu": "CPU", "cpu_family_model": "1/2", "num_cpus": 2}
    return {
        "environment": {"machine": machine, "command": "python benchmarks/bench_peers.py"},
        "policies": {"ours": {}},
        "threads": [2, 1],
        "cases": {"ours, bf16": [run("bf16", fast)], "ours, fp32": [run("fp32", slow)]},
    }


def test_quiet_moments_alone_count_and_the_faster_precision_is_described() -> None:
    from deployment_tables import peers_table

    fast = {"2": [burst(0.010, 0.012, 0.014), burst(0.5, others=0.6)], "1": [burst(0.016)]}
    slow = {"2": [burst(0.024)], "1": [burst(0.150)]}
    table = peers_table(results(fast, slow))
    (row,) = [line for line in table.splitlines() if line.startswith("| ours")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:6] == ["5.2 M", "12.0 ms", "24.0 ms", "16.0 ms", "150 ms"]
    assert cells[6:] == ["16", f"{16 / 0.012:,.0f} Hz", "500 MiB", "2.0 s"]
    assert "†" not in table


def test_a_machine_that_was_never_quiet_leaves_the_processor_time_of_one_thread() -> None:
    from deployment_tables import peers_table

    busy = {"2": [burst(0.5, others=0.4)], "1": [burst(0.1, 0.1, cpu_s=0.03, others=0.4)]}
    found = results(busy, busy)
    for runs in found["cases"].values():
        runs[0]["start_up"]["others"] = 0.4
    table = peers_table(found)
    (row,) = [line for line in table.splitlines() if line.startswith("| ours")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:6] == ["†", "†", "15.0 ms†", "15.0 ms†"]
    assert cells[7:] == [f"{16 / 0.015:,.0f} Hz†", "500 MiB", "†"]
    assert "† Others used the machine" in table


def test_the_share_of_others_is_what_is_busy_beside_oneself(monkeypatch: pytest.MonkeyPatch) -> None:
    import quiet

    later = quiet.Moment(clock=12.0, busy_s=103.0, own_s=6.0)
    monkeypatch.setattr(quiet.Moment, "now", classmethod(lambda cls: later))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    # Three seconds of two processors were busy in two, one of them with this process.
    assert quiet.Moment(clock=10.0, busy_s=100.0, own_s=5.0).others() == pytest.approx(0.5)


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="this system does not tell")
def test_another_process_is_seen() -> None:
    from quiet import Moment

    begin = Moment.now()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.6: pass"], check=True)
    now = Moment.now()
    assert now.busy_s - begin.busy_s - (now.own_s - begin.own_s) >= 0.5


def test_an_environment_without_lerobot_is_refused_in_one_line() -> None:
    command = [sys.executable, str(BENCHMARKS / "bench_peers.py"), "--peers-python", "no/such/python"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--peers-python no/such/python: cannot be run" in done.stderr
