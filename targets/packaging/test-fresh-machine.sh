#!/bin/sh
# Runs the commands of the README that lead from nothing to an answer, in a fresh Debian root without Rust
# or Python and as an ordinary user: install.sh from a release, `pull`, `serve --http` and a question with
# curl. Release and hub are a local server; the hub's repository is a small model of the tests. Requires
# root, python3, and programs with the Cargo feature `pull`; installs debootstrap if it is missing.
#
# Usage: targets/packaging/test-fresh-machine.sh PROGRAMS [ROOT]
#   PROGRAMS  folder with edge-lmm and edge-lmm-convert
#   ROOT      is kept and reused if given
set -eu
[ $# -ge 1 ] || {
    echo "error: usage: $0 PROGRAMS [ROOT]" >&2
    exit 2
}
programs=$(realpath "$1")
work=$(mktemp -d)
root=$(realpath -m "${2:-$work/root}")
cd "$(dirname "$0")/../.."
# The mirror of this machine, unless another one is given.
# shellcheck disable=SC2016 # apt's own variable
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' | grep -v security | sort -u | head -n 1)}
[ -n "$mirror" ] || {
    echo "error: no Debian mirror is configured; set DEBIAN_MIRROR" >&2
    exit 1
}
suite=${DEBIAN_SUITE:-bookworm}
command -v debootstrap >/dev/null || {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends debootstrap debian-archive-keyring >/dev/null
}

hub_process=
group=
cleanup() {
    # The server is a child of the shell that runs the commands: their group ends.
    [ -z "$group" ] || kill -- "-$group" 2>/dev/null || true
    [ -z "$hub_process" ] || kill "$hub_process" 2>/dev/null || true
    umount "$root/dev/null" "$root/proc" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

if [ ! -e "$root/etc/debian_version" ]; then
    echo "== a Debian root with curl"
    debootstrap --variant=minbase --include=curl "$suite" "$root" "$mirror" >"$work/debootstrap.log" ||
        { tail -n 20 "$work/debootstrap.log"; exit 1; }
    chroot "$root" useradd --create-home --shell /bin/sh user
fi
# A root that is used again has the files of the last run.
rm -rf "$root/home/user"
chroot "$root" sh -c "cp -r /etc/skel /home/user && chown -R user:user /home/user"
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
# A node of the root's own could be on a file system without devices.
[ -c "$root/dev/null" ] || : >"$root/dev/null"
mountpoint -q "$root/dev/null" || mount --bind /dev/null "$root/dev/null"
for tool in cargo rustc cc python3; do
    if chroot "$root" sh -c "command -v $tool"; then
        echo "error: the root is not fresh: it has $tool" >&2
        exit 1
    fi
done

echo "== a release and a hub on a local port"
web=$work/web
version=9.9.9
mkdir -p "$web" "$work/release/usr/bin" "$work/release/usr/share/doc/edge-lmm"
cp "$programs/edge-lmm" "$programs/edge-lmm-convert" "$work/release/usr/bin"
cp LICENSE "$work/release/usr/share/doc/edge-lmm/copyright"
tar -czf "$web/edge-lmm-$version-host.tar.gz" -C "$work/release" usr
(cd "$web" && sha256sum -- *.tar.gz >SHA256SUMS)
python3 targets/packaging/local_hub.py "$web" models/tests/data/qwen2vl-tiny >"$work/port" &
hub_process=$!
for _ in $(seq 100); do
    [ ! -s "$work/port" ] || break
    sleep 0.1
done
hub=http://127.0.0.1:$(cat "$work/port")
# As the release workflow does.
sed "s,@RELEASE@,$hub,; s,@VERSION@,$version," targets/packaging/install.sh >"$web/install.sh"

# block LANGUAGE HEADING: the first code block of that language below a heading of the README.
block() {
    awk -v language="\`\`\`$1" -v heading="## $2" '
        $0 == heading { is_below = 1 }
        is_below && is_inside && $0 == "```" { exit }
        is_inside { print }
        is_below && $0 == language { is_inside = 1 }
    ' README.md
}
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
replaced="s,RELEASE,$hub,; s,127.0.0.1:8080,127.0.0.1:$port,g"
block sh,needs-network "From nothing to an answer" | sed "$replaced" >"$work/start"
block sh Serve | sed "$replaced" >"$work/question"
if [ "$(wc -l <"$work/start")" != 3 ] || ! grep -q "serve" "$work/start" || ! grep -q "^curl" "$work/question"; then
    echo "error: the README has other commands: $(cat "$work/start" "$work/question")" >&2
    exit 1
fi

# user FILE: runs the commands of a file as an ordinary user of the root, in a group of processes.
user() {
    setsid chroot --userspec=user:user "$root" env -i HOME=/home/user PATH=/usr/bin:/bin HF_ENDPOINT="$hub" \
        sh -euc "cd && echo \$\$ >group && $(cat "$1")"
}
echo "== the commands of the README"
cat "$work/start"
user "$work/start" >"$work/server.log" 2>&1 &
server=$!
for _ in $(seq 600); do
    if curl -fs "http://127.0.0.1:$port/health" >/dev/null; then break; fi
    kill -0 "$server" 2>/dev/null || {
        echo "error: the server does not start: $(cat "$work/server.log")" >&2
        exit 1
    }
    sleep 0.1
done
group=$(cat "$root/home/user/group")
cat "$work/server.log"
cat "$work/question"
user "$work/question" >"$root/home/user/reply.json"
echo
python3 - "$root/home/user/reply.json" <<'PYTHON'
import json, sys

reply = json.load(open(sys.argv[1]))
assert reply["choices"][0]["message"]["content"], reply
print("the answer:", reply["choices"][0]["message"]["content"])
PYTHON

echo "== a question about an image, and the page"
python3 targets/packaging/image_question.py models/demo/shapes.png >"$root/home/user/request.json"
cat >"$work/image" <<SHELL
curl -fsS http://127.0.0.1:$port/v1/chat/completions -H 'Content-Type: application/json' -d @request.json >shapes.json
grep -q '"content":"two"' shapes.json || { cat shapes.json; exit 1; }
curl -fsS http://127.0.0.1:$port/ | grep -qi "<!doctype html>"
.local/bin/edge-lmm demo --no-html >/dev/null
.local/bin/edge-lmm list
SHELL
user "$work/image"
echo "ok"
