"""Writes small media files and what the reference reads from them.

    pip install pillow==13.0.0 soundfile==0.13.1 numpy==2.2.6
    python make_fixtures.py

`pictures/NAME.EXT` comes with `expected/NAME.png`, its pixels after `ImageOps.exif_transpose` and
`convert("RGB")`; frames of animations stand side by side. `sounds/NAME.EXT` comes with its samples in
`expected/NAME.f32` (little endian, channels averaged) and its rate in `expected/sounds.json`.
"""
import io, json, os, struct, zlib
import numpy as np
import soundfile as sf
from PIL import Image, ImageDraw, ImageOps, ImageSequence

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in ("pictures", "sounds", "expected"):
    os.makedirs(f"{HERE}/{folder}", exist_ok=True)


def scene(i=0, size=(29, 18)):
    """A gradient with shapes that move with i."""
    w, h = size
    y, x = np.mgrid[:h, :w]
    a = np.stack([x * 255 // (w - 1), y * 255 // (h - 1), (x + y) * 255 // (w + h - 2)], -1).astype(np.uint8)
    im = Image.fromarray(a)
    d = ImageDraw.Draw(im)
    d.rectangle([3 + 4 * i, 3, 9 + 4 * i, 9], fill=(220, 30, 40))
    d.ellipse([14, 6 + i, 22, 14 + i], fill=(20, 60, 230))
    return im


def save(name, ext, im=None, data=None, **kw):
    p = f"{HERE}/pictures/{name}.{ext}"
    if data is not None:
        open(p, "wb").write(data)
    else:
        im.save(p, **kw)
    with Image.open(p) as f:
        frames = [ImageOps.exif_transpose(g).convert("RGB") for g in ImageSequence.Iterator(f)]
    w, h = frames[0].size
    strip = Image.new("RGB", (w * len(frames), h))
    for i, g in enumerate(frames):
        strip.paste(g, (i * w, 0))
    strip.save(f"{HERE}/expected/{name}.png", optimize=True)


def png(depth, color, rows, width, height):
    chunk = lambda t, d: struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + r for r in rows), 9)) + chunk(b"IEND", b"")


def pictures():
    im = scene()
    alpha = im.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(im.size))
    save("rgb8", "png", im)
    save("rgba8", "png", alpha)
    save("grey8", "png", im.convert("L"))
    save("grey1", "png", im.convert("1"))
    save("grey_alpha8", "png", alpha.convert("LA"))
    save("palette", "png", im.quantize(16))
    save("palette_transparent", "png", im.quantize(16), transparency=3)
    values = np.array([[0, 1, 127, 128, 255, 256, 257, 300, 511, 512, 1000, 32767, 32768, 65279, 65280, 65407, 65408, 65535]], np.uint16)
    for name, color, channels in (("grey16", 0, 1), ("rgb16", 2, 3), ("grey_alpha16", 4, 2), ("rgba16", 6, 4)):
        rows = [np.repeat(np.roll(values, k), channels).astype(">u2").tobytes() for k in range(3)]
        save(name, "png", data=png(16, color, rows, values.size, 3))
    for depth in (2, 4):
        rows = [bytes((13 * i + 7 * k) % 256 for i in range(20 * depth // 8)) for k in range(4)]
        save(f"grey{depth}", "png", data=png(depth, 0, rows, 20, 4))
    save("bmp24", "bmp", im)
    save("bmp8", "bmp", im.quantize(64))
    save("bmp1", "bmp", im.convert("1"))
    save("jpeg420", "jpg", im, quality=90)
    save("jpeg444", "jpg", im, quality=90, subsampling=0)
    save("jpeg_progressive", "jpg", im, quality=85, progressive=True)
    save("jpeg_grey", "jpg", im.convert("L"), quality=90)
    save("jpeg_cmyk", "jpg", im.convert("CMYK"), quality=90)
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(f"jpeg_orientation{orientation}", "jpg", im, quality=90, exif=exif)
    save("webp_lossy", "webp", im, quality=90)
    save("webp_lossless", "webp", im, lossless=True)
    save("webp_alpha", "webp", alpha, lossless=True, exact=True)
    save("gif_still", "gif", im.quantize(64))
    rest = [scene(i) for i in (1, 2, 3)]
    save("gif_moving", "gif", im, save_all=True, append_images=rest, duration=[100, 200, 300, 400])
    save("png_moving", "png", im, save_all=True, append_images=rest, duration=[100, 200, 300, 400])
    save("webp_moving", "webp", im, save_all=True, append_images=rest, duration=[100, 200, 300, 400], lossless=True)


def sounds():
    rate, n = 16000, 800
    t = np.arange(n) / rate
    left = 0.5 * np.sin(2 * np.pi * 440 * t) + 0.3 * np.sin(2 * np.pi * 1370 * t + 1)
    right = 0.7 * np.sin(2 * np.pi * 220 * t + 2)
    stereo = np.stack([left, right], 1)
    left[0] = -1      # the lowest value of every format
    rates = {}

    def save(name, ext, data, rate, **kw):
        p = f"{HERE}/sounds/{name}.{ext}"
        sf.write(p, data, rate, **kw)
        back, rates[name] = sf.read(p, dtype="float32", always_2d=True)
        back.mean(1).astype("<f4").tofile(f"{HERE}/expected/{name}.f32")

    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"):
        save(f"wav_{subtype.lower()}", "wav", left, rate, subtype=subtype)
    save("wav_stereo", "wav", stereo, 44100, subtype="PCM_16")
    save("wav_extensible", "wav", stereo, 44100, subtype="PCM_24", format="WAVEX")
    save("flac_16", "flac", left, rate, subtype="PCM_16")
    save("flac_24_stereo", "flac", stereo, 48000, subtype="PCM_24")
    t = np.arange(9000) / 44100
    save("mp3_mono", "mp3", 0.5 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 3000 * t), 44100)
    json.dump(rates, open(f"{HERE}/expected/sounds.json", "w"), indent=1)


pictures()
sounds()
