"""Frames of a LeRobotDataset: out of videos by their time, or pictures in the rows."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from statevla.data.lerobot_meta import VideoPart, inside, one_line
from statevla.errors import UserError

_DEPTH_FORMAT = re.compile(r"gray(9|1\d|f)")
"""PyAV's names of grey pixels with more than 8 bits."""
_TIME_TOLERANCE_S = 1e-4
"""What time stamps may be off by rounding, beside half a frame."""


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether a video or image feature holds distances (or other numbers of more than 8 bits) and not colours."""
    described = [described for key in ("info", "video_info") if isinstance(described := feature.get(key), dict)]
    for info in [feature, *described]:
        if info.get("is_depth_map") or info.get("video.is_depth_map"):
            return True
        if _DEPTH_FORMAT.match(str(info.get("video.pix_fmt") or info.get("pix_fmt") or "")):
            return True
    return False


def decode_frames(part: VideoPart, times_s: np.ndarray, fps: float, source: str) -> np.ndarray:
    """Decode the frames of an episode at `times_s` `[T]`, increasing, from its start: uint8 `[T, H, W, 3]`.

    Raises:
        UserError: the video is missing, damaged, ends early, or has no frame within half a step of a time.
    """
    import av

    last_s = float(times_s[-1])
    half_step_s = 0.5 / fps + _TIME_TOLERANCE_S
    if part.stop_s is not None and part.start_s + last_s > part.stop_s - 0.5 / fps + _TIME_TOLERANCE_S:
        raise UserError(
            f"{source}: its part of video {part.file} is {part.stop_s - part.start_s:.2f} s long, its rows reach "
            f"{last_s:.2f} s at {fps:g} Hz; the rows without frames would get another episode's, repair the data set"
        )
    wanted = part.start_s + times_s
    frames: list[np.ndarray] = []
    try:
        with av.open(str(part.file)) as container:
            stream = container.streams.video[0]
            if stream.time_base is None:
                raise UserError(f"{source}: video {part.file} has no time base; encode it again")
            container.seek(max(int(wanted[0] / stream.time_base) - 1, 0), stream=stream, backward=True)
            before: Any = None
            for frame in container.decode(stream):
                # Every time between two frames takes the nearer one.
                while len(frames) < len(wanted) and _time_s(frame) >= wanted[len(frames)]:
                    time_s = wanted[len(frames)]
                    near = frame
                    if before is not None and time_s - _time_s(before) <= _time_s(frame) - time_s:
                        near = before
                    if abs(_time_s(near) - time_s) > half_step_s:
                        raise _no_frame(part, times_s, len(frames), source)
                    frames.append(_to_rgb(near, source))
                before = frame
                if len(frames) == len(wanted):
                    break
            while before is not None and len(frames) < len(wanted):
                if wanted[len(frames)] - _time_s(before) > half_step_s:
                    break
                frames.append(_to_rgb(before, source))
    except (OSError, IndexError, TypeError, av.error.FFmpegError) as error:
        raise UserError(f"{source}: video {part.file} not readable ({one_line(error)}); download it again") from None
    if len(frames) != len(wanted):
        raise _no_frame(part, times_s, len(frames), source)
    return np.stack(frames)


def decode_pictures(values: Sequence[Any], root: Path, source: str) -> np.ndarray:
    """Pictures stored in the parquet rows (PNG or JPEG bytes, or a path): uint8 `[T, H, W, 3]`.

    Raises:
        UserError: a picture is missing or damaged, or pictures differ in size.
    """
    import av

    frames = []
    for step, value in enumerate(values):
        content = value.get("bytes") if isinstance(value, dict) else value
        path = value.get("path") if isinstance(value, dict) else None
        try:
            opened = io.BytesIO(content) if content else str(inside(root, str(path)))
            with av.open(opened, "r") as container:
                frames.append(_to_rgb(next(container.decode(video=0)), source))
        except (OSError, StopIteration, TypeError, av.error.FFmpegError) as error:
            raise UserError(f"{source}: picture of step {step} not readable ({one_line(error)})") from None
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise UserError(f"{source}: pictures of one camera differ in size ({sorted(sizes)[:3]}); repair the data set")
    return np.stack(frames)


def _time_s(frame: Any) -> float:
    return float((frame.pts or 0) * frame.time_base)


def _to_rgb(frame: Any, source: str) -> np.ndarray:
    name = frame.format.name
    if _DEPTH_FORMAT.match(name):
        raise UserError(
            f"{source}: frames are {name}, not colours, and would lose all but 8 bits; mark the feature as a depth map "
            "in meta/info.json (info: {is_depth_map: true})"
        )
    return frame.to_ndarray(format="rgb24")


def _no_frame(part: VideoPart, times_s: np.ndarray, found: int, source: str) -> UserError:
    return UserError(
        f"{source}: video {part.file} has {found} of the {len(times_s)} frames from {part.start_s:.2f} s on, none at "
        f"{part.start_s + times_s[found]:.2f} s; it is truncated or has another frame rate than info.json says"
    )
