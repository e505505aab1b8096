"""Files are whole or not there, and a full disk is one line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from statevla.errors import UserError
from statevla.machine.storage import read_tensors, replacing, write_json, write_tensors, write_text


def test_a_file_is_replaced_and_its_folders_are_made(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "tree.json"
    write_json(file, {"x": 1})
    write_json(file, {"x": 2})
    assert json.loads(file.read_text()) == {"x": 2}
    assert list(file.parent.iterdir()) == [file]


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    write_text(file, "whole")

    def fail_halfway() -> None:
        with replacing(file) as part:
            part.write_text("ha")
            raise LookupError

    with pytest.raises(LookupError):
        fail_halfway()
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, math.nan)
    assert file.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [file]


def test_tensors_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "new" / "weights.safetensors"
    for value in (1.0, 2.0):
        write_tensors(file, {"w": torch.full((3,), value)})
    assert torch.equal(read_tensors(file)["w"], torch.full((3,), 2.0))
    assert list(file.parent.iterdir()) == [file]


def test_no_folder_can_be_made_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"x\.txt: cannot be written \(File exists\); choose another --out$"):
        write_text(tmp_path / "file" / "x.txt", "", "choose another --out")


@pytest.mark.parametrize("what", ["write_text(file, 'x' * 99_999)", "write_tensors(file, {'w': torch.zeros(99_999)})"])
def test_a_full_disk_is_named_and_keeps_what_was_there(tmp_path: Path, what: str) -> None:
    file = tmp_path / "file"
    file.write_text("whole")
    code = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from statevla.machine.storage import write_tensors, write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = Path(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n" + what
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1].startswith("statevla.errors.UserError: "), done.stderr
    assert "the disk is full" in done.stderr
    assert file.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [file]


def test_pytorch_is_not_needed() -> None:
    code = "import sys, statevla.machine.storage; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
