"""Images, video frames and sounds to ask about: drawn from a seed, with edges, gradients and noise.

A port's resampling and normalization differ most on sharp edges and least on flat areas, so every image has both.
"""

import wave
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def image(seed: int, width: int, height: int) -> Image.Image:
    """An RGB image: a color gradient, three solid shapes, and noise over the lower third."""
    rng = np.random.default_rng([1, seed])
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    corners = rng.uniform(40, 215, (3, 3))
    ramp = corners[0] + (x / width)[..., None] * corners[1] * 0.4 - (y / height)[..., None] * corners[2] * 0.4
    image = Image.fromarray(np.clip(ramp, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for draw_shape in (pen.ellipse, pen.rectangle, pen.ellipse):
        size = rng.uniform(0.15, 0.5) * min(width, height)
        left, top = rng.uniform(0, width - size), rng.uniform(0, height - size)
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        draw_shape([left, top, left + size, top + size], fill=color)
    pixels = np.asarray(image).astype(np.int16)
    low = height * 2 // 3
    pixels[low:] += rng.integers(-20, 21, pixels[low:].shape, dtype=np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def frames(seed: int, width: int, height: int, count: int) -> list[Image.Image]:
    """Video frames that all differ: a disc wanders over an image and changes color."""
    rng = np.random.default_rng([2, seed])
    ground, colors = image(seed, width, height), rng.integers(0, 256, (count, 3))
    r = 0.22 * min(width, height)
    out = []
    for i in range(count):
        frame = ground.copy()
        cx, cy = width * (i + 1) / (count + 1), height * (0.3 + 0.4 * (i % 2))
        ImageDraw.Draw(frame).ellipse([cx - r, cy - r, cx + r, cy + r], fill=tuple(int(c) for c in colors[i]))
        out.append(frame)
    return out


def sound(seed: int, samples: int, rate: int = 16000) -> np.ndarray:
    """16-bit mono samples: two gliding tones, a click and a little noise."""
    rng = np.random.default_rng([3, seed])
    t = np.arange(samples) / rate
    wavef = np.zeros(samples)
    for low, high, level in ((150, 900, 0.4), (1500, 6000, 0.15)):
        start, end = rng.uniform(low, high, 2)
        pitch = start + (end - start) * t / max(t[-1], 1e-9)
        wavef += level * np.sin(2 * np.pi * np.cumsum(pitch) / rate)
    wavef[samples // 3] += 0.4
    wavef += 0.01 * rng.standard_normal(samples)
    return (np.clip(wavef, -1, 1) * 32767).astype(np.int16)


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> None:
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(rate)
        f.writeframes(samples.tobytes())
