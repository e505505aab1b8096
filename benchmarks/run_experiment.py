"""Run experiments from data to the record of docs/experiments.md: one command per row, resumable.

    python benchmarks/run_experiment.py NAME [NAME …] [--seed 0] [--time-limit-s 3600]
    python benchmarks/run_experiment.py --list

`benchmarks/experiments.yaml` says what an experiment is: data to collect, a preset with overrides, the phases to train
(phase 1 may be another experiment's) and the simulated evaluations. Every stage is a command of `statevla`, printed
before it runs; what is done is not done again. Data sets are shared below `$STATEVLA_HOME/datasets`, runs lie in
`$STATEVLA_HOME/experiments/<name>-s<seed>`.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table

from statevla.checkpoints.measured import read_tree
from statevla.commands.entry import run_command
from statevla.commands.stages import Stage, run_stages, set_aside, training_stage
from statevla.config import PHASES, PhaseName, home_dir, load_config
from statevla.errors import UserError
from statevla.machine.yaml_text import read_yaml
from statevla.types import ReachKind

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("experiments.yaml")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Data(_Entry):
    """A data set, as `statevla collect` makes it of a world, or `statevla data draw` of human demonstrations; or one
    from elsewhere, which has to lie there already."""

    suite: str | None = None
    """A world, such as `libero_object` or `so101`."""
    human: str | None = None
    """Human demonstrations that robosuite brings, such as `handover`."""
    elsewhere: str | None = None
    """Where people get it."""
    tasks: str = "all"
    demos: int = 50
    wide: bool = False
    play: bool = False
    exchange: bool = False
    recolor: bool = False
    rearrange: bool = False
    reaches: ReachKind | None = None
    reach_tasks: str | None = None
    frame_stride: int = 1
    dagger: str | None = None
    """The experiment whose policy, of seed 0, is corrected (`statevla collect --dagger`)."""
    seed: int = 0


class Experiment(_Entry):
    """A row of docs/experiments.md."""

    about: str
    """The question, in a sentence."""
    data: str
    """Name of the demonstrations, or of a folder of them: `all` takes `all/first` and `all/second`."""
    play: str | None = None
    """Name of a data set of play for phase 1."""
    config: str = "conf/compact.yaml"
    """Preset."""
    phases: list[PhaseName] = ["1", "2"]
    """Trained in this order."""
    phase1_of: str | None = None
    """The experiment whose phase 1, with the same seed, phase 2 builds on; for what concerns phase 2 alone."""
    init_of: str | None = None
    """The experiment whose run of the first phase, with the same seed, goes on here with this row's data and steps."""
    overrides: dict[str, Any] = {}
    """Dotted keys of the configuration."""
    rollouts: dict[str, dict[str, Any]] = {}
    """Name → flags of `statevla rollout`, beside the checkpoint and the folder."""
    headline: dict[str, list[str]] = {}
    """Key of summary.json → the rollouts whose mean success rate it is, with seed 0."""

    @property
    def base(self) -> str | None:
        """The experiment whose `base_phase` this one needs."""
        return self.phase1_of or self.init_of

    @property
    def base_phase(self) -> PhaseName:
        return "1" if self.phase1_of is not None else self.phases[0]

    @property
    def trained(self) -> list[PhaseName]:
        """Its own phases: all but a phase 1 that another experiment trains."""
        return [phase for phase in self.phases if self.phase1_of is None or phase != "1"]


class Experiments(_Entry):
    """The whole file; `shared` only holds what its YAML anchors name."""

    shared: dict[str, Any] = Field(default={}, exclude=True)
    data: dict[str, Data]
    experiments: dict[str, Experiment]


@dataclass(frozen=True)
class Args:
    """Run experiments of benchmarks/experiments.yaml and record them."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names, in the order to run."""
    seed: int = 0
    """Of training and of the simulated episodes; the data sets keep theirs."""
    file: Path = LIST
    """Another list of experiments."""
    workers: int = 2
    """Simulator processes."""
    time_limit_s: float = float("inf")
    """Begin no further experiment after this time."""
    list: bool = False
    """Print the experiments and end."""


def main(args: Args) -> int:
    known, console = read_experiments(args.file), Console()
    if args.list or not args.names:
        table = Table("name", "data", "question")
        for name, experiment in known.experiments.items():
            table.add_row(name, experiment.data, experiment.about)
        console.print(table)
        return 0
    for name in args.names:
        if name not in known.experiments:
            raise UserError(f"experiment '{name}': {args.file.name} has {', '.join(known.experiments)}")
    started = time.monotonic()
    for name in args.names:
        if time.monotonic() - started > args.time_limit_s:
            console.print(f"not begun within {args.time_limit_s:.0f} s: {name}")
            continue
        run(name, known, args, console)
    return 0


