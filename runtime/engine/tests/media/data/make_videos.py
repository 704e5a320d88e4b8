"""Writes the videos of `videos` and what ffmpeg reads from them: frames side by side, in
`expected/NAME.png`. Needs numpy, pillow and imageio-ffmpeg (a program ffmpeg with libx264).

    python make_videos.py
"""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

HERE = Path(__file__).parent
FFMPEG = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"]


def frames(count, width, height):
    """A square that moves to the right and down over a colored gradient."""
    y, x = np.mgrid[0:height, 0:width]
    ground = np.stack([255 * x // width, 255 * y // height, 128 + 0 * x], -1).astype(np.uint8)
    for i in range(count):
        frame = ground.copy()
        left, top = 2 + i * (width - 20) // count, 2 + i * (height - 20) // count
        frame[top : top + 16, left : left + 16] = [(240, 30, 30), (30, 200, 60), (20, 60, 230)][i // 4 % 3]
        yield frame


def write(name, count, width, height, *options, rate=10, audio=False, after=()):
    raw = b"".join(frame.tobytes() for frame in frames(count, width, height))
    size = f"{width}x{height}"
    inputs = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(rate), "-i", "-"]
    if audio:
        tone = f"sine=frequency=440:sample_rate=16000:duration={count / rate}"
        inputs += ["-f", "lavfi", "-i", tone, "-c:a", "aac", "-b:a", "24k"]
    file = HERE / "videos" / name
    codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-bitexact", "-map_metadata", "-1"]
    subprocess.run([*FFMPEG, *inputs, *codec, *options, str(file)], input=raw, check=True)
    return file


def expect(file, width, height):
    """Reads the frames with ffmpeg; its vertical chroma filter is turned off."""
    command = [*FFMPEG, "-i", str(file), "-fps_mode", "passthrough"]
    command += ["-sws_flags", "neighbor+accurate_rnd+full_chroma_int"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    video = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
    strip = Image.fromarray(np.concatenate(list(video), 1))
    strip.save(HERE / "expected" / f"{file.stem}.png", optimize=True)
    print(file.name, file.stat().st_size, "bytes,", len(video), "frames")


def main():
    (HERE / "videos").mkdir(exist_ok=True)
    expect(write("h264_high.mp4", 12, 64, 48, "-bf", "3", "-g", "6", audio=True), 64, 48)
    expect(write("h264_baseline.mp4", 5, 50, 38, "-profile:v", "baseline", "-movflags", "faststart"), 50, 38)
    colors = ["-vf", "scale=out_color_matrix=bt709:out_range=full", "-colorspace", "bt709", "-color_range", "pc"]
    expect(write("h264_bt709_full.mp4", 3, 48, 32, *colors), 48, 32)
    fragments = ["-movflags", "frag_keyframe+empty_moov+default_base_moof", "-g", "4", "-bf", "2"]
    expect(write("h264_fragmented.mp4", 10, 48, 32, *fragments), 48, 32)
    # Frames at 0, 0.1, 0.2, 0.3, 1.3, 2.3, 3.3 and 4.3 seconds.
    uneven = ["-vf", "setpts='if(lt(N,4),N,4+(N-4)*10+9)/(10*TB)'", "-fps_mode", "vfr", "-bf", "2", "-video_track_timescale", "1000"]
    expect(write("h264_variable_rate.mp4", 8, 48, 32, *uneven), 48, 32)
    for angle in [90, 180, 270]:
        plain = write("plain.mp4", 2, 48, 32)
        file = HERE / "videos" / f"h264_rotated{angle}.mp4"
        turned = ["-display_rotation", str(angle), "-i", str(plain), "-c", "copy", "-bitexact", "-map_metadata", "-1"]
        subprocess.run([*FFMPEG, *turned, str(file)], check=True)
        plain.unlink()
        expect(file, *((48, 32) if angle == 180 else (32, 48)))
    tone = ["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=16000:duration=0.5", "-ac", "2", "-c:a", "aac", "-b:a", "16k"]
    subprocess.run([*FFMPEG, *tone, "-bitexact", str(HERE / "aac_stereo.m4a")], check=True)


main()
