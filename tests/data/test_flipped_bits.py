"""A bit that flips on the disk, in a cache or in a data set that we write, is noticed or changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from test_frame_cache import config_for

from libero_files import smooth_episode, write_official_file
from statevla.data import FrameCache, open_frame_cache, open_reader
from statevla.data.convert import convert
from statevla.data.hdf5_checks import CHECKSUM_ATTRIBUTE
from statevla.data.lerobot_checksums import CHECKSUMS_PATH
from statevla.data.libero import IS_SEEN_KEY, LiberoReader
from statevla.data.unfinished_cache import UnfinishedCache
from statevla.errors import UserError
from statevla.worlds.demo_file import EpisodeRecord, join_episodes, write_episode

FLIPS = 40


@contextmanager
def flipped(file: Path, position: int, bit: int) -> Iterator[None]:
    """One bit of a file is another one."""

    def flip() -> None:
        with open(file, "r+b") as handle:
            handle.seek(position)
            (byte,) = handle.read(1)
            handle.seek(position)
            handle.write(bytes([byte ^ (1 << bit)]))

    flip()
    try:
        yield
    finally:
        flip()


def count_refused(
    file: Path, read: Callable[[], Any], named: str, within: tuple[int, int] | None = None, flips: int = FLIPS
) -> int:
    """Flip bits of a file, one at a time; returns how many of them were told. The others must change nothing.

    Args:
        read: reads everything.
        named: what a message must name.
        within: where bits flip, by default anywhere.
    """
    good, rng = read(), np.random.default_rng(0)
    start, stop = within or (0, file.stat().st_size)
    refused = 0
    for _ in range(flips):
        position, bit = int(rng.integers(start, stop)), int(rng.integers(8))
        with flipped(file, position, bit):
            try:
                message, found = "", read()
            except UserError as error:
                message, found = str(error), good
        assert found == good, f"bit {bit} of byte {position} of {file}: other data, and no word of it"
        assert not message or (named in message and "\n" not in message)
        refused += bool(message)
    assert read() == good
    return refused


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks with two short episodes each."""
    folder, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    for name, color in (("red", (220, 40, 30)), ("blue", (20, 40, 230))):
        episodes = [smooth_episode(rng, 8, 32, color) for _ in range(2)]
        write_official_file(folder / f"push_{name}_demo.hdf5", f"push {name}", episodes)
    return folder


# Frame caches ---------------------------------------------------------------------------------------------------------


def read_cache(folder: Path) -> list[Any]:
    cache = FrameCache(folder)
    arrays = [cache.actions, cache.executed_actions, cache.robot_state, cache.object_poses, cache.is_seen]
    frames = cache.frames(torch.arange(cache.num_frames)).numpy()
    named = [cache.robot.to_dict(), cache.episodes, cache.instructions, cache.cameras, cache.frame_size]
    cache.close()
    return [*named, *(array.tobytes() for array in [*arrays, *cache.robot_states.values(), frames])]


@pytest.mark.parametrize("codec", ["raw", "qoi", "jpeg"])
def test_frames_of_a_cache(source: Path, tmp_path: Path, codec: str) -> None:
    if codec != "raw":
        pytest.importorskip("av")
        pytest.importorskip("PIL")
    folder = open_frame_cache(config_for(source, tmp_path, codec=codec), progress=False).folder
    file = folder / "frames.bin"
    assert count_refused(file, lambda: read_cache(folder), f"{file}: frame ") == FLIPS


def test_arrays_of_a_cache(source: Path, tmp_path: Path) -> None:
    folder = open_frame_cache(config_for(source, tmp_path), progress=False).folder
    files = sorted(folder.glob("*.npy"))
    assert {"actions.npy", "frame_crcs.npy", "object_poses.npy", "state_joint_positions.npy"} <= {f.name for f in files}
    for file in files:
        assert count_refused(file, lambda: read_cache(folder), f"{file}: damaged") == FLIPS


