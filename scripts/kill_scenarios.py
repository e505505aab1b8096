"""What `random_kills.py` kills: commands, what is there before them, and what must be there afterwards.

Everything lies in one working folder, and is made of synthetic data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml

from statevla.acting.alarm import Calibration
from statevla.checkpoints.checkpoint import load_checkpoint, load_training_state, read_weights, weights_hash
from statevla.config import PHASES
from statevla.data import FrameCache, open_reader
from statevla.machine.storage import sha256
from statevla.worlds.demo_file import stored_episodes
from statevla.worlds.rollout_results import read_results

Check = Callable[[], Any]
ROLLOUT = "rollout --checkpoint dot --world toy_worlds:DotSuite --out rollouts --num_workers 2 --videos 1 --device cpu"
COLLECT = "collect --world toy_worlds:DotSuite --out demos --image_size 16 --workers 2"
TRAIN = "train --config config.yaml"
RUNS = {phase: Path("runs") / PHASES[phase].folder for phase in PHASES}


@dataclass(frozen=True)
class Scenario:
    """A command to kill.

    Attributes:
        words: of `statevla`.
        before: commands, run to their end, that make what is there before it.
        kept: what is there, whole, once it was killed: raises where something only looks whole, and gives what of
            before must not be lost; called before, too.
        is_kept: whether the second is as good as the first: by default they are equal, or the first is None.
        result: what the finished command has made, to be compared with that of a run that was left alone.
        resume: words to add where the killed run has left something to continue.
    """

    name: str
    words: str
    kept: Check
    result: Check
    before: Sequence[str] = ()
    is_kept: Callable[[Any, Any], bool] = lambda before, after: before is None or before == after
    resume: Callable[[], str] = lambda: ""


def scenarios() -> list[Scenario]:
    phase1 = f"{TRAIN} --phase 1"
    phase2 = f"{TRAIN} --phase 2 --phase1_checkpoint {RUNS['1']}"
    policy, cloning = (phase1, phase2), f"{TRAIN} --phase bc"
    return [
        Scenario("data cache", "data cache --config config.yaml --num-processes 2", cache, cache),
        training("1", phase1, "train phase 1"),
        training("1", f"{phase1} --overwrite seed=1", "train phase 1 --overwrite", (phase1,)),
        training("2", phase2, "train phase 2", (phase1,)),
        training("bc", f"{cloning} --resume training.bc.max_steps=16", "train bc --resume", (cloning,)),
        Scenario(
            "collect",
            f"{COLLECT} --demos 4",
            demonstrations,
            demonstrations,
            (f"{COLLECT} --demos 2",),
            is_kept=lambda before, after: before.items() <= after.items(),
        ),
        Scenario(
            "collect to lerobot",
            f"{COLLECT.replace('demos', 'both')} --demos 2 --format lerobot",
            lambda: data_set("both/lerobot"),
            lambda: data_set("both/lerobot"),
        ),
        Scenario(
            "convert to lerobot", "data convert data new --to lerobot", lambda: data_set("new"), lambda: data_set("new")
        ),
        Scenario(
            "convert to libero",
            "data convert lerobot new --to libero",
            lambda: data_set("new"),
            lambda: data_set("new"),
            ("data convert data lerobot --to lerobot",),
        ),
        Scenario("share", f"share --checkpoint {RUNS['2']} --to copy", shared, shared, policy),
        Scenario(
            "calibrate",
            f"calibrate --checkpoint {RUNS['2']} --alpha 0.4 --device cpu",
            calibration,
            calibration,
            (*policy, f"calibrate --checkpoint {RUNS['2']} --alpha 0.5 --device cpu"),
            is_kept=lambda before, after: before is None or after is not None,
        ),
        Scenario(
            "rollout",
            f"{ROLLOUT} --num_trials 3",
            rollouts,
            lambda: (rollouts(), summary()),
            (f"{ROLLOUT} --tasks 0 --num_trials 1",),
            is_kept=lambda before, after: before.items() <= after.items(),
        ),
        Scenario(
            "eval",
            f"eval --checkpoint {RUNS['2']} --out evaluation --device cpu",
            lambda: results("evaluation", "evaluation.json"),
            lambda: results("evaluation", "evaluation.json"),
            (*policy, f"eval --checkpoint {RUNS['2']} --out evaluation --num_seeds 1 --device cpu"),
            is_kept=lambda before, after: before.keys() <= after.keys(),
        ),
        Scenario(
            "probe",
            f"probe --checkpoint {RUNS['1']} --out probes --simulator off --device cpu",
            lambda: results("probes", "probe.json"),
            lambda: results("probes", "probe.json"),
            (phase1,),
            is_kept=lambda before, after: before.keys() <= after.keys(),
        ),
        Scenario(
            "report",
            "report runs --out report.html --title after",
            lambda: page("report.html"),
            lambda: page("report.html"),
            (*policy, "report runs --out report.html --title before"),
            is_kept=lambda before, after: before is None or after is not None,
        ),
    ]


def training(phase: str, words: str, name: str, before: Sequence[str] = ()) -> Scenario:
    run = RUNS[phase]

    def resume() -> str:
        # As the command itself says where there is a run.
        return "--resume" if (run / "last").exists() and not ("--overwrite" in words or "--resume" in words) else ""

    def is_kept(had: Any, has: Any) -> bool:
        return had is None or has is not None

    return Scenario(name, words, lambda: checkpoints(run), lambda: weights_of(run), before, is_kept, resume)


# What is there --------------------------------------------------------------------------------------------------------


def checkpoints(run: Path) -> Any:
    """What `last` and `best` say of themselves, both of which are whole or not there."""
    found = {}
    for name in ("last", "best"):
        # A replacement that was cut off has its predecessor under another name.
        for folder in (run / name, run / f".{name}.old"):
            if folder.exists():
                found[name] = load_checkpoint(run / f"checkpoint_{name}.pt").metrics
    if "last" in found:
        load_training_state(run)
    for png in run.glob("*.png"):
        picture(png)
    return found or None


def weights_of(run: Path) -> Any:
    """All tensors that a finished run has, and its log."""
    state, weights, _ = load_training_state(run)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logged = [(line["kind"], line["step"], line.get("total")) for line in lines]
    return [digest_of_tensors(part) for part in (state.tensors, weights, read_weights(run / "best"))], logged


def cache() -> Any:
    """Frames and arrays of every cache that is in its place."""
    found = {}
    for folder in Path("cache").glob("[!.]*px-*"):
        opened = FrameCache(folder)
        frames = opened.frames(np.arange(opened.num_frames)).numpy()
        found[folder.name] = digest({"frames": frames, "actions": opened.actions, **opened.robot_states})
    return found or None


def demonstrations() -> dict[str, str]:
    """Every kept episode of every task's file, by its index."""
    found = {}
    for file in Path("demos").glob("*.hdf5"):
        groups, _ = stored_episodes(file)
        with h5py.File(file) as opened:
            found |= {f"{file.name} {index}": digest(arrays_below(opened[group])) for index, group in groups.items()}
    return found


