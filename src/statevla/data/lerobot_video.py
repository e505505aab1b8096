"""H.264 videos of a LeRobotDataset: many episodes in a row in one file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np

from statevla.errors import UserError

_CODEC, _PIXEL_FORMAT = "libx264", "yuv420p"
# Every second frame is a key frame, as LeRobot's own writer does it: reading at random stays quick.
_OPTIONS = {"crf": "18", "g": "2", "preset": "veryfast"}


class VideoWriter:
    """One MP4 file being written.

    Args:
        path: the file.
        fps: frames per second.
        size: height and width; even numbers.
        index: of the file in its camera's chain.

    Raises:
        UserError: odd height or width, which H.264 with 4:2:0 chroma cannot hold.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, ...], index: int) -> None:
        import av

        height, width = size
        if height % 2 or width % 2:
            raise UserError(
                f"video {path.name}: frames of {width}x{height} px; MP4 needs even numbers, resize the source"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self.index = index
        self.num_frames = 0
        self._path = path
        self._rate = Fraction(fps).limit_denominator(1000)
        self._container = av.open(str(path), "w")
        # add_stream's type does not follow from a codec's name.
        self._stream: Any = cast(Any, self._container.add_stream(_CODEC, rate=self._rate, options=_OPTIONS))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, _PIXEL_FORMAT
        self._stream.codec_context.time_base = 1 / self._rate
        self._size = (height, width)
        self._closed = False

    def add(self, frames: np.ndarray) -> None:
        """Append uint8 `[count, H, W, 3]`."""
        import av

        for array in frames:
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = self.num_frames, 1 / self._rate
            self._container.mux(self._stream.encode(frame))
            self.num_frames += 1

    def size_mb(self) -> float:
        """Size on disk so far."""
        return self._path.stat().st_size / 2**20 if self._path.exists() else 0.0

    def description(self) -> dict[str, Any]:
        """What `info.json` says of a video feature."""
        height, width = self._size
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": _PIXEL_FORMAT,
            "video.is_depth_map": False,
            "video.fps": int(self._rate),
            "video.channels": 3,
            "has_audio": False,
        }

    def close(self) -> None:
        """Write what the encoder still holds and finish the file."""
        if not self._closed:
            self._closed = True
            self._container.mux(self._stream.encode(None))
            self._container.close()