def read_experiments(file: Path) -> Experiments:
    """The list, checked.

    Raises:
        UserError: it is unreadable, or an entry is wrong or names unknown data.
    """
    try:
        known = Experiments.model_validate(read_yaml(file, str(file)))
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{file}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    for name, experiment in known.experiments.items():
        for wanted in filter(None, (experiment.data, experiment.play)):
            if not collections(known, wanted):
                raise UserError(f"{file}: experiments.{name}: data '{wanted}' is none of {', '.join(known.data)}")
        for part, data in collections(known, experiment.data).items():
            before = None if data.dagger is None else known.experiments.get(data.dagger)
            if data.dagger is not None and (before is None or part in collections(known, before.data)):
                raise UserError(
                    f"{file}: data.{part}.dagger: '{data.dagger}' is no experiment that is trained without this data"
                )
        for key, names in experiment.headline.items():
            if not names or not set(names) <= experiment.rollouts.keys():
                known_ones, got = ", ".join(experiment.rollouts), ", ".join(names) or "none"
                raise UserError(f"{file}: experiments.{name}.headline.{key}: expected some of {known_ones}, got {got}")
        given = [key for key in ("phase1_of", "init_of") if getattr(experiment, key) is not None]
        if len(given) > 1:
            raise UserError(f"{file}: experiments.{name}: expected one of {', '.join(given)}; leave the other out")
        source, phase = experiment.base, experiment.base_phase
        before = known.experiments.get(source or "")
        if source is not None and (source == name or before is None or phase not in before.trained):
            key = f"experiments.{name}.{given[0]}"
            raise UserError(f"{file}: {key}: '{source}' is no experiment that trains phase {phase}")
    return known


def collections(known: Experiments, name: str) -> dict[str, Data]:
    """The data sets that are called so or lie in the folder that is called so."""
    return {key: data for key, data in known.data.items() if key == name or key.startswith(f"{name}/")}


def run(name: str, known: Experiments, args: Args, console: Console) -> None:
    """All stages of one experiment, then its record."""
    experiment = known.experiments[name]
    train_base(name, known, args, console)
    train_corrected(name, known, args, console)
    for part, data in collections(known, experiment.data).items():
        if data.elsewhere is not None and not data_folder(part).is_dir():
            raise UserError(f"data {data_folder(part)}: not there; get it from {data.elsewhere} and put it there")
    folder = experiment_folder(name, args.seed)
    console.rule(folder.name)
    run_stages(list(stages(known, name, args, folder)), folder, console)
    if subprocess.run(record_command(known, name, folder, args.seed), check=False).returncode:
        raise UserError(f"experiment '{name}': ran, but could not be recorded; see above")


def train_base(name: str, known: Experiments, args: Args, console: Console) -> None:
    """Train the phase that an experiment builds on, and what that builds on before it."""
    experiment = known.experiments[name]
    if (source := experiment.base) is not None:
        train_base(source, known, args, console)
        folder = experiment_folder(source, args.seed)
        console.rule(f"{folder.name}, phase {experiment.base_phase}")
        run_stages(training_stages(known, source, args, experiment.base_phase), folder, console)


def train_corrected(name: str, known: Experiments, args: Args, console: Console) -> None:
    """Train the policies whose corrections an experiment's data hold."""
    for source in corrected(known, name):
        train_base(source, known, replace(args, seed=0), console)
        folder = experiment_folder(source, 0)
        console.rule(f"{folder.name}, training")
        run_stages(training_stages(known, source, replace(args, seed=0)), folder, console)


def corrected(known: Experiments, name: str) -> list[str]:
    """The experiments whose policies' corrections an experiment's data hold, those before them first."""
    parts = collections(known, known.experiments[name].data).values()
    own = [data.dagger for data in parts if data.dagger is not None]
    return list(dict.fromkeys(each for source in own for each in [*corrected(known, source), source]))


def record_command(known: Experiments, name: str, folder: Path, seed: int) -> list[str]:
    """What writes the record of an experiment that has run."""
    experiment = known.experiments[name]
    command = ["python", f"benchmarks/{Path(__file__).name}", name, "--seed", str(seed)]
    record = [sys.executable, str(ROOT / "benchmarks" / "record_experiment.py"), "--name", folder.name]
    record += ["--checkpoint", str(run_folder(folder, experiment)), "--note", experiment.about]
    record += ["--command", shlex.join(command), "--training-s", f"{training_seconds(known, name, seed):.0f}"]
    if experiment.rollouts:
        record += ["--rollout", *(str(folder / "rollouts" / rollout) for rollout in experiment.rollouts)]
    if seed == 0 and experiment.headline:
        record += ["--headline", *(f"{key}={','.join(names)}" for key, names in experiment.headline.items())]
    return record


def training_seconds(known: Experiments, name: str, seed: int, last: PhaseName | None = None) -> float:
    """What an experiment's phases up to `last` took, and those before them of the experiments that it builds on."""
    experiment, folder = known.experiments[name], experiment_folder(name, seed)
    own = experiment.trained[: None if last is None else experiment.trained.index(last) + 1]
    seconds = sum(read_tree(folder / "stages" / f"phase_{phase}.json").get("seconds", 0.0) for phase in own)
    if experiment.base is None:
        return seconds
    return seconds + training_seconds(known, experiment.base, seed, experiment.base_phase)