def arrays_below(group: h5py.Group) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    group.visititems(note)
    return found


def data_set(folder: str) -> Any:
    """Every episode of a data set, or None where there is none."""
    if not Path(folder).exists():
        return None
    found = []
    with open_reader(folder) as reader:
        for index, info in enumerate(reader.episodes):
            read = reader.read(index)
            found.append((info.instruction, digest({"actions": read.actions, **read.images, **read.robot_states})))
    return sorted(found)


def shared() -> Any:
    """Every file of the copy, which loads."""
    if not Path("copy").exists():
        return None
    load_checkpoint("copy")
    return {file.name: sha256(file) for file in sorted(Path("copy").iterdir())}


def calibration() -> Any:
    folder = RUNS["2"] / "best"
    found = Calibration.load(folder, weights_hash(folder), 16)
    return None if found is None else [found.alpha, found.thresholds, digest({"memory": found.memory.numpy()})]


def rollouts() -> dict[str, Any]:
    """What every recorded episode came to."""
    for video in Path("rollouts/videos").glob("[!.]*.png"):
        picture(video)
    return {str(key): (one.success, one.num_steps, one.error) for key, one in read_results(Path("rollouts")).items()}


def summary() -> Any:
    tree = json.loads(Path("rollouts/summary.json").read_text())
    return tree["complete"], tree["total"]["successes"], tree["total"]["episodes"]


def results(folder: str, name: str) -> dict[str, Any]:
    """The JSON of an evaluation and its pictures, each whole."""
    found: dict[str, Any] = {}
    if (Path(folder) / name).exists():
        found[name] = json.loads((Path(folder) / name).read_text())
    for file in Path(folder).glob("[!.]*.png"):
        found[file.name] = picture(file)
    return found


def page(name: str) -> Any:
    """The title of a whole page."""
    if not Path(name).exists():
        return None
    text = Path(name).read_text()
    assert text.endswith("</html>\n"), f"{name}: cut short"
    return text[text.index("<h1>") : text.index("</h1>")]


def picture(file: Path) -> str:
    """What a whole picture shows."""
    from PIL import Image

    with Image.open(file) as opened:
        return digest({"pixels": np.asarray(opened)})


def digest_of_tensors(tensors: dict[str, torch.Tensor]) -> str:
    return digest({name: tensor.numpy() for name, tensor in tensors.items()})


def digest(arrays: dict[str, np.ndarray]) -> str:
    parts = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        parts.update(f"{name} {np.shape(array)}".encode() + np.ascontiguousarray(array).tobytes())
    return parts.hexdigest()


def make_inputs(folder: Path) -> None:
    """The data set `data`, `config.yaml`, and the untrained policy `dot` of the toy world."""
    import toy_worlds
    from libero_files import make_libero_dir, make_tiny_config
    from untrained_policy import save_untrained

    make_libero_dir(folder / "data")
    config = make_tiny_config(folder / "data", folder / "tiny")
    (folder / "tiny" / "language.npz").rename(folder / "language.npz")
    tree = config.model_dump(mode="json")
    tree["data"] |= {"path": "data", "cache_dir": "cache"}
    tree |= {"output_dir": "runs", "language": {"encoder": "language.npz"}}
    tree["training"] |= {"checkpoint_every_steps": 2}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    texts = [toy_worlds.INSTRUCTION, *(task.instruction for task in toy_worlds.DotSuite().tasks)]
    save_untrained(config, toy_worlds.DOT, texts, folder / "dot")
