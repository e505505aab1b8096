"""How a cache stores a frame: as it is, or as one compressed picture with its cameras below each other.

Measured at 128 px on one core (docs/own-data.md): JPEG takes a third of QOI's room; QOI is lossless and decodes as
fast, where PNG and WebP take three times as long for a sixth less room.
"""

from __future__ import annotations

import io
import threading
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from statevla.machine.extras import require

CacheCodec = Literal["raw", "qoi", "jpeg"]
RAW: CacheCodec = "raw"
JPEG_QUALITY, JPEG_FULL_CHROMA = 95, 0
"""Of quality 1 to 95; chroma at full resolution, as a gripper's few pixels are told apart by colour."""
_contexts = threading.local()


def require_codec(codec: str) -> None:
    """Raise a UserError that names the extra if the packages of a codec are missing."""
    if codec != RAW:
        require(f"data.cache_codec {codec}", "video")


def encode_frame(codec: str, frame: np.ndarray) -> bytes:
    """A frame of all cameras, uint8 `[V, P, P, 3]`, compressed by `qoi` or `jpeg`."""
    picture = np.ascontiguousarray(frame).reshape(-1, *frame.shape[2:])
    return _encode_jpeg(picture) if codec == "jpeg" else _encode_qoi(picture)


def decode_frame(codec: str, content: bytes, out: np.ndarray) -> None:
    """What `encode_frame` made, into `out`, uint8 `[V, P, P, 3]`, contiguous. Threads may decode at the same time.

    Raises:
        ValueError: it is of another size.
    """
    picture = _decode_jpeg(content) if codec == "jpeg" else _decode_qoi(content, out.shape)
    out[...] = picture.reshape(out.shape)


def _encode_jpeg(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=JPEG_FULL_CHROMA)
    return buffer.getvalue()


def _decode_jpeg(content: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)))


def _encode_qoi(picture: np.ndarray) -> bytes:
    import av

    height, width = picture.shape[:2]
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    frame.pts = 0
    (packet,) = _qoi_context("w", width, height).encode(frame)
    return bytes(packet)


def _decode_qoi(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    import av

    (frame,) = _qoi_context("r", shape[2], shape[0] * shape[1]).decode(av.Packet(content))
    decoded: np.ndarray = frame.to_ndarray(format="rgb24")
    return decoded


def _qoi_context(mode: Literal["r", "w"], width: int, height: int) -> Any:
    """A coder of this thread for pictures of this size: making one takes longer than using it."""
    import av

    held: dict[tuple[str, int, int], Any] = _contexts.__dict__.setdefault("qoi", {})
    if (mode, width, height) not in held:
        context: Any = av.CodecContext.create("qoi", mode)
        context.width, context.height, context.pix_fmt = width, height, "rgb24"
        context.thread_count = 1  # more would answer a picture late
        if mode == "w":
            context.time_base = Fraction(1)
        held[mode, width, height] = context
    return held[mode, width, height]
