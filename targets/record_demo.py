#!/usr/bin/env python3
"""Records commands in a terminal as an asciicast (version 2), which asciinema and its web player show.

    cargo build --release -p edge-lmm-cli -p edge-lmm-convert
    python3 targets/record_demo.py --programs target/release docs/demo.cast

The commands run one after another in a temporary folder, in a terminal of 100 columns. The typing is simulated; output
and times are those of the commands. Pauses are cut to two seconds.
"""

import argparse
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLUMNS, ROWS, LONGEST_PAUSE = 100, 32, 2.0
REPOSITORY = Path(__file__).resolve().parent.parent
COMMANDS = [
    "edge-lmm demo",
    "edge-lmm-convert checkpoint -o model.bpk",
    'edge-lmm run model.bpk --image shapes.png --prompt "list the shapes."',
    'edge-lmm run model.bpk --image shapes.png --prompt "list the shapes." --reduce merge:0.5 --timing',
]


class Cast:
    """Events of a recording, at times in seconds."""

    def __init__(self):
        self.time, self.events = 0.0, []

    def add(self, pause, text):
        self.time += min(pause, LONGEST_PAUSE)
        self.events.append([round(self.time, 3), "o", text])

    def type(self, command):
        self.add(0.8, "\x1b[1;32m$\x1b[0m ")
        for character in command:
            self.add(0.03, character)
        self.add(0.3, "\r\n")


def run(cast, command, folder, environment):
    """Runs a command in a terminal and records its output."""
    leader, follower = pty.openpty()
    subprocess.run(["stty", "cols", str(COLUMNS), "rows", str(ROWS)], stdin=follower, check=True)
    child = subprocess.Popen(
        command, shell=True, cwd=folder, env=environment, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    last = time.monotonic()
    while True:
        ended = child.poll() is not None
        if not select.select([leader], [], [], 0.05)[0]:
            if ended:
                break
            continue
        try:
            output = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        now = time.monotonic()
        cast.add(now - last, output.decode(errors="replace"))
        last = now
    os.close(leader)
    if child.wait():
        sys.exit(f"error: {command} failed with exit code {child.returncode}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, default=REPOSITORY / "target/release", metavar="FOLDER")
    parser.add_argument("--title", default="edge-lmm")
    parser.add_argument("output", type=Path, metavar="FILE.cast")
    arguments = parser.parse_args()
    environment = {
        "PATH": f"{arguments.programs.resolve()}:{os.environ['PATH']}", "TERM": "xterm-256color", "HOME": "/nonexistent"
    }
    cast = Cast()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(REPOSITORY / "models/demo/shapes.png", folder)
        Path(folder, "checkpoint").symlink_to(REPOSITORY / "models/tests/data/qwen2vl-tiny")
        for command in COMMANDS:
            cast.type(command)
            run(cast, command, folder, environment)
    cast.add(1.0, "\x1b[1;32m$\x1b[0m ")
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": arguments.title, "env": {"TERM": "xterm-256color"}}
    lines = [json.dumps(line, ensure_ascii=False) for line in [header, *cast.events]]
    arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
