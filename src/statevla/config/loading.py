"""From YAML and dotted overrides to a validated tree, with errors that name the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from statevla.config.paths import find_config
from statevla.config.tree import Config
from statevla.errors import UserError


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply dotted overrides, validate.

    Args:
        path: YAML file or a preset's name; keys that it leaves out keep their defaults.
        overrides: `a.b.c=value`, values in YAML syntax (`training.phase1.batch_size=8`).

    Raises:
        UserError: no such file, bad YAML, unknown key (the nearest one is named), or a value out of range.
    """
    file = find_config(path)
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"config {file}: not readable as YAML ({' '.join(str(error).split())})") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"config {file}: expected a mapping of sections at the top, got {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    return config_from_dict(tree, source=str(file))


def config_from_dict(tree: Mapping[str, Any], source: str) -> Config:
    """Validate a plain tree (from YAML or a checkpoint's `config.json`); `source` names it in errors."""
    try:
        return Config.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError(f"config {source}: {_first_problem(error)}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}': expected key=value, as in training.phase1.batch_size=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override '{override}': the value is not valid YAML; quote it") from None
    node = tree
    *parents, leaf = key.split(".")
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"override '{override}': '{parent}' is a value, not a section")
        node = child
    node[leaf] = value


def _first_problem(error: ValidationError) -> str:
    """One line for the first problem, with the dotted key, what was expected and found, and the nearest key."""
    problems = error.errors()
    # An unknown key says more than what follows from it.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in problem["loc"] if part not in ("patch", "conv")]
    key = ".".join(location)
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        near = _nearest_key(location)
        return f"unknown key '{key}'; did you mean '{near}'?{rest}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key + ': ' if key else ''}{message}{rest}"
    return f"{key}: {message[0].lower()}{message[1:]}, got {problem['input']!r}{rest}"


def _nearest_key(location: list[str]) -> str:
    """The closest sibling if one is close, else the closest key of the whole tree."""
    parent, leaf = ".".join(location[:-1]), location[-1]
    siblings = {key.rpartition(".")[2]: key for key in all_keys() if key.rpartition(".")[0] == parent}
    if close := difflib.get_close_matches(leaf, siblings, n=1):
        return siblings[close[0]]
    return difflib.get_close_matches(".".join(location), list(all_keys()), n=1, cutoff=0.0)[0]


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterable[str]:
    """Every dotted key of the tree, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for candidate in _sections_in(field.annotation):
            yield from all_keys(candidate, f"{prefix}{name}.")


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in getattr(annotation, "__args__", ()) for found in _sections_in(argument)]
