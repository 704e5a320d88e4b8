"""Writes small media files and what the reference reads from them.

    pip install pillow==13.0.0 soundfile==0.13.1 numpy==2.2.6
    python make_fixtures.py

`images/NAME.EXT` comes with `expected/NAME.png`, its pixels after `ImageOps.exif_transpose` and
`convert("RGB")`; frames of animations stand side by side. `sounds/NAME.EXT` comes with its samples in
`expected/NAME.f32` (little endian, channels averaged) and its rate in `expected/sounds.json`.
"""
import io, json, os, struct, zlib
import numpy as np
import soundfile as sf
from PIL import Image, ImageDraw, ImageOps

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in ("images", "sounds", "expected"):
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


def frame(p, i):
    """Frame i. The file is opened anew: Pillow's APNG reader restores the wrong area once a frame has been looked at."""
    with Image.open(p) as f:
        f.seek(i)
        return ImageOps.exif_transpose(f).convert("RGB")


def save(name, ext, im=None, data=None, **kw):
    p = f"{HERE}/images/{name}.{ext}"
    if data is not None:
        open(p, "wb").write(data)
    else:
        im.save(p, **kw)
    with Image.open(p) as f:
        count = getattr(f, "n_frames", 1)
    frames = [frame(p, i) for i in range(count)]
    w, h = frames[0].size
    strip = Image.new("RGB", (w * len(frames), h))
    for i, g in enumerate(frames):
        strip.paste(g, (i * w, 0))
    strip.save(f"{HERE}/expected/{name}.png", optimize=True)


def png(depth, color, rows, width, height):
    chunk = lambda t, d: struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + r for r in rows), 9)) + chunk(b"IEND", b"")


def images():
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


