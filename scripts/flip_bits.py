"""Flip single random bits in every file of a small checkpoint: none may change a result without a word.

    python scripts/flip_bits.py [--flips 40] [--seed 0]

The checkpoint is really trained, on the synthetic data of the tests, calibrated and shared. A flip is fine where it is
refused in one line that names the file, where the file is made anew and that is said, or where everything that is read
of the checkpoint stays what it was. The exit status is 1 where one is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from statevla.acting.policy import StateVLAPolicy
from statevla.checkpoints.checkpoint import load_checkpoint, load_training_state
from statevla.checkpoints.share import copy_checkpoint
from statevla.commands.calibrate import CalibrateArgs, calibrate
from statevla.config import Config
from statevla.errors import UserError
from statevla.machine.storage import sha256
from statevla.robots import LIBERO
from statevla.training.run import train
from statevla.training.setup import RunContext, prepare
from statevla.types import Observation

TESTS = Path(__file__).parents[1] / "tests"
OUTCOMES = REFUSED, ANEW, NOTHING, SILENT, UNCLEAR = "refused", "made anew", "no effect", "SILENT", "UNCLEAR"


@dataclass(frozen=True)
class Args:
    flips: int = 40
    """Flips of every file."""
    seed: int = 0
    """Of the bits."""


@dataclass(frozen=True)
class Kind:
    """A file to damage, and what reads it: the result, and the lines that were said about it."""

    file: Path
    read: Callable[[], tuple[Any, list[str]]]


def main(args: Args) -> int:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        table, findings = flip_all(list(kinds(Path(folder))), args)
    console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True)
    console.print(table)
    for finding in findings:
        console.print(finding, markup=False, highlight=False)
    console.print(f"{len(findings)} finding(s)")
    return int(bool(findings))


def kinds(folder: Path) -> list[Kind]:
    """Every file of a shared policy, of a training state, and of stored latents."""
    sys.path.insert(0, str(TESTS))
    from libero_files import make_libero_dir, make_tiny_config

    torch.set_num_threads(1)
    config = make_tiny_config(make_libero_dir(folder / "data"), folder / "tiny")
    phase1 = train(config, "1")
    run = train(config, "2", phase1)
    calibrate(CalibrateArgs(str(run), alpha=0.4, device="cpu"))
    shared = copy_checkpoint(run / "best", folder / "shared")
    found = [Kind(file, lambda: (policy_result(shared), [])) for file in sorted(shared.iterdir())]
    states = sorted(file for file in (run / "last").rglob("*") if file.is_file() and "alarm" not in file.name)
    for file in states:  # `best` keeps the names of its own
        shutil.copy2(file, folder / "alone")
        (folder / "alone").replace(file)
    found += [Kind(file, lambda: (state_result(run), [])) for file in states]
    latents = sorted((folder / "tiny" / "cache" / "latents").iterdir())
    return found + [Kind(file, lambda: latents_result(config, phase1)) for file in latents]


def policy_result(folder: Path) -> Any:
    """All that a policy's folder says and does, and the copy that it makes of itself."""
    loaded = load_checkpoint(folder)
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu")
    session = policy.new_session()
    for seed in range(2):
        ((chunk, sighting),) = policy.sample_chunks([(session, observation(seed))])
        session.note(sighting)
        session.set_executed(chunk[:2])
    calibration = policy.calibration
    with tempfile.TemporaryDirectory() as other:
        copy = copy_checkpoint(folder, Path(other) / "copy", name="copy")
        files = {file.name: sha256(file) for file in copy.iterdir()}
    return {
        "weights": digest(loaded.model.state_dict()),
        "config": loaded.config.model_dump(mode="json"),
        "robot": loaded.robot.to_dict(),
        "statistics": loaded.statistics.to_dict(),
        "notes": [asdict(loaded.language), asdict(loaded.data), loaded.metrics],
        "chunk": chunk.tolist(),
        "scores": [session.surprise, session.novelty],
        "alarm": None if calibration is None else [calibration.thresholds, digest({"memory": calibration.memory})],
        # What is said of the source's other files, by a copy that was made of it.
        "copy": {name: value for name, value in files.items() if name != "version.json"},
    }


def state_result(run: Path) -> Any:
    """All that a resumed training begins with."""
    state, weights, config = load_training_state(run)
    return digest(state.tensors), state.values, digest(weights), config.model_dump(mode="json")


def latents_result(config: Config, phase1: Path) -> tuple[Any, list[str]]:
    """The states that phase 2 trains on."""
    said: list[str] = []
    states = prepare(config, "2", phase1, context=RunContext(say=said.append)).train.states
    return digest({"states": states}), [line for line in said if not line.startswith("encoding")]


def observation(seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (32, 32, 3), np.uint8) for camera in LIBERO.camera_names}
    return Observation(images, LIBERO.named_state(rng.normal(size=9), "flip_bits"), "pick up the red block")


def digest(tensors: dict[str, torch.Tensor]) -> str:
    parts = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        parts.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return parts.hexdigest()


def flip_all(found: list[Kind], args: Args) -> tuple[Table, list[str]]:
    """A table of what became of all flips, and a line for each that went unnoticed."""
    rng = np.random.default_rng(args.seed)
    table = Table("file", "bytes", *OUTCOMES, title=f"{args.flips} flips of each file")
    findings: list[str] = []
    for kind in found:
        whole = kind.file.read_bytes()
        expected, _ = kind.read()
        counts: Counter[str] = Counter()
        for bit in rng.integers(0, 8 * len(whole), args.flips).tolist():
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            kind.file.write_bytes(damaged)
            outcome, text = judge(kind, expected)
            counts[outcome] += 1
            if outcome in (SILENT, UNCLEAR):
                findings.append(f"{kind.file}, bit {bit}: {outcome} {text}")
            kind.file.write_bytes(whole)
        table.add_row("/".join(kind.file.parts[-2:]), f"{len(whole):,}", *(str(counts[c]) for c in OUTCOMES))
        print(f"{kind.file.name}: {dict(counts)}", file=sys.stderr, flush=True)
    return table, findings


def judge(kind: Kind, expected: Any) -> tuple[str, str]:
    """What became of a damaged file, and what was said."""
    try:
        result, said = kind.read()
    except UserError as error:
        text = str(error)
        is_clear = "\n" not in text and kind.file.name in text
        return (REFUSED if is_clear else UNCLEAR), text
    except Exception as error:
        return UNCLEAR, f"{type(error).__name__}: {error}"
    if json.dumps(result) != json.dumps(expected):
        return SILENT, ""
    return (ANEW if said else NOTHING), " ".join(said)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
