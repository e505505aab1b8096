"""YAML that people wrote: text stays text, and slips are one line that names the key and its line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from statevla.errors import UserError
from statevla.machine.yaml_text import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("no", "no"),
        ("y", "y"),
        ("2025-11-29", "2025-11-29"),
        ("1:30", "1:30"),
        ("robot#2", "robot#2"),
        ("'5'", "5"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("010", 10),
        ("-7", -7),
        ("0x1f", 31),
        ("0o17", 15),
        ("1e-3", 1e-3),
        ("1.5E+2", 150.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("{a: [1, off], b: {c: null}}", {"a": [1, "off"], "b": {"c": None}}),
        ("base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}", {"base": {"x": 1, "y": 2}, "more": {"x": 1, "y": 3}}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse_yaml(text, "test")
    assert found == value
    assert type(found) is type(value)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "test: line 3: key 'a' stands twice, first in line 1; keep one of them"),
        ("a:\n  b: {c: 1, c: 2}\n", "test: line 2: key 'c' stands twice, first in line 2; keep one of them"),
        ("- {x: 1}\n- x: 1\n  'x': 2\n", "test: line 3: key 'x' stands twice"),
        ("a: [", "test: not readable as YAML"),
        ("a: !!python/object:os.system {}", "test: not readable as YAML"),
        ("9" * 5000, "test: not readable as YAML"),
        ("\x00", "test: not readable as YAML"),
        ("[" * 100_000, "test: nested too deeply"),
        ("a: &a [*a]", "test: line 1: a value contains itself"),
        (BOMB, "more than 100,000 values, with those of its aliases"),
    ],
    ids=range(10),
)
def test_slips_are_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_yaml(text, "test")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    with pytest.raises(UserError, match=r"thing a\.yaml: not readable as YAML .*No such file"):
        read_yaml(file, "thing a.yaml")
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match=r"thing a\.yaml: not readable as YAML"):
        read_yaml(file, "thing a.yaml")
    file.write_text("# " + "x" * 1_000_000)
    with pytest.raises(UserError, match=r"thing a\.yaml: larger than 1000000 bytes"):
        read_yaml(file, "thing a.yaml")
    with pytest.raises(UserError, match="not readable as YAML"):
        read_yaml(tmp_path, "folder")
