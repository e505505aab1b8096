"""Tables of docs/deploying.md (the server under load) and docs/alarm.md (recall and false alarms) from raw results."""

from __future__ import annotations

from typing import Any

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


def _rate(found: dict[str, Any]) -> str:
    if not found["episodes"]:
        return "none"
    low, high = found["interval_95"]
    return f"{found['count']} / {found['episodes']} ({100 * low:.0f} to {100 * high:.0f} %)"


def _recall(found: dict[str, Any]) -> str:
    quick = found["within_3_looks"]
    return f"{_rate(found)}; {quick['count']} / {quick['episodes']}"
