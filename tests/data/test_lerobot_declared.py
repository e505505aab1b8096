"""What a LeRobotDataset declares, and what is derived, asked for or refused where it declares nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lerobot_files import edit_as_lerobot, rewrite_features, rewrite_info, some_episodes, undeclare
from statevla.data import EpisodeArrays, EpisodeReader, open_reader
from statevla.data import write_lerobot as writer_module
from statevla.data.lerobot_checksums import CHECKSUMS_PATH
from statevla.errors import UserError
from statevla.robots import LIBERO, LIBERO_HAND, Camera, ImageOrientation
from statevla.transforms import to_upright


def upright(reader: EpisodeReader, arrays: EpisodeArrays, camera: str) -> np.ndarray:
    return to_upright(arrays.images[camera], reader.robot.camera(camera).orientation).astype(int)


def test_known_robots_read_what_was_written(own: Path) -> None:
    """By the names of their fields and cameras, which the data set's own declaration knows where to find."""
    reader = open_reader(own, robot="libero_hand")
    assert (reader.robot.name, reader.robot.state_dim) == ("libero_hand", 8)
    assert {camera.orientation for camera in reader.robot.cameras} == {ImageOrientation.MIRRORED}
    state = reader.robot.policy_state(reader.read(1).robot_states, "test")
    rows = pq.read_table(own / "data/chunk-000/file-000.parquet").to_pydict()
    chosen = np.array(rows["episode_index"]) == 1
    np.testing.assert_array_equal(state, np.array(rows["observation.state"], np.float32)[chosen])
    # As on the hub: nothing is declared, the frequency is said to be 10 Hz.
    undeclare(own)
    rewrite_info(own, fps=30)
    with pytest.raises(UserError, match=r"'libero_hub' declares 20 Hz, fps is 30; declare 'control_freq_hz: 30'"):
        open_reader(own, robot="libero_hub")


def test_undeclared_it_is_derived_and_orientation_is_asked(own: Path) -> None:
    """LIBERO's data sets are around upright and mirrored: neither is a guess to make without a word."""
    undeclare(own)
    asked = r"how the frames of observation.images.image, observation.images.image2 are stored.*set data.orientation"
    for robot in ("auto", "libero_hand"):
        with pytest.raises(UserError, match=asked):
            open_reader(own, robot=robot)
    turned = open_reader(own, orientation="mirrored")
    assert turned.cameras == ("image", "image2")
    assert {camera.orientation for camera in turned.robot.cameras} == {ImageOrientation.MIRRORED}
    assert "frames are taken as upright" not in turned.notes
    rewrite_info(own, statevla={"image_orientation": "mirrored"})
    assert open_reader(own).robot.cameras == turned.robot.cameras
    rewrite_info(own, statevla={"image_orientation": "tilted"})
    with pytest.raises(UserError, match="image_orientation 'tilted', expected one of upright"):
        open_reader(own)


def test_what_lerobot_keeps_of_an_edited_data_set_declares_it(own: Path) -> None:
    """`lerobot-edit-dataset` keeps features and no key of ours at the top."""
    with open_reader(own) as reader:
        robot, frames = reader.robot, reader.read(1).images
    edit_as_lerobot(own)
    assert "statevla" not in json.loads((own / "meta/info.json").read_text())
    with open_reader(own) as reader:
        assert (reader.robot, reader.notes) == (robot, [])
        for camera, stored in reader.read(1).images.items():
            np.testing.assert_array_equal(stored, frames[camera])

    def only_pictures(key: str, feature: dict) -> None:
        if key == "action":
            del feature["info"]

    rewrite_features(own, only_pictures)  # nor does anything rest on the actions' feature alone
    derived = open_reader(own).robot
    assert {camera.orientation for camera in derived.cameras} == {ImageOrientation.MIRRORED}
    assert {c.orientation for c in open_reader(own, robot="libero_hub").robot.cameras} == {ImageOrientation.MIRRORED}


def test_other_cameras_of_liberos_robot_are_stored_upright(tmp_path: Path) -> None:
    cameras = tuple(Camera(name=name) for name in ("agentview", "front", "wrist"))
    robot = LIBERO.model_copy(update={"cameras": cameras})
    folder = writer_module.write_lerobot(tmp_path / "own", robot, some_episodes(robot, "stack", gripper=6))
    for edited in (False, True):
        if edited:
            edit_as_lerobot(folder)
            (folder / CHECKSUMS_PATH).unlink()
        with open_reader(folder) as reader:
            stored = {camera.name: camera.orientation.value for camera in reader.robot.cameras}
            assert stored == {"agentview": "mirrored", "front": "upright", "wrist": "upright"}
            for camera in reader.cameras:
                seen = upright(reader, reader.read(0), camera)
                assert seen[:, :12].mean() > 150 > 90 > seen[:, 20:].mean()


def test_two_declarations_must_agree(own: Path) -> None:
    info = json.loads((own / "meta/info.json").read_text())
    tree = info["statevla"]["robot"]
    rewrite_info(own, statevla={"robot": tree | {"name": "another"}})
    with pytest.raises(UserError, match=r"statevla\.robot and features\.action\.info\.statevla\.robot differ"):
        open_reader(own)
    rewrite_info(own, **info)

    def turn(key: str, feature: dict) -> None:
        if key == "observation.images.image2":
            feature["info"]["statevla"]["image_orientation"] = "upright"

    rewrite_features(own, turn)
    with pytest.raises(UserError, match=r"camera 'eye_in_hand' mirrored, image_orientation of .* says upright"):
        open_reader(own)


def test_a_robot_by_keys_has_the_orientation_that_the_data_set_says(own: Path, tmp_path: Path) -> None:
    tree = LIBERO_HAND.to_dict() | {"cameras": [{"name": "scene", "key": "observation.images.image"}]}
    (tmp_path / "own.yaml").write_text(json.dumps(tree))
    assert open_reader(own, robot=str(tmp_path / "own.yaml")).robot.camera("scene").orientation.value == "mirrored"
    tree["cameras"][0]["orientation"] = "upright"
    (tmp_path / "own.yaml").write_text(json.dumps(tree))
    assert open_reader(own, robot=str(tmp_path / "own.yaml")).robot.camera("scene").orientation.value == "upright"


def test_a_removed_camera_is_said(own: Path) -> None:
    info = json.loads((own / "meta/info.json").read_text())
    del info["features"]["observation.images.image2"]
    rewrite_info(own, features=info["features"])
    reader = open_reader(own)
    assert (reader.cameras, reader.notes) == (("agentview",), ["cameras that it declares and has no more: eye_in_hand"])


def test_commands_of_other_values_are_refused_when_opened(own: Path) -> None:
    """LeRobot's trainer reads no episode through ours: its statistics tell that a gripper has 0 and 1."""
    file = own / "meta/stats.json"
    stats = json.loads(file.read_text())
    assert (stats["action"]["min"][6], stats["action"]["max"][6]) == (-1, 1)
    stats["action"]["min"][6] = 0
    file.write_text(json.dumps(stats))
    expected = (
        r"stats.json: 'action': action group 'gripper'.*values -1 and 1, found 0, 1; .*with these two \(values: \[0"
    )
    with pytest.raises(UserError, match=expected):
        open_reader(own)
