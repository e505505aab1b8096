"""A frame cache that several processes build together, and that is killed on the way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from test_frame_cache import check_contents, config_for

from libero_files import smooth_episode, write_official_file
from statevla.config import Config
from statevla.data import open_frame_cache
from statevla.data.episodes import EpisodeArrays
from statevla.data.libero import LiberoReader

PROCESS_LIMIT_S = 500
"""Below pytest's own limit. Importing PyTorch alone takes minutes on a machine that is busy enough."""


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def _build_and_report(
    config: Config,
    environment: Mapping[str, str],
    both_are_encoding: multiprocessing.Barrier,
    read: multiprocessing.Queue,
) -> None:
    os.environ.update(environment)
    original, own = LiberoReader.read, []

    def noted(self: LiberoReader, index: int, *arguments: object) -> EpisodeArrays:
        own.append(index)
        if len(own) == 1:
            both_are_encoding.wait()
        return original(self, index, *arguments)

    LiberoReader.read = noted
    open_frame_cache(config, progress=False, num_processes=1)
    read.put((os.environ.get("RANK", "0"), own))


def build_by_two(config: Config, environments: tuple[Mapping[str, str], Mapping[str, str]]) -> list[list[int]]:
    """Let two processes build one cache at the same time; returns the episodes that each one encoded."""
    context = multiprocessing.get_context("spawn")
    barrier, read = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_build_and_report, args=(config, environment, barrier, read))
        for environment in environments
    ]
    for process in processes:
        process.start()
    encoded = [read.get(timeout=PROCESS_LIMIT_S) for _ in processes]
    for process in processes:
        process.join(PROCESS_LIMIT_S)
        assert process.exitcode == 0
    return [own for _, own in sorted(encoded)]


def test_two_builders_build_one_cache_together(libero_dir: Path, tmp_path: Path) -> None:
    alone = open_frame_cache(config_for(libero_dir, tmp_path / "alone"), progress=False, num_processes=1)
    config = config_for(libero_dir, tmp_path / "together")
    first, second = build_by_two(config, ({}, {}))
    assert first
    assert second
    assert sorted(first + second) == list(range(9))  # none twice
    cache = open_frame_cache(config, progress=False)
    check_contents(cache, libero_dir)
    assert contents(cache.folder) == contents(alone.folder)
    assert [path.name for path in cache.folder.parent.iterdir()] == [cache.folder.name]


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_ranks_share_a_build(libero_dir: Path, tmp_path: Path, codec: str) -> None:
    if codec != "raw":
        pytest.importorskip("PIL")
    alone = config_for(libero_dir, tmp_path / "alone", codec=codec)
    ranks = config_for(libero_dir, tmp_path / "ranks", codec=codec)
    torchrun = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shares = build_by_two(
        ranks, ({**torchrun, "RANK": "0", "LOCAL_RANK": "0"}, {**torchrun, "RANK": "1", "LOCAL_RANK": "1"})
    )
    assert sorted(shares[0] + shares[1]) == list(range(9))
    # Each begins with its own.
    assert [share[0] for share in shares] == [0, 1]
    built = open_frame_cache(ranks, progress=False).folder
    assert contents(built) == contents(open_frame_cache(alone, progress=False, num_processes=1).folder)


def test_the_command_speaks_once_under_torchrun(libero_dir: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python",
        "statevla", "data", "cache", *overrides(libero_dir, tmp_path / "cache"),
    ]  # fmt: skip
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_LIMIT_S, env=environment)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "cache").iterdir()
    num_frames = open_frame_cache(config_for(libero_dir, tmp_path / "cache"), progress=False).num_frames
    assert done.stdout == f"9 episodes, {num_frames} frames of 32 px in {folder}\n"


def overrides(data: Path, cache: Path) -> list[str]:
    model = ["model.image_size=32", "model.stem.kind=patch", "model.stem.patch_size=8"]
    return [f"data.path={data}", f"data.cache_dir={cache}", *model]


NUM_LONG = 150


