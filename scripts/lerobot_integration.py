"""LeRobot from end to end on data of several robots: train, resume, act, evaluate, and back to StateVLA's own tools.

python scripts/lerobot_integration.py PYTHON NAME=FOLDER[=WORLD[=ROBOT]]...

PYTHON is an interpreter with LeRobot and the plugin, each FOLDER a LeRobotDataset, WORLD one of StateVLA's worlds with
its robot, where there is one, ROBOT what the policy takes it for, if not what the data set declares. A policy of
`libero_either` also acts in LeRobot's own `libero`, WORLD being a suite. Prints a table for docs/lerobot.md; a step
that fails ends it with what that printed.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
INTEGRATION = ROOT / "tests" / "integration"
sys.path.insert(0, str(INTEGRATION))

from lerobot_commands import LeRobot, logged  # noqa: E402

from statevla.checkpoints.checkpoint import load_checkpoint  # noqa: E402
from statevla.data import open_reader  # noqa: E402
from statevla.robots import LIBERO_EITHER  # noqa: E402
from statevla_client import PolicyClient  # noqa: E402

STEPS, PHASE_1 = 6, 4
EPISODE_STEPS = 20
HEADER = (
    "| data | robot | cameras | actions, state | loss of 6 steps | resumed, 6 more | answers | served | lerobot-eval |",
    "|---|---|---|---|---|---|---|---|---|",
)
VERSIONS = (
    "import importlib.metadata as m, platform; "
    "print('LeRobot', m.version('lerobot') + ', Python', platform.python_version() + ', torch', m.version('torch'))"
)


def main() -> None:
    python, *data = sys.argv[1:]
    print(subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True, text=True).stdout)
    print(*HEADER, sep="\n")
    for item in data:
        name, folder, world, robot = (*item.split("="), "", "")[:4]
        with tempfile.TemporaryDirectory() as work:
            lerobot = LeRobot(python, Path(work))
            print(row(lerobot, name, Path(folder).resolve(), world, robot), flush=True)


def row(lerobot: LeRobot, name: str, data: Path, world: str, declared: str) -> str:
    """All steps on one data set, as a line of the table."""
    given = [f"--policy.robot={declared}"] if declared else []
    _, text = lerobot.train(data, "run", STEPS, "--policy.type=statevla", *given)
    losses = losses_of(text, STEPS)
    trained = f"phase 1: {span(losses[:PHASE_1])}, 2: {span(losses[PHASE_1:])}"
    resumed = f"phase 2: {span(losses_of(lerobot.resume('run', 2 * STEPS), STEPS))}"
    policy = lerobot.checkpoint("run")
    with open_reader(data) as reader:
        instruction = reader.episodes[0].instruction
    lerobot.run(str(INTEGRATION / "lerobot_both_ways.py"), str(policy), str(policy), instruction)
    robot = load_checkpoint(policy).robot
    shape = f"{robot.action_dim}, {robot.state_dim}"
    cameras = ", ".join(robot.camera_names)
    served = serve(policy, instruction, Path(lerobot.folder))
    evaluated = evaluate(lerobot, policy, "statevla", world) if world else "no world of it"
    if world and declared == LIBERO_EITHER.name:
        evaluated += f"; LeRobot's {evaluate_in_libero(lerobot, policy, instruction, world)}"
    cells = (
        name,
        robot.name,
        cameras,
        shape,
        trained,
        resumed,
        "equal",
        served,
        evaluated,
    )
    return f"| {' | '.join(cells)} |"


def losses_of(text: str, count: int) -> list[float]:
    """The losses of a run, all finite; none of its learning rates may be 0."""
    rates, losses = logged(text, "lr"), logged(text, "loss")
    assert len(rates) == len(losses) == count, text[-3000:]
    assert min(rates) > 0, rates
    assert np.isfinite(losses).all(), losses
    return losses


def span(losses: list[float]) -> str:
    return f"{losses[0]:.2f} to {losses[-1]:.2f}"


def evaluate_in_libero(lerobot: LeRobot, policy: Path, instruction: str, suite: str) -> str:
    """LeRobot's own `libero`, which sends the hand's pose alone, and that is what the policy acts on."""
    lerobot.run(str(INTEGRATION / "lerobot_ways.py"), str(policy), instruction, suite)
    # With the files of `statevla[sim]` instead of LeRobot's.
    return evaluate(lerobot, policy, "libero", suite, "--env.init_states=false")


def evaluate(lerobot: LeRobot, policy: Path, kind: str, world: str, *options: str) -> str:
    """`lerobot-eval` in a world, of StateVLA's or LeRobot's; so young a policy succeeds by chance at most."""
    output = lerobot.folder / f"evaluated_{kind}"
    lerobot.run(
        "lerobot.scripts.lerobot_eval",
        f"--policy.path={policy}",
        "--policy.device=cpu",
        f"--env.type={kind}",
        f"--env.task={world}",
        "--env.task_ids=[0]",
        f"--env.episode_length={EPISODE_STEPS}",
        "--eval.batch_size=1",
        "--eval.n_episodes=1",
        *options,
        f"--output_dir={output}",
    )
    overall = json.loads((output / "eval_info.json").read_text())["overall"]
    assert overall["n_episodes"] == 1, overall
    assert Path(overall["video_paths"][0]).stat().st_size > 0, overall
    return f"{world}, {EPISODE_STEPS} steps"


def serve(policy: Path, instruction: str, folder: Path) -> str:
    """`statevla serve` on what lerobot-train wrote, and a request to it."""
    robot, port = load_checkpoint(policy).robot, free_port()
    log = folder / "serve.log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "statevla", "serve", "--checkpoint", str(policy), "--port", str(port)]
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            with PolicyClient("127.0.0.1", port=port, timeout_s=300, wait_s=900) as client:
                frames = {f"images/{name}": np.zeros((96, 96, 3), np.uint8) for name in robot.camera_names}
                state = np.zeros(robot.state_dim, np.float32)
                action = client.act({**frames, "robot_state": state, "instruction": instruction})
                assert action.shape == (robot.action_dim,), action.shape
        finally:
            server.terminate()
            server.wait()
    return "yes"


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
