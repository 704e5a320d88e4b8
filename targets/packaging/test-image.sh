#!/bin/sh
# Builds the container image for this machine with buildah, checks what it contains and how it starts, and
# asks the program in its file system a question over HTTP, as the image's user. Requires root, curl and
# python3; installs buildah if it is missing.
#
# Usage: targets/packaging/test-image.sh PROGRAM
#   PROGRAM  the static edge-lmm: target/devices/host-static/edge-lmm of
#            `cargo xtask cross --target host --static`
set -eu
[ $# = 1 ] || {
    echo "error: usage: $0 PROGRAM" >&2
    exit 2
}
program=$(realpath "$1")
cd "$(dirname "$0")/../.."
command -v buildah >/dev/null || {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends buildah >/dev/null
}

work=$(mktemp -d)
server=
image=
# Kernel features that containers usually need may be missing here: files are copied, and nothing is run
# while the image is built.
buildah() {
    command buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$@"
}
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    [ -z "$image" ] || umount "$image/proc" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

architecture=$(dpkg --print-architecture)
mkdir -p "$work/context/$architecture"
cp "$program" "$work/context/$architecture/edge-lmm"
cp LICENSE "$work/context/"

echo "== build"
buildah build --isolation chroot --platform "linux/$architecture" -f targets/packaging/Dockerfile -t edge-lmm \
    "$work/context"
container=$(buildah from edge-lmm)
image=$(buildah mount "$container")

echo "== content"
(cd "$image" && find . -type f | sort) >"$work/files"
cat "$work/files"
printf './LICENSE\n./edge-lmm\n' | cmp - "$work/files"
buildah inspect --type image edge-lmm >"$work/image.json"
python3 - "$work/image.json" <<'PYTHON'
import json, sys

config = json.load(open(sys.argv[1]))["OCIv1"]["config"]
assert config["User"] == "65532:65532", config
assert config["Entrypoint"] == ["/edge-lmm"], config
assert "8080/tcp" in config["ExposedPorts"], config
PYTHON

echo "== the program as the image's user"
mkdir -p "$image/proc"
mount -t proc proc "$image/proc"
in_image() {
    chroot --userspec=65532:65532 "$image" "$@"
}
in_image /edge-lmm --version
in_image /edge-lmm demo --no-html
cp models/demo/qwen2vl-tiny.bpk "$image/models/model.bpk"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
in_image /edge-lmm serve /models/model.bpk --http "127.0.0.1:$port" &
server=$!
for _ in $(seq 300); do
    if curl -fs "http://127.0.0.1:$port/health" >/dev/null; then break; fi
    sleep 0.1
done
python3 targets/packaging/image_question.py models/demo/shapes.png >"$work/request.json"
curl -fsS "http://127.0.0.1:$port/v1/chat/completions" -H 'Content-Type: application/json' \
    -d "@$work/request.json" >"$work/reply.json"
grep -q '"content":"two"' "$work/reply.json" || {
    cat "$work/reply.json" >&2
    exit 1
}
echo "ok"
