"""The client in an environment that has its own dependencies and nothing else: no PyTorch, no StateVLA."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_server import HORIZON, serving

from environments import make_interpreter, project_of
from statevla.acting.policy import StateVLAPolicy
from statevla.types import Observation
from statevla_client.client import request_of

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "packages" / "statevla_client"
# Reads a request from a file, writes what the server answered as JSON.
SCRIPT = """
import json, sys
import numpy as np
from statevla_client import PolicyClient

port, file = sys.argv[1:]
request = dict(np.load(file))
request["instruction"] = str(request["instruction"])
with PolicyClient(port=int(port)) as policy:
    policy.reset(episode=3)
    chunk = policy.act_chunk(request).actions
    policy.reset(episode=3)
    asked = [policy.needs_observation()]
    actions = [policy.act(request)]
    while not policy.needs_observation():
        asked.append(False)
        actions.append(policy.act())
    robot = policy.metadata["robot"]["name"]
heavy = {"torch", "numba", "pydantic", "statevla"} & set(sys.modules)
told = {"chunk": chunk.tolist(), "actions": np.stack(actions).tolist(), "asked": asked, "robot": robot}
print(json.dumps({**told, "heavy": sorted(heavy)}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client")
    return make_interpreter(folder, project_of(CLIENT)["dependencies"], CLIENT / "src")


def run(python: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("absent", ["torch", "statevla", "pydantic", "yaml"])
def test_the_environment_is_bare(python: Path, absent: str) -> None:
    """Positive control: what the client must not need is not there."""
    assert "ModuleNotFoundError" in run(python, f"import {absent}").stderr


def test_it_talks_to_a_real_server(
    python: Path, policy: StateVLAPolicy, checkpoint: Path, observe: Callable[..., Observation], tmp_path: Path
) -> None:
    np.savez(tmp_path / "request.npz", **request_of(observe(1)))
    with serving(policy) as server:
        done = run(python, SCRIPT, str(server.port), str(tmp_path / "request.npz"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    local = StateVLAPolicy.from_pretrained(checkpoint)
    local.reset(3)
    expected = local.act_chunk(observe(1)).actions
    np.testing.assert_allclose(told["chunk"], expected, atol=1e-5)
    np.testing.assert_allclose(told["actions"], expected, atol=1e-5)
    assert told["asked"] == [True] + [False] * (HORIZON - 1)
    assert told["robot"] == "libero"
    assert told["heavy"] == []


def test_errors_are_its_own(python: Path) -> None:
    """One line, and nothing of StateVLA is needed to catch it."""
    code = (
        "from statevla_client import PolicyClient, PolicyClientError\n"
        "try:\n    PolicyClient(port=9)\n"
        "except PolicyClientError as error:\n    print(error)\n"
    )
    done = run(python, code)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("policy server ws://127.0.0.1:9: not reachable")


def test_both_sides_of_the_wire_are_of_one_version() -> None:
    statevla, client = project_of(ROOT), project_of(CLIENT)
    assert statevla["version"] == client["version"]
    assert f"statevla-client=={client['version']}" in statevla["optional-dependencies"]["serve"]
