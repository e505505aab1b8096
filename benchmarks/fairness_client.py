"""A client process of `bench_server_fairness.py`, told over its standard input what to do; it needs no PyTorch.

Each line is one task, answered by a line `ready`; the next line starts it, and a line of JSON tells what came of it.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from statevla_client import PolicyClient, PolicyClientError

TEXT_CHARS = 960
LARGE_PX = 2230
"""Of a square picture: 15 MB."""


def known_request(metadata: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """What a robot sends: pictures as large as the model sees them, and an instruction that stays the same."""
    size = metadata["image_size"]
    pictures = {f"images/{name}": rng.integers(0, 256, (size, size, 3), np.uint8) for name in metadata["cameras"]}
    state = rng.normal(size=metadata["robot_state_dim"])
    return {**pictures, "robot_state": state, "instruction": "pick up the milk and place it in the basket"}


def new_text(rng: np.random.Generator) -> str:
    words = [
        "pick",
        "up",
        "the",
        "milk",
        "soup",
        "butter",
        "and",
        "place",
        "it",
        "in",
        "basket",
        "then",
        "open",
        "drawer",
    ]
    return f"{rng.integers(1_000_000_000)} " + " ".join(rng.choice(words, TEXT_CHARS))[: TEXT_CHARS - 10]


def talk(task: dict[str, Any]) -> dict[str, Any]:
    """Latencies in ms of a client of some kind: `steady`, `texts`, `pictures` or `reconnects`."""
    rng, kind = np.random.default_rng(task["seed"]), task["kind"]
    client = connect(task)
    request = known_request(client.metadata, rng)
    if kind == "steady":
        client.infer(request)
    if kind == "pictures":
        request[f"images/{client.metadata['cameras'][0]}"] = np.zeros((LARGE_PX, LARGE_PX, 3), np.uint8)
    print("ready", flush=True)
    sys.stdin.readline()
    latencies, errors = [], 0
    end = time.monotonic() + task["seconds"]
    while (start := time.perf_counter()) and time.monotonic() < end:
        if kind in ("texts", "reconnects"):
            request["instruction"] = new_text(rng)
        try:
            if kind == "reconnects":
                client.close()
                client = connect(task)
            client.infer(request)
            latencies.append(1000 * (time.perf_counter() - start))
        except PolicyClientError:
            errors += 1
            client = connect(task)
        if kind == "steady" and task["period_s"]:
            time.sleep(max(0.0, task["period_s"] - (time.perf_counter() - start)))
    client.close()
    return {"kind": kind, "latencies_ms": [round(value, 3) for value in latencies], "errors": errors}


def connect(task: dict[str, Any]) -> PolicyClient:
    return PolicyClient(port=task["port"], timeout_s=120, wait_s=60)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(talk(json.loads(line))), flush=True)
