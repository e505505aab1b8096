"""What an episode looked like: frames from recorded states, an MP4 with a caption, a contact sheet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from statevla.errors import UserError
from statevla.types import CONTROL_FREQ_HZ

if TYPE_CHECKING:
    from statevla.worlds.libero.env import LiberoEnv

FRAME_SIZE = 256
STEPS_PER_FRAME = 2
STRIP_FRAMES = 6
_BAR, _INK, _PAPER = 44, (235, 235, 235), (24, 26, 30)
# Okabe & Ito's blue and vermilion: told apart without red-green vision.
_SUCCESS, _FAILURE, _ALARM = (86, 180, 233), (213, 94, 0), (230, 159, 0)


@dataclass(frozen=True)
class SurpriseTrace:
    """What surprised the policy in an episode.

    Attributes:
        values: control step of a look → surprise there.
        threshold: above it the alarm rises; None without a calibration.
    """

    values: Mapping[int, float] = field(default_factory=dict)
    threshold: float | None = None

    def at(self, step: int) -> tuple[str, bool]:
        """What is known at a control step, in words, and whether the alarm is on."""
        before = [value for look, value in self.values.items() if look <= step]
        if not before:
            return "", False
        if self.threshold is None:
            return f"surprise {before[-1]:.3g}", False
        return f"surprise {before[-1] / self.threshold:.2f} of threshold", max(before) > self.threshold


def save_episode(
    env: LiberoEnv,
    states: Sequence[np.ndarray],
    success: bool,
    video: Path,
    strip: Path,
    instruction: str,
    surprise: SurpriseTrace,
) -> None:
    """Show recorded states again; write the video and a strip of a few frames for the contact sheet.

    Args:
        env: the environment that the episode ran in, before its next reset (which moves fixtures).
        states: one per control step, the first from before the first action.
        success: whether it succeeded.
        video: MP4 to write, at real speed.
        strip: PNG to write.
        instruction: what the policy was told, written into the frames.
        surprise: written into the frames.
    """
    num_steps = len(states) - 1
    chosen = list(range(0, len(states), STEPS_PER_FRAME))
    if chosen[-1] != len(states) - 1:
        chosen.append(len(states) - 1)
    frames = []
    for step in chosen:
        env.set_state(states[step])
        views = [env.simulation.render(camera, FRAME_SIZE) for camera in env.cameras]
        verdict = None if step < len(states) - 1 else success
        picture = np.concatenate(views, axis=1)
        frames.append(caption(picture, instruction, step, num_steps, verdict, *surprise.at(step)))
    # The last frame stays for a second, so that the outcome can be read.
    freq_hz = CONTROL_FREQ_HZ / STEPS_PER_FRAME
    write_mp4(video, frames + [frames[-1]] * round(freq_hz), freq_hz)
    picks = np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int)
    _save_picture(strip, np.concatenate([frames[i][_BAR:, :FRAME_SIZE] for i in picks], axis=1))


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
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=round(freq_hz))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "26", "preset": "veryfast"}
        stream.thread_count = 1
        stream.height, stream.width = frames[0].shape[:2]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    os.replace(part, path)


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


def _save_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    Image.fromarray(picture).save(part, format="PNG")
    os.replace(part, path)


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _shorten(text: str, width: int) -> str:
    if _font(14).getlength(text) <= width:
        return text
    while text and _font(14).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
