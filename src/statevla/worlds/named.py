"""Functions that a user names as `module:function`, and whether they take the options given."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from statevla.errors import UserError


def load_named(text: str, source: str) -> Any:
    """The object `module:attribute`; modules in the current folder count too.

    Raises:
        UserError: there is no such module or attribute; `source` begins the message.
    """
    module_name, _, attribute = text.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{source} {text}: expected module:name, such as my_world:make")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise UserError(
                f"{source} {text}: there is no module '{error.name}' here, in PYTHONPATH or installed; run it from "
                "the module's folder, or add that to PYTHONPATH"
            ) from None
        raise UserError(f"{source} {text}: needs the package '{error.name}', which is not installed") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
            near = difflib.get_close_matches(part, names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{source} {text}: module '{module_name}' has no '{attribute}'{hint}")
        found = getattr(found, part)
    return found


def check_options(function: Callable[..., Any], options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """`options`, if `function` takes them.

    Raises:
        UserError: it does not, or it needs more.
    """
    taken = parameters(function)
    kinds = {each.kind for each in taken.values()}
    for option in options:
        if option not in taken and inspect.Parameter.VAR_KEYWORD not in kinds:
            known = ", ".join(taken) or "none"
            raise UserError(f"world '{name}': takes no option '{option}'; its options are: {known}")
    for each in taken.values():
        must = each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if must and each.name not in options:
            raise UserError(f"world '{name}': needs the option '{each.name}'; give it a default")
    return options


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Of a function; none of one that does not say."""
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return {}
