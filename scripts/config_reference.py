"""Write docs/configuration.md from the configuration's own definitions; `--check` only says whether it is current."""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from statevla.config import Config

TARGET = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """# Configuration reference

Generated from `statevla/config/` by `scripts/config_reference.py`. Every key can stand in the YAML file or on the
command line (`--training.phase1.batch_size 8`). Unknown keys are errors that name the nearest key. Defaults are the
spec's.
"""


def main() -> int:
    text = HEAD + "\n".join(_section("", Config)) + "\n"
    if "--check" in sys.argv[1:]:
        if TARGET.read_text() != text:
            print(f"{TARGET.name} is out of date; run python scripts/config_reference.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text)
    return 0


def _section(path: str, section: type[BaseModel]) -> list[str]:
    lines = [f"\n## `{path}`\n" if path else "\n## Top level\n"]
    if section.__doc__ and path:
        lines.append(" ".join(section.__doc__.split()) + "\n")
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    nested: list[str] = []
    for name, field in section.model_fields.items():
        key = f"{path}.{name}" if path else name
        children = _models(field.annotation)
        if len(children) == 1:
            nested += _section(key, children[0])
            continue
        for child in children:
            nested += _section(f"{key} ({child.model_fields['kind'].default})", child)
        if not children:
            lines.append(f"| `{name}` | {_type(field)} | `{_default(field)}` | {_meaning(field)} |")
    if len(lines) == (3 if not section.__doc__ or not path else 4):
        lines = lines[:-2]
    return lines + nested


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [model for argument in typing.get_args(annotation) for model in _models(argument)]
    return []


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{symbol} {getattr(item, name)}"
        for item in field.metadata
        for name, symbol in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(item, name, None) is not None
    ]
    return " ".join([_name(field.annotation), *bounds])


def _name(annotation: object) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join(_name(argument) for argument in arguments)
    if origin is typing.Annotated:
        return _name(arguments[0])
    if origin in (list, tuple):
        return f"{origin.__name__} of {_name(arguments[0])}"
    if annotation is type(None):
        return "`null`"
    if hasattr(annotation, "__members__"):
        return " \\| ".join(f"`{member.value}`" for member in annotation)  # type: ignore[attr-defined]
    return getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    value = field.default
    value = getattr(value, "value", value)
    return "null" if value is None else str(value)


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