def test_index_of_a_cache(source: Path, tmp_path: Path) -> None:
    folder = open_frame_cache(config_for(source, tmp_path), progress=False).folder
    file = folder / "cache.json"
    text = file.read_text()
    assert count_refused(file, lambda: read_cache(folder), str(file)) > FLIPS // 2  # of the others, blanks flipped
    # A number that is another number is no damage to JSON.
    file.write_text(text.replace('"num_steps": 8', '"num_steps": 6', 1))
    with pytest.raises(UserError, match=r"cache.json: damaged, or edited .*; delete its folder to build it again"):
        FrameCache(folder)


def test_unfinished_cache(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the disk while the process is away."""
    config = config_for(source, tmp_path / "cache")

    def interrupt(self: UnfinishedCache, say: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(UnfinishedCache, "publish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_frame_cache(config, progress=False)
    monkeypatch.undo()
    kept = tmp_path / "kept"
    (tmp_path / "cache").rename(kept)

    def finish() -> list[Any]:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        shutil.copytree(kept, tmp_path / "cache")
        return read_cache(open_frame_cache(config, progress=False).folder)

    # A ZIP file says most things twice.
    assert count_refused(next(kept.rglob("000001.npz")), finish, "000001.npz: damaged") > FLIPS // 2
    assert count_refused(next(kept.rglob("frames.bin")), finish, "frames.bin: frame ") == FLIPS


# Data sets ------------------------------------------------------------------------------------------------------------


def read_data_set(path: Path) -> list[Any]:
    """Everything in it, wherever it is."""
    with open_reader(path) as reader:
        found: list[Any] = [reader.robot.to_dict(), reader.notes]
        for index, info in enumerate(reader.episodes):
            arrays = reader.read(index)
            found += [replace(info, file=Path()), arrays.object_names, arrays.success]
            for values in [*arrays.images.values(), *arrays.robot_states.values(), arrays.actions, arrays.object_poses]:
                found.append(None if values is None else values.tobytes())
    return found


@pytest.fixture(scope="module")
def lerobot(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    return convert(source, tmp_path_factory.mktemp("lerobot") / "data", "lerobot")


@pytest.fixture(scope="module")
def hdf5(lerobot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(lerobot, tmp_path_factory.mktemp("hdf5") / "data", "libero")


def test_hdf5(hdf5: Path) -> None:
    file = hdf5 / "push_red_demo.hdf5"
    with h5py.File(file) as handle:
        start = handle["data/demo_0/obs/agentview_rgb"].id.get_chunk_info(0).byte_offset
    assert count_refused(file, lambda: read_data_set(hdf5), str(file), (start, start + 8 * 32 * 32 * 3)) == FLIPS
    # Structure and text are at the front; there is room that nothing uses between them.
    assert count_refused(file, lambda: read_data_set(hdf5), str(file), (0, 8000), 5 * FLIPS) > FLIPS
    count_refused(file, lambda: read_data_set(hdf5), str(file))


def test_collected_demonstrations(hdf5: Path, tmp_path: Path) -> None:
    """Written by episode, some with few frames, and joined."""
    with h5py.File(hdf5 / "push_red_demo.hdf5") as handle:
        data, demo = handle["data"], handle["data/demo_0"]
        names = ["actions", "dones", *(f"obs/{key}" for key in demo["obs"])]
        whole = {name: demo[name][()] for name in names}
        attributes = dict(data.attrs)
    seen = np.arange(len(whole["actions"])) % 3 == 0
    few = {name: values[seen] if name.endswith("_rgb") else values for name, values in whole.items()}
    for number, datasets in enumerate([whole, {**few, f"obs/{IS_SEEN_KEY}": seen}]):
        record = EpisodeRecord(datasets, {"num_samples": len(seen)}, json.loads(demo_names(hdf5)))
        write_episode(tmp_path / f"{number}.hdf5", record)
    sources = [(tmp_path / f"{number}.hdf5", "episode") for number in range(2)]
    folder = tmp_path / "joined"
    position = (tmp_path / "0.hdf5").read_bytes().index(b'["block_1"]')
    with flipped(tmp_path / "0.hdf5", position + 2, 0), pytest.raises(UserError, match=r"0\.hdf5: its attributes"):
        join_episodes(folder / "push_red_demo.hdf5", attributes, sources, [])
    join_episodes(folder / "push_red_demo.hdf5", attributes, sources, [])
    file = folder / "push_red_demo.hdf5"
    with h5py.File(file) as handle:
        places = [handle[f"data/demo_{i}/obs/agentview_rgb"].id.get_chunk_info(0).byte_offset for i in range(2)]
    for start in places:
        assert count_refused(file, lambda: read_data_set(folder), str(file), (start, start + 32 * 32 * 3)) == FLIPS
    assert count_refused(file, lambda: read_data_set(folder), str(file), (0, 8000)) > FLIPS // 4


def demo_names(hdf5: Path) -> str:
    with h5py.File(hdf5 / "push_red_demo.hdf5") as handle:
        return str(handle["data/demo_0/obs/object_states"].attrs["names"])


def test_attributes_that_were_changed_on_purpose(hdf5: Path, tmp_path: Path) -> None:
    file = shutil.copy(hdf5 / "push_red_demo.hdf5", tmp_path / "own.hdf5")
    with h5py.File(file, "a") as handle:
        handle["data"].attrs["problem_info"] = json.dumps({"language_instruction": "push it"})
    with pytest.raises(UserError, match=f"its attributes are not .* delete its attribute '{CHECKSUM_ATTRIBUTE}'"):
        LiberoReader(file)
    with h5py.File(file, "a") as handle:
        del handle.attrs[CHECKSUM_ATTRIBUTE]
    assert LiberoReader(file).episodes[0].instruction == "push it"


@pytest.mark.parametrize(
    "name",
    [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/tasks.parquet",
        "meta/info.json",
        "videos/observation.images.image/chunk-000/file-000.mp4",
    ],
)
def test_lerobot(lerobot: Path, name: str) -> None:
    assert count_refused(lerobot / name, lambda: read_data_set(lerobot), str(lerobot / name)) == FLIPS


def test_the_list_of_checksums_itself(lerobot: Path) -> None:
    # A name or a number may be that of a file that is not read (statistics).
    assert count_refused(lerobot / CHECKSUMS_PATH, lambda: read_data_set(lerobot), str(lerobot)) > FLIPS // 2


def test_files_that_were_changed_on_purpose(lerobot: Path, tmp_path: Path) -> None:
    own = shutil.copytree(lerobot, tmp_path / "own")
    info = json.loads((own / "meta/info.json").read_text())
    (own / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r'info.json: damaged, or edited .* write "edited" in place of the SHA-256'):
        open_reader(own)
    listed = json.loads((own / CHECKSUMS_PATH).read_text())
    (own / CHECKSUMS_PATH).write_text(json.dumps(listed | {"meta/info.json": "edited"}))
    edited = read_data_set(own)
    (own / CHECKSUMS_PATH).unlink()
    assert edited == read_data_set(own) == read_data_set(lerobot)


def test_pages_of_parquet_that_others_wrote(lerobot: Path, tmp_path: Path) -> None:
    """Without our list, the format's own checksums, where there are any."""
    import pyarrow.parquet as pq

    own = shutil.copytree(lerobot, tmp_path / "own")
    (own / CHECKSUMS_PATH).unlink()
    file = own / "data/chunk-000/file-000.parquet"
    group = pq.read_metadata(file).row_group(0)
    (column,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith("action."))
    start = column.dictionary_page_offset or column.data_page_offset
    within = (start, start + column.total_compressed_size)
    assert count_refused(file, lambda: read_data_set(own), str(file), within) > 0.9 * FLIPS
