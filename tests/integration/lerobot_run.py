"""Runs a module of LeRobot as a script: `python lerobot_run.py lerobot.scripts.lerobot_train ...`.

LeRobot 0.4.4 is older than the torch here, and PyPI's torchvision is built for CUDA. Two things are mended before it
starts; nothing of LeRobot itself is changed:

- Beside a CPU build of torch, torchvision lacks its compiled operators, and its import fails on the two that it
  describes unconditionally. LeRobot calls neither: declaring them is enough.
- torchvision has dropped `io.VideoReader`, with whose `pyav` backend LeRobot decodes. `VideoReader` below does with
  PyAV what that class did.
"""

import runpy
import sys
from collections.abc import Iterator

import av
import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # its operators vanish with it


class VideoReader:
    """Frames of a video from a key frame on, as `torchvision.io.VideoReader` gave them."""

    def __init__(self, path: str, stream: str) -> None:
        self.container = av.open(path)
        self._stream = self.container.streams.get(**{stream: 0})[0]

    def seek(self, time_s: float, keyframes_only: bool = False) -> None:
        """Go to the key frame at or before `time_s`."""
        self.container.seek(int(time_s / self._stream.time_base), stream=self._stream, any_frame=not keyframes_only)

    def __iter__(self) -> Iterator[dict]:
        for frame in self.container.decode(self._stream):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            yield {"pts": float(frame.pts * frame.time_base), "data": pixels}


def mend_torchvision() -> None:
    for name in ("nms", "qnms") if torch.version.cuda is None else ():
        if not hasattr(torch.ops.torchvision, name):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    if not hasattr(torchvision.io, "VideoReader"):
        torchvision.io.VideoReader = VideoReader
    if not hasattr(torchvision, "set_video_backend"):
        torchvision.set_video_backend = lambda backend: None


if __name__ == "__main__":
    mend_torchvision()
    sys.argv = sys.argv[1:]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
