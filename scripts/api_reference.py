"""Write docs/api.md from the docstrings of the public modules; `--check` only says whether it is current.

The sources are parsed, not imported: it takes no simulator and no second.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "api.md"
MODULES = [
    "acting.policy", "acting.session", "acting.alarm", "types", "robots.declaration", "robots.spec",
    "robots.registry", "model.statevla_model", "model.language", "transforms", "data.episodes", "data.formats",
    "data.build_cache", "training.run", "checkpoints.checkpoint", "checkpoints.share", "diagnostics.offline",
    "worlds.protocol", "worlds.registry", "worlds.gym", "worlds.experts", "worlds.libero.env",
    "worlds.libero.disturbances", "errors",
]  # fmt: skip
CLIENT = ["client"]  # of statevla_client
MAX_LINE = 90
HEAD = """# Python interface

Generated from the docstrings by `scripts/api_reference.py`: public classes and functions of the modules that programs
are likely to import. Shapes use the letters of `statevla.types`.
"""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> int:
    parts = [_module(ROOT / "src" / "statevla", name) for name in MODULES]
    parts += [_module(ROOT / "packages" / "statevla_client" / "src" / "statevla_client", name) for name in CLIENT]
    text = HEAD + "".join("\n" + "\n".join(part) + "\n" for part in parts)
    if "--check" in sys.argv[1:]:
        if TARGET.read_text(encoding="utf-8") != text:
            print(f"{TARGET.name} is out of date; run python scripts/api_reference.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


def _module(package: Path, name: str) -> Iterator[str]:
    path = package / (name.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield f"## `{package.name}.{name}`"
    yield ""
    yield _first_paragraph(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and _is_public(node):
            yield from _class(node)
        elif isinstance(node, Function) and _is_public(node):
            yield from _entry(_signature(node.name, node), node, "###")


def _class(node: ast.ClassDef) -> Iterator[str]:
    own = {child.name: child for child in node.body if isinstance(child, Function)}
    title = f"class {node.name}"
    yield from _entry(_signature(title, own["__init__"]) if "__init__" in own else title, node, "###")
    rows = [
        (f"{child.name}({_arguments(child)})" if not _is_property(child) else child.name, _first_paragraph(child))
        for child in own.values()
        if _is_public(child) and not _is_overload(child)
    ]
    if rows:
        yield "\n**Methods and properties**\n"
        yield "\n".join(f"- `{name}`: {text}" for name, text in rows)


def _entry(title: str, node: ast.ClassDef | Function, level: str) -> Iterator[str]:
    yield f"\n{level} `{node.name}`\n"
    yield f"```text\n{title}\n```\n"
    yield from _docstring(node)


def _docstring(node: ast.AST) -> Iterator[str]:
    """The docstring with its Google-style sections as lists."""
    in_section = False
    for line in (ast.get_docstring(node) or "").splitlines():
        if line.rstrip(":") in ("Args", "Attributes", "Returns", "Raises") and line.endswith(":"):
            yield f"\n**{line.rstrip(':')}**\n"
            in_section = True
        elif in_section and line.startswith("    ") and not line.startswith("     "):
            name, colon, text = line.strip().partition(": ")
            yield f"- `{name}`: {text}" if colon and " " not in name.split(",")[0] else f"- {line.strip()}"
        elif in_section and line.strip():
            yield f"  {line.strip()}"
        else:
            yield line


def _first_paragraph(node: ast.AST) -> str:
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def _signature(name: str, node: Function) -> str:
    """On one line where it fits, else with a line per argument."""
    text = f"{name}({_arguments(node)})"
    if len(text) <= MAX_LINE:
        return text
    lines = "".join(f"    {part},\n" for part in _split(_arguments(node)))
    return f"{name}(\n{lines})"


def _split(arguments: str) -> Iterator[str]:
    """At the commas outside brackets."""
    depth, start = 0, 0
    for place, letter in enumerate(arguments):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            yield arguments[start:place].strip()
            start = place + 1
    yield arguments[start:].strip()


def _arguments(node: Function) -> str:
    text = ast.unparse(node.args)
    for first in ("self, ", "cls, "):
        text = text.removeprefix(first)
    return "" if text in ("self", "cls") else text


def _is_public(node: ast.ClassDef | Function) -> bool:
    return not node.name.startswith("_") and ast.get_docstring(node) is not None


def _has_decorator(node: Function, name: str) -> bool:
    return any(ast.unparse(decorator) == name for decorator in node.decorator_list)


def _is_property(node: Function) -> bool:
    return _has_decorator(node, "property")


def _is_overload(node: Function) -> bool:
    return _has_decorator(node, "overload")


if __name__ == "__main__":
    sys.exit(main())
