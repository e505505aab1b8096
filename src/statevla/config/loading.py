"""From YAML and dotted overrides to a validated tree, with errors that name the key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from statevla.config.paths import find_config
from statevla.config.tree import Config
from statevla.errors import UserError
from statevla.machine.yaml_text import parse_yaml, read_yaml

_MAX_SHOWN = 80
"""Characters of a wrong value that an error repeats."""


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply dotted overrides, validate.

    Args:
        path: YAML file or a preset's name; keys that it leaves out are those of the file that its `base` names, where
            it has one, else the defaults.
        overrides: `a.b.c=value` (`training.phase1.batch_size=8`): text for keys that take text, YAML for the others.

    Raises:
        UserError: no such file, bad YAML, a key that stands twice, an unknown one (the nearest one is named), or a
            value out of range.
    """
    file = find_config(path)
    tree = _read_tree(file, ())
    for override in overrides if isinstance(tree, dict) else ():
        _apply_override(tree, override)
    return config_from_dict(tree, source=str(file))


def config_from_dict(tree: Any, source: str) -> Config:
    """Validate a plain tree (from YAML or a checkpoint's `config.json`); `source` names it in errors.

    Raises:
        UserError: it is no mapping, a key is unknown (the nearest one is named), or a value is out of range.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"config {source}: expected a mapping of sections at the top, got {_shown(tree)}")
    try:
        return Config.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError(f"config {source}: {_first_problem(error)}") from None


def _read_tree(file: Path, above: tuple[Path, ...]) -> Any:
    """A file's tree, on top of that of its `base`: a file beside it, or a preset; `above` are those that led here."""
    tree = read_yaml(file, f"config {file}")
    if tree is None:
        return {}
    if not isinstance(tree, dict) or "base" not in tree:
        return tree
    base = tree.pop("base")
    if not isinstance(base, str):
        raise UserError(f"config {file}: base: expected the name of a file or of a preset, got {_shown(base)}")
    beside = file.parent / base
    below = beside if beside.is_file() else find_config(base)
    if below.resolve() in (each.resolve() for each in (*above, file)):
        raise UserError(f"config {file}: base: '{base}' is built on this file itself; name another one")
    return _merged(_read_tree(below, (*above, file)), tree)


def _merged(below: Any, above: Any, section: str = "") -> Any:
    """`above` on top of `below`: sections key by key, everything else whole; so a section of another kind."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    kinds = _kinds_at(section)
    if kinds and "kind" in above and above["kind"] != below.get("kind", kinds[0]):
        return above
    keys = {name: f"{section}.{name}".removeprefix(".") for name in above}
    return below | {name: _merged(below.get(name), value, keys[name]) for name, value in above.items()}


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}': expected key=value, as in training.phase1.batch_size=8")
    value = text if takes_text(key) else parse_yaml(text, f"override '{override[:_MAX_SHOWN]}'")
    if value == "":
        raise UserError(f"override '{override}': the value is empty; give one, or leave the key out")
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


def takes_text(key: str) -> bool:
    """Whether a dotted key takes text and nothing else: `data.path`, `training.wandb`, not `data.demos_per_task`."""
    section, _, leaf = key.rpartition(".")
    found = [each.model_fields[leaf].annotation for each in _sections_at(section) if leaf in each.model_fields]
    return bool(found) and all(_is_text(annotation) for annotation in found)


def _sections_at(key: str) -> list[type[BaseModel]]:
    """What sections may stand at a dotted key; the stems of `model.stem`, for one."""
    sections: list[type[BaseModel]] = [Config]
    for part in filter(None, key.split(".")):
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        sections = [found for field in fields for found in _sections_in(field.annotation)]
    return sections


def _kinds_at(key: str) -> list[str]:
    """The kinds of section that may stand at a dotted key, the usual one first; none where one section may."""
    sections = _sections_at(key)
    return [section.model_fields["kind"].default for section in sections] if len(sections) > 1 else []


def _is_text(annotation: Any) -> bool:
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _is_text(arguments[0])
    if get_origin(annotation) is Literal:
        return all(isinstance(argument, str) for argument in arguments)
    if get_origin(annotation) in (Union, types.UnionType):
        return all(map(_is_text, arguments))
    return isinstance(annotation, type) and issubclass(annotation, str)


def _first_problem(error: ValidationError) -> str:
    """One line for the first problem, with the dotted key, what was expected and found, and the nearest key."""
    problems = error.errors()
    # An unknown key says more than what follows from it.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location: list[str] = []
    kind = None
    for part in map(str, problem["loc"]):
        if part in _kinds_at(".".join(location)):
            kind = part
        else:
            location.append(part)
    key = ".".join(location)
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        if key in all_keys():
            return f"unknown key '{key}' where kind is '{kind}'; leave it out, or give the kind that has it{rest}"
        near = _nearest_key(location)
        return f"unknown key '{key}'; did you mean '{near}'?{rest}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key + ': ' if key else ''}{message}{rest}"
    quote = "; quote it" if problem["type"] == "string_type" and not isinstance(problem["input"], dict | list) else ""
    return f"{key}: {message[0].lower()}{message[1:]}, got {_shown(problem['input'])}{quote}{rest}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


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
