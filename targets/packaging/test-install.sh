#!/bin/sh
# Installs a package into a fresh Debian root of its own architecture (amd64 on an x86-64 machine, arm64 under
# emulation) and shows that it works: the program answers, the unit file is sound and well confined, and the service's
# command answers a request over its socket as the service's user. Needs root, and installs debootstrap if it is missing.
#
# Usage: targets/packaging/test-install.sh PACKAGE.deb [ROOT]
#   ROOT is kept and used again, if given.
set -eu
package=$(realpath "$1")
cd "$(dirname "$0")/../.."
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
suite=${DEBIAN_SUITE:-bookworm}
architecture=$(dpkg-deb -f "$package" Architecture)

command -v debootstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq debootstrap >/dev/null; }
work=$(mktemp -d)
root=$(realpath -m "${2:-$work/root}")
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    umount "$root/proc" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

if [ ! -e "$root/etc/debian_version" ]; then
    echo "== a Debian root for $architecture"
    if [ "$architecture" = "$(dpkg --print-architecture)" ]; then
        debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$work/debootstrap.log" ||
            { tail -n 20 "$work/debootstrap.log"; exit 1; }
    else
        # Foreign programs start by themselves where binfmt knows the emulator.
        debootstrap --variant=minbase --arch="$architecture" "$suite" "$root" "$mirror" >"$work/debootstrap.log" ||
            { tail -n 20 "$work/debootstrap.log"; exit 1; }
    fi
fi
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"

echo "== install"
cp "$package" "$root/tmp/package.deb"
chroot "$root" dpkg -i /tmp/package.deb
chroot "$root" dpkg -V edge-lmm
chroot "$root" edge-lmm --version
chroot "$root" edge-lmm demo
chroot "$root" id edge-lmm

echo "== unit file"
unit="edge-lmm@.service"
# The unit is checked outside of the root, where its program is elsewhere.
mkdir -p "$work/units"
sed "s,/usr/bin/edge-lmm,$root/usr/bin/edge-lmm,; /^Documentation=/d" "$root/usr/lib/systemd/system/$unit" \
    >"$work/units/edge-lmm@test.service"
systemd-analyze verify "$work/units/edge-lmm@test.service"
# Exposure of at most 2.0 of 10 ("OK" to "safe" in systemd's words).
systemd-analyze security --offline=yes --threshold=20 "$work/units/edge-lmm@test.service" >"$work/security.txt" ||
    { cat "$work/security.txt"; exit 1; }
tail -n 1 "$work/security.txt"

echo "== service"
cp models/demo/qwen2vl-tiny.bpk "$root/var/lib/edge-lmm/test.bpk"
install -d -o "$(chroot "$root" id -u edge-lmm)" -g "$(chroot "$root" id -g edge-lmm)" -m 750 "$root/run/edge-lmm/test"
# What the unit starts, as the user that it names.
# shellcheck disable=SC2016 # the variable is in the file
command=$(sed -n 's/^ExecStart=//p' "$root/usr/lib/systemd/system/$unit" | sed 's/%i/test/g; s/ \$EDGE_LMM_OPTIONS//')
# shellcheck disable=SC2086 # a command line
chroot "$root" setpriv --reuid=edge-lmm --regid=edge-lmm --clear-groups --no-new-privs $command &
server=$!
python3 - "$root/run/edge-lmm/test/socket" models/demo/shapes.png <<'PYTHON'
import base64, json, socket, sys, time

path, picture = sys.argv[1:]
client = socket.socket(socket.AF_UNIX)
for attempt in range(300):
    try:
        client.connect(path)
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit(f"no server on {path}")
image = base64.b64encode(open(picture, "rb").read()).decode()
request = {"id": 1, "prompt": "how many shapes are there?", "images": [{"base64": image}]}
client.sendall(json.dumps(request).encode() + b"\n")
reply = json.loads(client.makefile().readline())
assert reply.get("text") == "two", reply
print("the service answers", repr(reply["text"]))
PYTHON
kill "$server"
server=

echo "== remove"
chroot "$root" dpkg -r edge-lmm
[ ! -e "$root/usr/bin/edge-lmm" ]
rm -f "$root/var/lib/edge-lmm/test.bpk"
echo "ok"