@pytest.fixture(scope="module")
def long_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough that a build can be killed on the way: many episodes, which are all the same one."""
    folder = tmp_path_factory.mktemp("long")
    episode = smooth_episode(np.random.default_rng(0), 60, 128, (220, 40, 30))
    write_official_file(folder / "long_demo.hdf5", "a long one", [episode])
    with h5py.File(folder / "long_demo.hdf5", "a") as file:
        for number in range(1, NUM_LONG):
            file[f"data/demo_{number}"] = file["data/demo_0"]  # a link
    return folder


def start_build(data: Path, cache: Path, num_processes: int) -> subprocess.Popen[bytes]:
    code = "from statevla.commands.table import main; main()"
    command = [sys.executable, "-c", code, "data", "cache", *overrides(data, cache)]
    command += ["--num-processes", str(num_processes)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_episodes(cache: Path, process: subprocess.Popen[bytes], count: int = 1) -> None:
    """Until so many episodes are done, of a build that still runs."""
    while len(list(cache.glob(".*.part/episodes/*.npz"))) < count:
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_build_leaves_no_workers_and_goes_on(long_dir: Path, tmp_path: Path, how: signal.Signals) -> None:
    process = start_build(long_dir, tmp_path, num_processes=2)
    wait_for_episodes(tmp_path, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(how)
    process.wait(PROCESS_LIMIT_S)
    _, alive = psutil.wait_procs(children, PROCESS_LIMIT_S)
    assert not alive
    (part,) = tmp_path.glob(".*.part")
    done = {file.name: file.stat().st_mtime_ns for file in (part / "episodes").glob("*.npz")}
    assert 0 < len(done) < NUM_LONG
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    read: list[int] = []
    original = LiberoReader.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiberoReader, "read", lambda self, index, *a: read.append(index) or original(self, index, *a))
        cache = open_frame_cache(config_for(long_dir, tmp_path), progress=False, num_processes=1)
    assert sorted(read) == [index for index in range(NUM_LONG) if f"{index:06d}.npz" not in done]
    check_contents(cache, long_dir)
    assert [path.name for path in tmp_path.iterdir()] == [cache.folder.name]


def test_a_killed_worker_is_one_line(long_dir: Path, tmp_path: Path) -> None:
    process = start_build(long_dir, tmp_path, num_processes=2)
    wait_for_episodes(tmp_path, process)
    workers = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
    workers[0].kill()
    _, stderr = process.communicate(timeout=PROCESS_LIMIT_S)
    assert process.returncode == 2
    (folder,) = tmp_path.glob(".*.part")
    target = folder.with_name(folder.name.removeprefix(".").removesuffix(".part"))
    assert stderr.decode() == (
        f"error: frame cache {target}: a building process was killed, perhaps for want of memory; start again, it "
        "goes on where it was (statevla data cache --num-processes takes fewer processes)\n"
    )
    _, alive = psutil.wait_procs(workers, PROCESS_LIMIT_S)
    assert not alive


def _build_and_hang(config: Config, is_hanging: multiprocessing.Event) -> None:
    original = LiberoReader.read

    def hang_at_three(self: LiberoReader, index: int, *arguments: object) -> EpisodeArrays:
        if index == 3:
            is_hanging.set()
            signal.pause()
        return original(self, index, *arguments)

    LiberoReader.read = hang_at_three
    open_frame_cache(config, progress=False, num_processes=1)


def test_who_is_waited_for_is_said(libero_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An episode that another process is at is left to it until it is the last; should it die, it is encoded here."""
    config = config_for(libero_dir, tmp_path)
    context = multiprocessing.get_context("spawn")
    is_hanging = context.Event()
    other = context.Process(target=_build_and_hang, args=(config, is_hanging))
    other.start()
    assert is_hanging.wait(PROCESS_LIMIT_S)
    process = context.Process(target=open_frame_cache, args=(config, True, 1))
    process.start()
    said = ""
    while f"process {other.pid} on" not in said.replace("\n", " "):
        assert process.is_alive(), said
        said += capfd.readouterr().out
        time.sleep(0.05)
    assert "000003.npz" in said.replace("\n", "")
    assert len(list(tmp_path.glob(".*.part/episodes/*.npz"))) == 8
    other.kill()
    process.join(PROCESS_LIMIT_S)
    assert process.exitcode == 0
    check_contents(open_frame_cache(config, progress=False), libero_dir)
