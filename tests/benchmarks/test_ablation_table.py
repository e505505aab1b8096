"""The table of docs/experiments.md in which all seeds of a row count together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import fisher_exact

from statevla.worlds.rollout_results import success_interval


def record(name: str, successes: int, **more: Any) -> dict[str, Any]:
    """A record as `record_experiment.py` writes it, as far as the table reads it."""
    empty = {"note": name, "diagnostics": {}, "offline": None, "training_s": None}
    simulated = [{"total": {"successes": successes, "episodes": 45}}]
    return {**empty, "name": name, "simulated": simulated, **more}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import ablation_table

    return ablation_table


def test_seeds_count_together_and_the_reference_comes_first(module: Any) -> None:
    goals = [{"goals": {"0": {"median_m": median}}} for median in (0.031, 0.024)]
    lines = module.ablation_table(
        [
            record("object-both-s0", 45),
            record("short-no-film-s0", 9),
            record("short-s0", 20, diagnostics=goals[0], training_s=420.0),
            record("short-s1", 10, diagnostics=goals[1], training_s=426.0),
            record("short-l1-s0", 40),
            record("quick-l1-s0", 40),
        ],
        "short",
    )
    rows = [line.split(" | ") for line in lines[2:]]
    assert [row[0].split(":")[0].strip("| ") for row in rows] == ["`short`", "`short-l1`", "`short-no-film`"]
    low, high = success_interval(30, 90)
    assert rows[0][1:5] == [f"33 % ({100 * low:.0f} to {100 * high:.0f})", "–", "20, 10 of 45", "2.4 to 3.1"]
    assert rows[1][2] == f"{fisher_exact([(40, 5), (30, 60)]).pvalue:.2g}"
    assert rows[0][-1].startswith("7 to 7.1")
    assert rows[2][4] == "–"
    assert len(lines[0].split(" | ")) == len(rows[0])


def test_only_its_own_records_are_its_rows(module: Any) -> None:
    assert module.ablation_table([record("object-both-s0", 45), record("shorter-s0", 3)], "short") == []
    assert module.is_ablation("short-no-film-s12")
    assert module.is_ablation("quick-s0")
    assert not module.is_ablation("short")
