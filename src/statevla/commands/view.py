"""`statevla view`: a data set, or the videos and surprise of a simulated evaluation, in the Rerun viewer.

Needs the extra `view` (`pip install 'statevla[view]'`). With `--out` a recording (`.rrd`) is written instead of opening
the viewer; `rerun FILE.rrd` shows it, on any machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from statevla.checkpoints.measured import read_tree
from statevla.config import expand_path
from statevla.errors import UserError
from statevla.machine.extras import require
from statevla.machine.lock import only_writer_of
from statevla.machine.storage import check_own, replacing, writing
from statevla.report.sources import read_episodes
from statevla.robots import LIBERO, RobotSpec
from statevla.transforms import to_upright

if TYPE_CHECKING:
    from statevla.data.episodes import EpisodeArrays

APPLICATION = "statevla"
_FLUSH_TIMEOUT_S = 120.0
"""Where the disk is full, Rerun may wait for a writer that has given up."""
_END = b"RRF2FOOT"
"""In the last bytes of a whole recording."""
STEP, TIME = "step", "time"


@dataclass(frozen=True)
class ViewArgs:
    source: tyro.conf.Positional[str]
    """A data set (HDF5 file or folder, LeRobotDataset), or the results folder of `statevla rollout`."""
    robot: str = "auto"
    """What a data set's numbers mean: a known robot or a YAML file; `auto` believes the data set."""
    episodes: int = 3
    """How many, from the first."""
    out: str | None = None
    """Write a recording to this .rrd file; the viewer is opened otherwise."""


def view(args: ViewArgs) -> int:
    """Show episodes in Rerun: pictures, actions, robot states, object positions; of rollouts videos and surprise."""
    require("view", "view")
    if args.out is not None:
        os.environ.setdefault("RUST_LOG", "off")  # what goes wrong is told below
    import rerun

    if args.episodes < 1:
        raise UserError(f"--episodes: expected at least 1, got {args.episodes}")
    source = expand_path(args.source)
    if not source.exists():
        raise UserError(f"view {source}: no such file or folder; give a data set or the results of 'statevla rollout'")
    recording = rerun.RecordingStream(APPLICATION)
    if args.out is None:
        recording.spawn()
        count = _log(recording, source, args)
        recording.flush()
        print(f"{count} episodes of {source}")
        return 0
    out = expand_path(args.out)
    fix = "choose another --out"
    with only_writer_of(out, fix), writing(f"view {out}", fix), replacing(out) as part:
        try:
            recording.save(part)
            count = _log(recording, source, args)
            recording.flush(timeout_sec=_FLUSH_TIMEOUT_S)
            recording.disconnect()
        except RuntimeError as error:  # its only kind
            raise OSError(str(error)) from None
        _check_end(part)
    print(f"{count} episodes of {source}: {out}")
    return 0


def _check_end(file: Path) -> None:
    """Raise an OSError unless a recording is whole: where Rerun cannot write its end, it says so in its log only."""
    with file.open("rb") as opened:
        opened.seek(max(file.stat().st_size - 64, 0))
        if _END not in opened.read():
            raise OSError("its end is missing, the disk may be full")


def _log(recording: Any, source: Path, args: ViewArgs) -> int:
    """Log what `source` is; returns the number of episodes."""
    if (source / "settings.json").is_file():
        return log_rollouts(recording, source, args.episodes)
    return log_data(recording, source, args.episodes, args.robot)


def log_data(recording: Any, source: Path, num_episodes: int, robot: str = "auto") -> int:
    """Log the first episodes of a data set, one entity path each; returns how many.

    Raises:
        UserError: the data set cannot be read, or is not what the robot declares.
    """
    from statevla.data import open_reader

    with open_reader(source, robot=robot) as reader:
        infos = reader.episodes[:num_episodes]
        for index, info in enumerate(infos):
            _log_episode(recording, f"episode_{index}", info.instruction, reader.read(index), reader.robot)
    return len(infos)


