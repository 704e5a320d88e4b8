"""Images, videos and sounds from the objects that Python programs have."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from typing import Any, Sequence, Union

from ._errors import InputError
from ._native import Media

ImageLike = Any
"""A path, the bytes of a file, a `PIL.Image.Image`, or an array of 8-bit values of shape
[height, width, 3] or [height, width]."""


@dataclass(frozen=True)
class Video:
    """A video: a path, the bytes of a file, or frames, which are images.

    `frames` of a file selects evenly spaced frames, `fps` that many per second. For a sequence of
    frames, `fps` is their rate, 1 if it is None.
    """

    source: Union[str, "os.PathLike[str]", bytes, Sequence[ImageLike]]
    frames: "int | None" = None
    fps: "float | None" = None


@dataclass(frozen=True)
class Audio:
    """A sound: a path, the bytes of a file, or samples of one channel with their rate.

    Samples are floats from -1 to 1 or 16-bit integers, in an array or a sequence.
    """

    source: Any
    sample_rate: "int | None" = None


def image(source: ImageLike) -> Media:
    """Decodes an image."""
    if isinstance(source, Media):
        return source
    if isinstance(source, (str, os.PathLike)):
        return Media.open(source, "image")
    if isinstance(source, (bytes, bytearray)):
        return Media.decode(bytes(source), "image", "image")
    return Media.image(*_pixels(source))


def video(source: Any) -> Media:
    """Decodes a video."""
    if isinstance(source, Media):
        return source
    if not isinstance(source, Video):
        source = Video(source)
    content = source.source
    if isinstance(content, (str, os.PathLike)):
        return Media.open(content, "video", source.frames, source.fps)
    if isinstance(content, (bytes, bytearray)):
        return Media.decode(bytes(content), "video", "video", source.frames, source.fps)
    frames = [_pixels(frame) for frame in content]
    return Media.video(frames, 1.0 if source.fps is None else source.fps)


def audio(source: Any) -> Media:
    """Decodes a sound."""
    if isinstance(source, Media):
        return source
    if isinstance(source, tuple) and len(source) == 2:
        source = Audio(*source)
    if not isinstance(source, Audio):
        source = Audio(source)
    content = source.source
    if isinstance(content, (str, os.PathLike)):
        return Media.open(content, "audio")
    if isinstance(content, (bytes, bytearray)):
        return Media.decode(bytes(content), "audio", "audio")
    if source.sample_rate is None:
        raise InputError("samples need their rate: Audio(samples, sample_rate) or a pair of both")
    return Media.audio(_samples(content), source.sample_rate)


def _pixels(source: Any) -> "tuple[int, int, bytes]":
    """Returns width, height and RGB bytes of a PIL image or an array."""
    if hasattr(source, "convert") and hasattr(source, "tobytes"):
        rgb = source.convert("RGB")
        return rgb.width, rgb.height, rgb.tobytes()
    view = _view(source, "an image is a path, bytes, a PIL image or an array")
    if view.format != "B":
        raise InputError(
            f"the array of an image has values of type {view.format!r}, expected 8-bit unsigned "
            "integers (numpy.uint8)"
        )
    shape = view.shape or ()
    if len(shape) == 3 and shape[2] == 3:
        return shape[1], shape[0], view.tobytes()
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        gray = view.tobytes()
        pixels = bytearray(3 * len(gray))
        for channel in range(3):
            pixels[channel::3] = gray
        return shape[1], shape[0], bytes(pixels)
    raise InputError(
        f"the array of an image has the shape {list(shape)}, expected [height, width, 3] or "
        "[height, width]"
    )


def _samples(source: Any) -> bytes:
    """Returns samples as the bytes of 32-bit floats."""
    if isinstance(source, (list, tuple)):
        source = array("f", source)
    view = _view(source, "a sound is a path, bytes, an array or a sequence of samples")
    if view.ndim != 1:
        raise InputError(
            f"the array of a sound has the shape {list(view.shape or ())}, expected one channel: "
            "[samples]"
        )
    if view.format == "f":
        return view.tobytes()
    values: Any = array("d" if view.format == "d" else "h")
    if view.format not in ("d", "h"):
        raise InputError(
            f"the array of a sound has values of type {view.format!r}, expected floats from -1 to 1 "
            "or 16-bit integers"
        )
    values.frombytes(view.tobytes())
    scale = 1.0 if view.format == "d" else 1.0 / 32768.0
    return array("f", (value * scale for value in values)).tobytes()


def _view(source: Any, expected: str) -> memoryview:
    # Tensors of PyTorch have no buffer of their own.
    if hasattr(source, "detach") and hasattr(source, "numpy"):
        source = source.detach().cpu().numpy()
    try:
        return memoryview(source)
    except TypeError:
        raise InputError(f"cannot use {type(source).__name__}: {expected}") from None
