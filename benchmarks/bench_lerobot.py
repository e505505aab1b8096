"""What a user of LeRobot sees: `--policy.type=statevla` beside `--policy.type=act`, by the same commands.

    statevla collect --world so101 --demos 25 --out demos/so25
    statevla data convert demos/so25 data/so25 --to lerobot
    python benchmarks/bench_lerobot.py --python PYTHON --data data/so25 --world so101

PYTHON has LeRobot, the plugin (packages/lerobot_policy_statevla/README.md) and what the world needs. Both policies
train with their defaults, batches of 8 and one thread for the same CPU time on all episodes but the last ones; ACT's
backbone begins at random, for its weights would have to be downloaded. Then: how far the first actions of every chunk
are from those of the held-out episodes, and `lerobot-eval` in the world. CPU time is that of whole processes, so that
other programs beside them count little. Writes `benchmarks/results/lerobot_<version>.json`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from harness import RESULTS, environment, write_results
from statevla.commands.entry import run_command
from statevla.data import open_reader

INTEGRATION = Path(__file__).resolve().parents[1] / "tests" / "integration"
sys.path.insert(0, str(INTEGRATION))

from lerobot_commands import LeRobot, logged  # noqa: E402

POLICIES = {
    "statevla": ("--policy.type=statevla",),
    "act": ("--policy.type=act", "--policy.pretrained_backbone_weights=null"),
}
CHILD = str(Path(__file__).with_name("lerobot_child.py"))
PACKAGES = ("lerobot", "torch", "torchvision", "gymnasium", "mujoco")
VERSIONS = f"import importlib.metadata as m, json; print(json.dumps({{name: m.version(name) for name in {PACKAGES}}}))"
FEW, MORE = 3, 11
"""Steps of two short runs: what lies between them is the time of a step."""


@dataclass(frozen=True)
class Args:
    python: str
    """Interpreter with LeRobot and the plugin."""
    data: Path
    """A LeRobotDataset."""
    world: str
    """A world with the robot of the data."""
    minutes: float = 30.0
    """CPU time of each training."""
    held_out: int = 5
    """Episodes at the end that are not trained on."""
    episodes: int = 20
    """Of `lerobot-eval`."""
    policies: tuple[str, ...] = tuple(POLICIES)
    """Those to measure; results of the others stay."""


def main(args: Args) -> None:
    with open_reader(args.data) as reader:
        count = len(reader.episodes)
    trained, held_out = list(range(count - args.held_out)), list(range(count - args.held_out, count))
    versions = json.loads(subprocess.run([args.python, "-c", VERSIONS], check=True, capture_output=True).stdout)
    where = environment(seed=0)
    where["command"] = where["command"].replace(args.python, "PYTHON").replace(str(args.data), f"data/{args.data.name}")
    settings = {"train_episodes": len(trained), "minutes": args.minutes, "batch_size": 8, "threads": 1}
    result = f"lerobot_{versions['lerobot']}"
    for name in args.policies:
        with tempfile.TemporaryDirectory() as folder:
            lerobot = LeRobot(args.python, Path(folder), timeout_s=None)
            arguments = (*POLICIES[name], f"--dataset.episodes={trained}")
            measured = {**settings, **measure(lerobot, args, arguments, held_out)}
        Console().print(name, measured)
        file = RESULTS / f"{result}.json"
        found = json.loads(file.read_text())["policies"] if file.is_file() else {}
        tree = {"environment": {**where, "lerobot_side": versions}, "policies": {**found, name: measured}}
        write_results(result, tree)


def measure(lerobot: LeRobot, args: Args, arguments: tuple[str, ...], held_out: list[int]) -> dict[str, Any]:
    """One policy: what a step costs, what the same time makes of it, and how well that does."""
    data = args.data.resolve()
    short = [cpu_seconds(lambda n=n: lerobot.train(data, f"steps{n}", n, *arguments))[0] for n in (FEW, MORE)]
    start_s, step_s = short[0], (short[1] - short[0]) / (MORE - FEW)
    steps = max(round(60 * args.minutes / step_s), 1)
    train_s, (policy, text) = cpu_seconds(lambda: lerobot.train(data, "run", steps, *arguments))
    losses = logged(text, "loss")
    answers = lerobot.folder / "held_out.json"
    lerobot.run(CHILD, str(policy), str(data), json.dumps(held_out), str(answers))
    evaluate_s, _ = cpu_seconds(
        lambda: lerobot.run(
            "lerobot.scripts.lerobot_eval",
            f"--policy.path={policy}",
            "--policy.device=cpu",
            "--env.type=statevla",
            f"--env.task={args.world}",
            "--env.task_ids=[0]",
            "--eval.batch_size=1",
            f"--eval.n_episodes={args.episodes}",
            f"--output_dir={lerobot.folder / 'evaluated'}",
        )
    )
    overall = json.loads((lerobot.folder / "evaluated" / "eval_info.json").read_text())["overall"]
    return {
        "step_cpu_s": step_s,
        "start_cpu_s": start_s - FEW * step_s,
        "steps": steps,
        "train_cpu_s": train_s,
        "loss_first_10": sum(losses[:10]) / len(losses[:10]),
        "loss_last_10": sum(losses[-10:]) / len(losses[-10:]),
        **json.loads(answers.read_text()),
        "success_rate": overall["pc_success"] / 100,
        "eval_episodes": overall["n_episodes"],
        "eval_cpu_s": evaluate_s,
    }


def cpu_seconds(call: Any) -> tuple[float, Any]:
    """CPU time of the processes that `call` starts, and what it returns."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    returned = call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, returned


if __name__ == "__main__":
    os.environ.setdefault("MUJOCO_GL", "osmesa")
    run_command(lambda: main(tyro.cli(Args)))
