"""YAML that people wrote: what looks like text is text, and what is surely a mistake is an error that names the line.

PyYAML alone follows YAML 1.1, where `off` is false, `2025-11-29` a date, `1:30` the number 90, `010` the number 8, and
`1e-3` a text. Here the core schema of YAML 1.2 holds (https://yaml.org/spec/1.2.2/#103-core-schema).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from statevla.errors import UserError

_MAX_BYTES = 1_000_000
_MAX_VALUES = 100_000
"""With what aliases repeat: a few hundred bytes of them can stand for billions of values."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    base = {"0x": 16, "0o": 8}.get(text[:2], 10)
    return int(text, base)


_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)
for _kind, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read_yaml(file: Path, source: str) -> Any:
    """Read a YAML file.

    Args:
        file: at most a megabyte.
        source: what errors begin with, the file's name among it.

    Raises:
        UserError: there is none, it cannot be read, or as `parse_yaml` says.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise UserError(f"{source}: larger than {_MAX_BYTES} bytes, expected a short YAML file")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not readable as YAML ({' '.join(str(error).split())}); give a YAML file") from None
    return parse_yaml(text, source)


def parse_yaml(text: str, source: str) -> Any:
    """Plain values out of YAML text; `source` begins the errors.

    Raises:
        UserError: it is not YAML, a key stands twice in one mapping, it is nested too deeply, or aliases make it huge.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _count_values(root, source, {})
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except RecursionError:
        raise UserError(f"{source}: nested too deeply for a file that people write; flatten it") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: not readable as YAML ({reason}); mend or quote it") from None


def _count_values(node: yaml.Node, source: str, known: dict[int, int | None]) -> int:
    """Values below a node, those of aliases as often as they are repeated; checks the keys on the way."""
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise UserError(f"{source}: line {_line(node)}: a value contains itself; leave out the alias")
        return count
    known[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        _check_keys(node, source)
        children = [part for pair in node.value for part in pair]
    count = 1 + sum(_count_values(child, source, known) for child in children)
    if count > _MAX_VALUES:
        raise UserError(f"{source}: line {_line(node)}: more than {_MAX_VALUES:,} values, with those of its aliases")
    known[id(node)] = count
    return count


def _check_keys(mapping: yaml.MappingNode, source: str) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        name = (key.tag, key.value)
        if name in lines:
            raise UserError(
                f"{source}: line {_line(key)}: key '{key.value}' stands twice, first in line {lines[name]}; keep one "
                "of them"
            )
        lines[name] = _line(key)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