def experiment_folder(name: str, seed: int) -> Path:
    return home_dir() / "experiments" / f"{name}-s{seed}"


def training_stages(known: Experiments, name: str, args: Args, phase: PhaseName | None = None) -> list[Stage]:
    """An experiment's stages up to a phase, by default its last one."""
    found = list(stages(known, name, args, experiment_folder(name, args.seed)))
    last = phase or known.experiments[name].phases[-1]
    return found[: [stage.name for stage in found].index(f"phase_{last}") + 1]


def run_folder(folder: Path, experiment: Experiment) -> Path:
    """Where the checkpoint to evaluate lies."""
    return folder / "checkpoints" / PHASES[experiment.phases[-1]].folder


def stages(known: Experiments, name: str, args: Args, folder: Path) -> Iterator[Stage]:
    """The commands of an experiment, in order."""
    experiment = known.experiments[name]
    config = load_config(ROOT / experiment.config, [f"{key}={value}" for key, value in experiment.overrides.items()])
    for wanted in filter(None, (experiment.data, experiment.play)):
        for part, data in collections(known, wanted).items():
            yield collection(known, data, part, config.model.image_size, args.workers)
    reads = tuple(data_folder(wanted) for wanted in (experiment.data, experiment.play) if wanted)
    places = ["--data.path", str(data_folder(experiment.data))]
    if experiment.play:
        places += ["--data.sources", f"[{{path: '{data_folder(experiment.play)}', labelled: false}}]"]
    checkpoints = folder / "checkpoints"
    common = ["--config", experiment.config, "--output_dir", str(checkpoints), "--seed", str(args.seed), *places]
    for key, value in experiment.overrides.items():
        # Text is given as it is, everything else as YAML.
        dumped = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
        common += [f"--{key}", value if isinstance(value, str) else dumped]
    theirs, of_base, first = None, "", None
    if experiment.base is not None:
        before = training_stages(known, experiment.base, args, experiment.base_phase)[-1]
        of_base = f"{before.arguments} {before.settings}"
        theirs = experiment_folder(experiment.base, args.seed) / "checkpoints"
        if experiment.init_of is not None:
            first = str(theirs / PHASES[experiment.base_phase].folder / "checkpoint_best.pt")
    for phase in experiment.trained:
        if phase == experiment.trained[0]:
            yield training_stage(phase, config, common, checkpoints, theirs, first, of_base, reads)
        else:
            yield training_stage(phase, config, common, checkpoints, reads=reads)
    checkpoint = ["--checkpoint", str(run_folder(folder, experiment) / "checkpoint_best.pt")]
    yield Stage("offline", "eval", checkpoint)
    for rollout, flags in experiment.rollouts.items():
        more = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        more += ["--seed", str(args.seed)]
        out = folder / "rollouts" / rollout
        yield Stage(
            f"rollout_{rollout}",
            "rollout",
            [*checkpoint, "--out", str(out), *more],
            fresh=lambda out=out: set_aside(out),  # type: ignore[misc]
            resources=("--num_workers", str(args.workers)),
        )


def data_folder(name: str) -> Path:
    return home_dir() / "datasets" / name


def collection(known: Experiments, data: Data, name: str, image_size: int, workers: int) -> Stage:
    """The stage that collects a data set, or looks at one from elsewhere."""
    folder, label = data_folder(name), f"collect_{name.replace('/', '_')}"
    if data.human is not None:
        file = folder / f"{data.human}_demo.hdf5"
        words = ["draw", data.human, "--out", str(file), "--image-size", str(image_size)]
        return Stage(label, "data", words, makes=file)
    if data.suite is None:
        return Stage(label, "data", ["inspect", str(folder)])
    words = ["--out", str(folder), "--world", data.suite, "--tasks", data.tasks, "--demos", str(data.demos)]
    words += ["--image-size", str(image_size)]
    words += [*(["--wide"] if data.wide else []), *(["--play"] if data.play else [])]
    words += [*(["--exchange"] if data.exchange else []), *(["--recolor"] if data.recolor else [])]
    words += ["--rearrange"] if data.rearrange else []
    words += ["--reaches", data.reaches] if data.reaches else []
    words += ["--reach-tasks", data.reach_tasks] if data.reach_tasks else []
    words += ["--frame-stride", str(data.frame_stride)] if data.frame_stride > 1 else []
    if data.dagger is not None:
        words += ["--dagger", str(run_folder(experiment_folder(data.dagger, 0), known.experiments[data.dagger]))]
    words += ["--seed", str(data.seed)] if data.seed else []
    return Stage(label, "collect", words, resources=("--workers", str(workers)), makes=folder)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Args)))