def log_rollouts(recording: Any, folder: Path, num_episodes: int) -> int:
    """Log surprise and novelty of the first episodes of an evaluation, and the videos there are; returns how many.

    Raises:
        UserError: the folder holds no episodes, or a link out of it.
    """
    check_own(folder / "settings.json", [folder])
    settings = read_tree(folder / "settings.json")
    if not settings:
        raise UserError(f"view {folder}: no readable settings.json; give the --out folder of 'statevla rollout'")
    judged = [line for line in read_episodes(folder, [folder]) if line.get("success") is not None][:num_episodes]
    if not judged:
        raise UserError(f"view {folder}: holds no finished episodes; run 'statevla rollout' with --out {folder}")
    # Results from before worlds had robots are LIBERO's.
    freq_hz = float(settings.get("control_freq_hz", LIBERO.control_freq_hz))
    for line in judged:
        outcome = "success" if line["success"] else "failure"
        path = f"task{line['task']:02d}_trial{line['trial']:03d}_{outcome}"
        _log_text(recording, path, f"{line['instruction']}: {outcome} after {line['num_steps']} steps")
        _log_looks(recording, path, line, settings, freq_hz)
        video = folder / "videos" / f"{path}.mp4"
        if video.is_file():
            check_own(video, [folder])
            _log_video(recording, path, video, freq_hz)
    return len(judged)


def _log_episode(recording: Any, path: str, instruction: str, arrays: EpisodeArrays, robot: RobotSpec) -> None:
    import rerun

    def log(where: Sequence[str], value: float) -> None:
        # As a list, so that names of dims may hold any characters.
        recording.log([path, *where], rerun.Scalars(float(value)))

    _log_text(recording, path, instruction)
    for step in range(len(arrays.actions)):
        _set_step(recording, step, robot.control_freq_hz)
        for camera, frames in arrays.images.items() if arrays.seen[step] else ():
            frame = np.ascontiguousarray(to_upright(frames[step], robot.camera(camera).orientation))
            recording.log(f"{path}/{camera}", rerun.Image(frame).compress(jpeg_quality=90))
        for group, part in zip(robot.actions, robot.action_slices().values()):
            for dim, value in zip(group.dims, arrays.actions[step, part]):
                log(["action", group.name, dim], value)
        for field in robot.state:
            for dim, value in zip(field.dims, arrays.robot_states[field.name][step]):
                log(["state", field.name, dim], value)
        if arrays.object_poses is not None and arrays.object_names:
            places = arrays.object_poses[step].reshape(-1, 7)[:, :3]
            recording.log(f"{path}/objects", rerun.Points3D(places, labels=list(arrays.object_names), radii=0.015))


def _log_looks(recording: Any, path: str, line: dict[str, Any], settings: dict[str, Any], freq_hz: float) -> None:
    """Surprise, novelty and threshold at the control steps of the looks."""
    import rerun

    every, threshold = int(settings["execute_steps"]), settings.get("surprise_threshold")
    # There is no surprise at the first look.
    for name, first in (("surprise", 1), ("novelty", 0)):
        for number, value in enumerate(line.get(name, ()), first):
            _set_step(recording, every * number, freq_hz)
            recording.log(f"{path}/{name}", rerun.Scalars(float(value)))
            if name == "surprise" and threshold is not None:
                recording.log(f"{path}/surprise_threshold", rerun.Scalars(float(threshold)))


def _log_video(recording: Any, path: str, file: Path, freq_hz: float) -> None:
    import rerun

    asset = rerun.AssetVideo(path=file)
    recording.log(f"{path}/video", asset, static=True)
    for time_ns in asset.read_frame_timestamps_nanos():
        _set_step(recording, round(float(time_ns) / 1e9 * freq_hz), freq_hz)
        recording.log(f"{path}/video", rerun.VideoFrameReference(nanoseconds=int(time_ns)))


def _log_text(recording: Any, path: str, text: str) -> None:
    import rerun

    recording.log(f"{path}/instruction", rerun.TextDocument(text), static=True)


def _set_step(recording: Any, step: int, freq_hz: float) -> None:
    recording.set_time(STEP, sequence=step)
    recording.set_time(TIME, duration=step / freq_hz)
