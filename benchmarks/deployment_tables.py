"""Tables from raw results: docs/deploying.md (the server under load), docs/alarm.md (recall and false alarms),
docs/results.md (LeRobot's policies beside ours)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from quiet import QUIET

BUSY = "†"
"""Marks what was timed while others used the machine."""
KINDS = {"moved": "object pushed", "occluded": "camera covered", "blocked": "gripper blocked"}


def server_table(results: dict[str, Any]) -> str:
    """Latency, throughput, errors and memory of `benchmarks/bench_server.py`."""
    if not results:
        return "Not measured yet."
    machine, memory, policy = results["environment"]["machine"], results["memory"], results["policy"]
    lines = [
        "| load | requests | errors | requests/s | p50 | p95 | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in results["runs"].values():
        latency = run["latency_ms"]
        times = " | ".join(f"{latency[key]:.1f} ms" for key in ("p50", "p95", "p99"))
        clients = f"{run['num_clients']} client{'s' if run['num_clients'] > 1 else ''}"
        pace = "back to back" if run["period_s"] is None else f"one request every {run['period_s']:g} s each"
        seconds = run["duration_s"]
        duration = f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"
        rate = f"{run['requests_per_s']:.1f}"
        lines.append(f"| {clients}, {pace}, {duration} | {run['requests']:,} | {run['errors']} | {rate} | {times} |")
    where = f"{machine['cpu']}, family/model {machine['cpu_family_model']}"
    lines += [
        "",
        f"Client and server on one machine ({where}, {machine['num_threads']} threads), a {policy} policy of",
        f"{results['metadata']['image_size']} px. Resident memory of the server in the long run: "
        f"{memory['first_mib']:.0f} MiB at its begin, at most {memory['max_mib']:.0f},",
        f"{memory['second_half_mib_per_min']:+.2f} MiB a minute in its second half.",
        f"`{results['environment']['command']}`",
    ]
    return "\n".join(lines)


def alarm_table(results: dict[str, Any]) -> str:
    """False alarms and recall of `benchmarks/measure_alarm.py`, both detectors, both calibrations."""
    if not results:
        return "Not measured yet."
    head = [*KINDS.values()]
    lines = [
        "| detector | calibrated on | false alarms | " + " | ".join(f"recall, {kind}" for kind in head) + " |",
        "|---|---|---|" + "---|" * len(head),
    ]
    for detector, calibrations in results["results"].items():
        for name, found in calibrations.items():
            recalls = " | ".join(_recall(found["recall"][kind]) for kind in KINDS)
            lines.append(f"| {detector} | {name} | {_rate(found['false_alarms'])} | {recalls} |")
    success = ", ".join(
        f"{KINDS.get(kind, 'undisturbed')} {found['count']} of {found['episodes']}"
        for kind, found in results["success"].items()
    )
    calibration = results["calibration"]
    lines += [
        "",
        f"`{results['suite']}`, {len(results['tasks'])} tasks, {results['episodes_per_task']} episodes of each kind, "
        f"{results['execute_steps']} actions between looks, a disturbance",
        f"at a control step drawn between {results['onset'][0]} and {results['onset'][1]}. In brackets 95 % intervals "
        f"(Wilson); in recall, first the alarms at any look after the",
        "disturbance, then those within three looks. The bound on false alarms per episode is "
        f"α = {calibration['alpha']:g}: for `demonstrations`, {calibration['num_episodes']} held-out ones,",
        "it holds for episodes like them; for `rollouts`, the policy's own undisturbed episodes of even number, it",
        "holds for its episodes, of which those of odd number were counted. Episodes that ended in success:",
        f"{success}.",
        f"`{results['environment']['command']}`",
    ]
    return "\n".join(lines)


def peers_table(results: dict[str, Any]) -> str:
    """Time of a query, control rate, memory and start-up of `benchmarks/bench_peers.py`."""
    if not results:
        return "Not measured yet."
    columns, rows = peer_rows(results)
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    machine: dict[str, Any] = results["environment"]["machine"]
    versions: dict[str, str] = {}
    for runs in results["cases"].values():
        versions |= runs[0]["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "lerobot", "transformers"))
    where = f"{machine['cpu']}, family/model {machine['cpu_family_model']}, {machine['num_cpus']} cores"
    command, turns = results["environment"]["command"], min(map(len, results["cases"].values()))
    lines += [
        "",
        f"On {where}; {packages}; processes for each cell: {turns}. `{command}`, whose head says how to make PEERS.",
    ]
    if any(BUSY in cell for row in rows for cell in row):
        lines.append(
            f"{BUSY} Others used the machine whenever this was timed. That leaves the processor's time for a query "
            "with one thread, somewhat lengthened, and what follows from it, but no figure for several threads or a "
            "start-up."
        )
    return "\n".join(lines)


def peer_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of that table, a row for each policy; memory and start-up are of its faster precision."""
    precisions = sorted({case["precision"] for runs in results["cases"].values() for case in runs})
    ways = [(precision, number) for number in results["threads"] for precision in precisions]
    columns = ["policy", "parameters"]
    columns += [f"{precision}, {number} thread{'s' * (number > 1)}" for precision, number in ways]
    columns += ["actions a query", "control rate", "peak memory", "start-up"]
    rows = []
    for name in results["policies"]:
        runs = {precision: results["cases"][f"{name}, {precision}"] for precision in precisions}
        times = {(precision, number): _query_s(runs[precision], str(number)) for precision, number in ways}
        cells = [_milliseconds(*times[way]) for way in ways]
        known = [(seconds, busy, way) for way, (seconds, busy) in times.items() if seconds is not None]
        seconds, busy, (precision, _) = min(known)
        best = runs[precision]
        actions = best[0]["actions_per_query"]
        starts = [run["start_up"]["wall_s"][0] for run in best if run["start_up"]["others"] <= QUIET]
        memory = statistics.median(run["peak_memory_mib"] for run in best)
        cells += [str(actions), f"{actions / seconds:,.0f} Hz{BUSY * busy}", f"{memory:,.0f} MiB"]
        cells.append(f"{statistics.median(starts):.1f} s" if starts else BUSY)
        rows.append([name, f"{best[0]['parameters'] / 1e6:.1f} M", *cells])
    return columns, rows


def _query_s(runs: Sequence[dict[str, Any]], threads: str) -> tuple[float | None, bool]:
    """Median seconds of a query, and whether others used the machine; None where they did and threads share the work.

    One thread's processor time is then a little too long: it does not count when others run, but shares their caches.
    """
    bursts = [burst for run in runs for burst in run["bursts"][threads]]
    quiet = [seconds for burst in bursts if burst["others"] <= QUIET for seconds in burst["wall_s"]]
    if quiet:
        return statistics.median(quiet), False
    if threads == "1":
        return statistics.median(burst["cpu_s"] / len(burst["wall_s"]) for burst in bursts), True
    return None, True


def _milliseconds(seconds: float | None, busy: bool) -> str:
    if seconds is None:
        return BUSY
    return f"{1e3 * seconds:,.{0 if seconds >= 0.1 else 1}f} ms{BUSY * busy}"


def _rate(found: dict[str, Any]) -> str:
    if not found["episodes"]:
        return "none"
    low, high = found["interval_95"]
    return f"{found['count']} / {found['episodes']} ({100 * low:.0f} to {100 * high:.0f} %)"


def _recall(found: dict[str, Any]) -> str:
    quick = found["within_3_looks"]
    return f"{_rate(found)}; {quick['count']} / {quick['episodes']}"
