"""Corrections: from where the policy was, by the expert, the same again; refused beside what they are not."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("libero")

from statevla.commands.collect import CollectArgs
from statevla.commands.collect import collect as collect_command
from statevla.data import open_reader
from statevla.errors import UserError
from statevla.worlds.collect import collect
from statevla.worlds.demo_file import SETTINGS_ATTRIBUTE
from statevla.worlds.libero.corrections import correcting
from statevla.worlds.libero.episodes import CollectSettings
from statevla.worlds.libero.replay import replay_data

WIDE = CollectSettings("libero_object", seed=3, wide=True, image_size=32)


def test_what_corrections_do_not_go_with_is_refused(tmp_path: Path) -> None:
    shipped = "libero_object_compact"
    with pytest.raises(UserError, match="--dagger: corrects demonstrations"):
        collect_command(CollectArgs(dagger=shipped, play=True, out=tmp_path))
    with pytest.raises(UserError, match="--dagger: corrects demonstrations"):
        collect_command(CollectArgs(dagger=shipped, reaches="start", out=tmp_path))
    with pytest.raises(UserError, match="--dagger: lacks frames"):
        collect_command(CollectArgs(dagger=shipped, format="lerobot", out=tmp_path))
    with pytest.raises(UserError, match="--frame-stride: expected at least 1, and 1 with --reaches and --dagger"):
        collect_command(CollectArgs(dagger=shipped, frame_stride=4, out=tmp_path))
    with pytest.raises(UserError, match="--replan-steps: is for --dagger"):
        collect_command(CollectArgs(replan_steps=4, out=tmp_path))
    with pytest.raises(UserError, match="--dagger: is for LIBERO's scripted expert alone"):
        collect_command(CollectArgs(world="so101", dagger=shipped, out=tmp_path))
    with pytest.raises(UserError, match="nowhere"):
        collect_command(CollectArgs(dagger=str(tmp_path / "nowhere"), out=tmp_path))
    for steps in (0, 17):
        with pytest.raises(UserError, match=rf"execute_steps.*expected 1 to 16 .*got {steps}"):
            collect_command(CollectArgs(dagger=shipped, replan_steps=steps, out=tmp_path))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_correction_begins_where_the_policy_was_and_ends_at_the_goal(tmp_path: Path) -> None:
    settings = correcting(WIDE, "libero_object_compact", 8)
    (summary,) = collect(settings, [1], 2, tmp_path / "once", num_workers=1)
    assert summary.num_demos == 2
    assert summary.file.name.endswith("_correction.hdf5")
    with h5py.File(summary.file) as file:
        for demo in file["data"].values():
            states, seen = demo["states"][()], demo["obs/is_seen"][()].astype(bool)
            assert states[0, 0] > 0.5 + 8 / 20  # settled, and at least one look later: not a demonstration's start
            assert seen[[0, 4, 8, 12]].all()
            assert not seen.all()
            assert demo["obs/agentview_rgb"][0].any()
            assert demo["rewards"][-1] == 1
        assert "checkpoint" not in file["data"].attrs[SETTINGS_ATTRIBUTE]
    assert all(result.success and result.deviation == 0 for result in replay_data(tmp_path / "once"))
    # The same again, by two workers.
    collect(settings, [1], 2, tmp_path / "again", num_workers=2)
    with h5py.File(summary.file) as first, h5py.File(tmp_path / "again" / summary.file.name) as second:
        for name in ("states", "actions", "obs/agentview_rgb"):
            for demo in first["data"]:
                np.testing.assert_array_equal(first["data"][demo][name], second["data"][demo][name])
    # Another policy's corrections do not go into the same folder.
    with pytest.raises(UserError, match="another replan_steps"):
        collect(correcting(WIDE, "libero_object_compact", 4), [1], 2, tmp_path / "once")


@pytest.mark.slow
def test_strided_demonstrations_hold_every_fourth_frame(tmp_path: Path) -> None:
    settings = CollectSettings("libero_object", seed=1, image_size=32, frame_stride=4)
    (summary,) = collect(settings, [0], 1, tmp_path, num_workers=1)
    arrays = open_reader(tmp_path).read(0)
    assert arrays.is_seen is not None
    np.testing.assert_array_equal(np.flatnonzero(arrays.is_seen), np.arange(0, len(arrays.actions), 4))
    with h5py.File(summary.file) as file:
        assert len(file["data/demo_0/actions"]) == len(arrays.actions)
