"""Serves the files of a folder and, like the Hugging Face hub, a model of any name, on a free local port,
which is printed.

Usage: local_hub.py FOLDER CHECKPOINT
"""

import hashlib
import http.server
import json
import sys
from pathlib import Path

FOLDER, CHECKPOINT = Path(sys.argv[1]), Path(sys.argv[2])
COMMIT = "0123456789abcdef"


def listing():
    files = []
    for path in sorted(CHECKPOINT.iterdir()):
        if not path.is_file():
            continue
        size = path.stat().st_size
        entry = {"rfilename": path.name, "size": size}
        if path.suffix == ".safetensors":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            entry["lfs"] = {"size": size, "sha256": digest}
        files.append(entry)
    return json.dumps({"sha": COMMIT, "siblings": files}).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/"):
            body = listing()
        elif f"/resolve/{COMMIT}/" in path and (CHECKPOINT / name).is_file():
            body = (CHECKPOINT / name).read_bytes()
        elif path == f"/{name}" and (FOLDER / name).is_file():
            body = (FOLDER / name).read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