def disposals():
    """Animations whose frames are disposed of and blended in every way. They have offsets, local palettes and
    transparency, and each frame is drawn by another rule."""
    rng = np.random.default_rng(7)
    w, h = 24, 16

    def lzw(indices, bits):
        # Codes of constant length: the table is cleared before it grows.
        out, bit, acc, n = bytearray(), 0, 0, 0
        codes = [1 << bits]
        for i in indices:
            codes.append(int(i))
            n += 1
            if n == (1 << bits) - 2:
                codes.append(1 << bits)
                n = 0
        for code in codes + [(1 << bits) + 1]:
            acc |= code << bit
            bit += bits + 1
            while bit >= 8:
                out.append(acc & 255)
                acc >>= 8
                bit -= 8
        out.append(acc & 255)
        return bytes([bits]) + b"".join(bytes([len(out[i : i + 255])]) + bytes(out[i : i + 255]) for i in range(0, len(out), 255)) + b"\0"

    def gif(frames, background, palette):
        b = b"GIF89a" + struct.pack("<HHBBB", w, h, 0x82, background, 0) + palette
        for (x, y, fw, fh), method, transparent, local in frames:
            flags = method << 2 | (transparent is not None)
            b += b"\x21\xf9\x04" + struct.pack("<BHBB", flags, 10, transparent or 0, 0)
            b += b"\x2c" + struct.pack("<HHHHB", x, y, fw, fh, 0x82 if local else 0) + (local or b"")
            b += lzw(rng.integers(0, 8, fw * fh), 3)
        return b + b";"

    colors = lambda: bytes(int(v) for v in rng.integers(30, 256, 24))
    whole, left, right, middle = (0, 0, w, h), (0, 0, 9, 9), (13, 5, 11, 11), (4, 3, 15, 10)
    for name, transparent, background, frames in (
        ("opaque", None, 5, ((whole, 1), (left, 2), (right, 2), (middle, 1))),
        ("local", None, 2, ((whole, 2), (left, 1), (right, 2), (middle, 2), (left, 1))),
        ("transparent", 3, 1, ((whole, 1), (left, 2), (right, 2), (middle, 2), (left, 0), (right, 1))),
        ("previous", None, 1, ((whole, 1), (left, 3), (middle, 3), (right, 1), (left, 3), (middle, 1))),
        ("previous_transparent", 6, 1, ((middle, 3), (left, 1), (right, 3), (middle, 3), (left, 2), (whole, 1))),
        ("partial", None, 4, ((middle, 1), (left, 2), (right, 1))),
    ):
        local = lambda i: colors() if name == "local" and i % 2 else None
        entries = [(rect, method, transparent, local(i)) for i, (rect, method) in enumerate(frames)]
        save(f"gif_{name}_moving", "gif", data=gif(entries, background, colors()))

    def rgba(fw, fh, smooth):
        a = rng.integers(0, 256, (fh, fw, 4))
        a[..., 3] = rng.choice([0, 80, 190, 255], (fh, fw))
        if smooth:
            a[...] = a[:1, :1]
            a[..., 3] = np.linspace(0, 255, fw).astype(int)
        return Image.fromarray(a.astype(np.uint8))

    def webp(frames, alpha):
        chunk = lambda t, d: t + struct.pack("<I", len(d)) + d + b"\0" * (len(d) % 2)
        triple = lambda v: struct.pack("<I", v)[:3]
        b = chunk(b"VP8X", bytes([2 | (16 if alpha else 0), 0, 0, 0]) + triple(w - 1) + triple(h - 1))
        b += chunk(b"ANIM", b"\x40\x80\xc0\xff\0\0")
        for (x, y, fw, fh), image, kw, blends, disposed in frames:
            f = io.BytesIO()
            image.save(f, "WEBP", **kw)
            data, at, still = f.getvalue(), 12, b""
            while at < len(data):
                n = struct.unpack("<I", data[at + 4 : at + 8])[0]
                if data[at : at + 4] in (b"VP8 ", b"VP8L", b"ALPH"):
                    still += data[at : at + 8 + n + n % 2]
                at += 8 + n + n % 2
            flags = (0 if blends else 2) | disposed
            b += chunk(b"ANMF", triple(x // 2) + triple(y // 2) + triple(fw - 1) + triple(fh - 1) + triple(100) + bytes([flags]) + still)
        return b"RIFF" + struct.pack("<I", len(b) + 4) + b"WEBP" + b

    rects = (whole, (2, 2, 9, 9), (12, 4, 11, 11), (4, 2, 15, 10), (0, 0, 12, 12), whole)
    for name, kw, alpha in (("lossless", {"lossless": True, "exact": True}, True), ("alpha", {"quality": 90, "exact": True}, True), ("opaque", {"quality": 90}, False)):
        frames = []
        for i, rect in enumerate(rects):
            image = rgba(rect[2], rect[3], name != "lossless")
            frames.append((rect, image if alpha else image.convert("RGB"), kw, i % 2 == 1 or i == 4, (i // 2 + i) % 2))
        save(f"webp_{name}_disposal_moving", "webp", data=webp(frames, alpha))

    # Pillow does not divide by alpha where it blends: no half-transparent pixels here.
    frames = [scene(i, (w, h)).convert("RGBA") for i in range(6)]
    for i, frame in enumerate(frames[1:]):
        a = np.array(frame)
        a[..., 3] = 255 * ((a[..., 0].astype(int) // 32 + i) % 2)
        frames[i + 1] = Image.fromarray(a)
    save("png_disposal_moving", "png", frames[0], save_all=True, append_images=frames[1:], duration=100, disposal=[0, 1, 2, 0, 1, 2], blend=[0, 1, 1, 0, 1, 1])
    save("jpeg_ycck", "jpg", data=ycck(scene()))


def ycck(im):
    """A CMYK JPEG whose colors are stored as YCCK, as Adobe's programs write it."""
    f = io.BytesIO()
    im.convert("CMYK").save(f, "JPEG", quality=90)
    b = bytearray(f.getvalue())
    at = b.find(b"Adobe\0")
    b[at + 11] = 2  # The transform of the APP14 segment.
    return bytes(b)


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
    save("wav_alaw", "wav", left, rate, subtype="ALAW")
    save("wav_mulaw", "wav", left, rate, subtype="ULAW")
    save("wav_ima_adpcm", "wav", left, rate, subtype="IMA_ADPCM")
    save("wav_ms_adpcm", "wav", left, rate, subtype="MS_ADPCM")
    save("wav_rf64", "wav", left, rate, subtype="PCM_16", format="RF64")
    save("aiff_16", "aiff", left, rate, subtype="PCM_16")
    save("aiff_24_stereo", "aiff", stereo, 44100, subtype="PCM_24")
    save("flac_16", "flac", left, rate, subtype="PCM_16")
    save("flac_24_stereo", "flac", stereo, 48000, subtype="PCM_24")
    t = np.arange(9000) / 44100
    save("mp3_mono", "mp3", 0.5 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 3000 * t), 44100)
    json.dump(rates, open(f"{HERE}/expected/sounds.json", "w"), indent=1)


images()
disposals()
sounds()
