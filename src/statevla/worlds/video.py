"""What an episode looked like: frames of it, an MP4 with a caption, a contact sheet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from statevla.errors import UserError
from statevla.machine.storage import replacing
from statevla.worlds.protocol import ReplayableWorld, ScalableWorld, World
from statevla.worlds.surprise_trace import SurpriseTrace

FRAME_SIZE, ONLY_FRAME_SIZE = 256, 384
"""Height of the frames (pixels) where there are several cameras, and where one alone has to leave room for words."""
MAX_FRAMES_HZ = 10.0
STRIP_FRAMES = 6
_BAR, _INK, _PAPER = 44, (235, 235, 235), (24, 26, 30)
# Okabe & Ito's blue and vermilion: told apart without red-green vision.
_SUCCESS, _FAILURE, _ALARM = (86, 180, 233), (213, 94, 0), (230, 159, 0)


class Film:
    """Moments of an episode, kept while it runs, about `MAX_FRAMES_HZ` of them a second and the last one.

    Where a world can show its moments again, frames are drawn when `frames` asks for them, before the world's next
    reset; else they are taken on the way.

    Args:
        world: the world, just reset.
        cameras: whose frames to show, side by side.
    """

    def __init__(self, world: World, cameras: Sequence[str]) -> None:
        self._world, self._cameras = world, tuple(cameras)
        self._replays = isinstance(world, ReplayableWorld)
        self.steps_per_frame = max(1, round(world.robot.control_freq_hz / MAX_FRAMES_HZ))
        self.num_steps = 0
        self._moments: list[tuple[int, Any]] = []

    @property
    def freq_hz(self) -> float:
        """Frames per second of the world's time."""
        return self._world.robot.control_freq_hz / self.steps_per_frame

    def note(self, step: int, is_last: bool) -> None:
        """Take down the moment after `step` control steps."""
        self.num_steps = step
        if is_last or step % self.steps_per_frame == 0:
            world = self._world
            moment = world.state() if isinstance(world, ReplayableWorld) else world.observe().images
            self._moments.append((step, moment))

    def frames(self) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Control step and frames of the cameras, uint8 `[H, W, 3]` of equal height."""
        for step, moment in self._moments:
            yield step, self._drawn(moment) if self._replays else self._views(moment)

    @property
    def _size(self) -> int:
        return FRAME_SIZE if len(self._cameras) > 1 else ONLY_FRAME_SIZE

    def _drawn(self, state: np.ndarray) -> list[np.ndarray]:
        world = self._world
        assert isinstance(world, ReplayableWorld)
        world.set_state(state)
        if isinstance(world, ScalableWorld):
            return [world.draw(camera, self._size) for camera in self._cameras]
        return self._views(world.observe().images)

    def _views(self, images: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [_at_height(images[camera], self._size) for camera in self._cameras]


def save_episode(
    film: Film, success: bool, video: Path, strip: Path, instruction: str, surprise: SurpriseTrace
) -> None:
    """Write the video of an episode and a strip of a few frames for the contact sheet.

    Args:
        film: of the episode.
        success: whether it succeeded.
        video: MP4 to write, at real speed.
        strip: PNG to write.
        instruction: what the policy was told, written into the frames.
        surprise: written into the frames.
    """
    frames, width = [], 0
    for step, views in film.frames():
        verdict = None if step < film.num_steps else success
        width = views[0].shape[1]
        picture = np.concatenate(views, axis=1)
        frames.append(caption(picture, instruction, step, film.num_steps, verdict, *surprise.at(step)))
    # The last frame stays for a second, so that the outcome can be read.
    write_mp4(video, frames + [frames[-1]] * round(film.freq_hz), film.freq_hz)
    picks = np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int)
    _save_picture(strip, np.concatenate([frames[i][_BAR:, :width] for i in picks], axis=1))


def caption(
    picture: np.ndarray,
    instruction: str,
    step: int,
    num_steps: int,
    success: bool | None,
    surprise: str = "",
    alarm: bool = False,
) -> np.ndarray:
    """A bar above the picture: the instruction, the step, and at the end the outcome.

    Args:
        picture: uint8 `[H, W, 3]`.
        success: None while the episode runs.
        surprise: more about this step.
        alarm: whether the surprise alarm is on.

    Returns:
        uint8 `[H + bar, W, 3]`, both sides even as H.264 wants them.
    """
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width + width % 2, height + _BAR + height % 2), _PAPER)
    canvas.paste(Image.fromarray(picture), (0, _BAR))
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 4), _shorten(instruction, width - 16), fill=_INK, font=_font(14))
    draw.text((8, 24), f"step {step} / {num_steps}", fill=_INK, font=_font(12))
    if surprise:
        text = f"ALARM  {surprise}" if alarm else surprise
        draw.text((110, 24), text, fill=_ALARM if alarm else _INK, font=_font(12))
    if success is not None:
        text = "success" if success else "failure"
        draw.text((width - 70, 22), text, fill=_SUCCESS if success else _FAILURE, font=_font(14))
    return np.asarray(canvas)


def write_mp4(path: Path, frames: Sequence[np.ndarray], freq_hz: float) -> None:
    """Encode uint8 RGB frames `[H, W, 3]` (all alike, even sides) as H.264 that every browser plays.

    Raises:
        UserError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV, which is not installed; run: pip install 'statevla[video]'") from None
    options = {"movflags": "faststart"}
    with replacing(path) as part, av.open(str(part), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(freq_hz).limit_denominator(1000))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "26", "preset": "veryfast"}
        stream.thread_count = 1
        stream.height, stream.width = frames[0].shape[:2]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def contact_sheet(strips: Sequence[tuple[str, bool, Path]], out: Path, max_width: int = 1200) -> bool:
    """All recorded episodes on one picture, a row each.

    Args:
        strips: (caption, success, PNG of `save_episode`).
        out: PNG to write.
        max_width: of the sheet, in pixels.

    Returns:
        Whether there was anything to show.
    """
    rows = []
    for text, success, path in strips:
        if not path.is_file():
            continue
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        if picture.width > max_width:
            picture = picture.resize((max_width, round(picture.height * max_width / picture.width)))
        row = Image.new("RGB", (max_width, picture.height + 26), _PAPER)
        row.paste(picture, (0, 26))
        draw = ImageDraw.Draw(row)
        draw.rectangle((0, 0, 8, 25), fill=_SUCCESS if success else _FAILURE)
        draw.text((16, 4), f"{'success' if success else 'failure'}: {text}", fill=_INK, font=_font(14))
        rows.append(row)
    if not rows:
        return False
    _save_picture(out, np.concatenate([np.asarray(row) for row in rows], axis=0))
    return True


def _at_height(picture: np.ndarray, height: int) -> np.ndarray:
    """A frame uint8 `[H, W, 3]` at another height, its sides in proportion."""
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def _save_picture(path: Path, picture: np.ndarray) -> None:
    with replacing(path) as part:
        Image.fromarray(picture).save(part, format="PNG")


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shorten(text: str, width: int) -> str:
    if _font(14).getlength(text) <= width:
        return text
    while text and _font(14).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
