"""`statevla train`, `train.py`: a phase of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from statevla.config import PhaseName, load_config, takes_text
from statevla.errors import UserError

EPILOGUE = (
    "Any key of the configuration can be given as well: --training.phase1.batch_size 8, --device=cpu or "
    "model.cameras=[agentview]. Text is taken as it stands; numbers, lists and sections are YAML."
)


@dataclass(frozen=True)
class TrainArgs:
    config: str = "config"
    """A preset's name (config, compact, full, demo) or a YAML file."""
    phase: PhaseName = "1"
    """1: world model (temporal JEPA); 2: policy on the frozen encoder (flow matching); bc: both, without phase 1."""
    phase1_checkpoint: str | None = None
    """What phase 2 builds on: a checkpoint folder, a run folder, or .../checkpoint_best.pt; not needed to resume."""
    init_checkpoint: str | None = None
    """Fine-tuning: begin with this checkpoint's weights instead of random ones, on whatever data; phase 2 goes on from
    its policy, on its frozen encoder. Takes what --phase1_checkpoint takes, libero_object_compact for one; not needed
    to resume."""
    resume: bool = False
    """Continue the run in the output folder exactly where its last checkpoint was written."""
    overwrite: bool = False
    """Start anew where the output folder holds a run already."""
    output_dir: str | None = None
    """Folder of the runs; overrides `output_dir` of the configuration."""


def train(arguments: list[str]) -> None:
    """Train a phase: `TrainArgs`, then any key of the configuration."""
    import tyro

    args, rest = tyro.cli(
        TrainArgs, prog="train.py", args=arguments, return_unknown_args=True, description=f"Train StateVLA. {EPILOGUE}"
    )
    overrides = parse_overrides(rest)
    if args.output_dir is not None:
        overrides.append(f"output_dir={args.output_dir}")
    config = load_config(args.config, overrides)
    # PyTorch is loaded only here: a typo in the configuration is answered at once.
    from statevla.training.run import train as run

    run(config, args.phase, args.phase1_checkpoint, args.resume, args.overwrite, args.init_checkpoint)


def parse_overrides(rest: Sequence[str]) -> list[str]:
    """`--a.b 8`, `--a.b=8`, `a.b=8` and a bare `--a.b` (true) → `a.b=8`, as `load_config` takes it.

    Raises:
        UserError: a word belongs to no key, or a key that takes text has none.
    """
    overrides = []
    words = list(rest)
    while words:
        word = words.pop(0)
        is_flag = word.startswith("--")
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not is_flag:
                raise UserError(f"argument '{word}': expected --key value or key=value; see train.py --help")
            is_bare = not words or words[0].startswith("--")
            if is_bare and takes_text(key.replace("-", "_")):
                raise UserError(f"argument '{word}': expected a value after it, as in {word} VALUE")
            value = "true" if is_bare else words.pop(0)
        overrides.append(f"{key.replace('-', '_')}={value}")
    return overrides
