#!/bin/sh
# Installs a package into a fresh Debian root of its architecture (amd64 on an x86-64 machine, arm64
# under emulation) and tests it: the program answers, the unit file is valid and well confined, and
# the service answers a request over its socket, started by systemd in a container or, under
# emulation, by this script as the service's user. Requires root, and installs debootstrap and
# systemd's tools if they are missing.
#
# Usage: targets/packaging/test-install.sh PACKAGE.deb [ROOT]
#   ROOT is kept and reused if given.
set -eu
package=$(realpath "$1")
cd "$(dirname "$0")/../.."
# The mirror of this machine, unless another one is given.
# shellcheck disable=SC2016 # apt's own variable
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' | grep -v security | sort -u | head -n 1)}
[ -n "$mirror" ] || {
    echo "error: no Debian mirror is configured; set DEBIAN_MIRROR" >&2
    exit 1
}
suite=${DEBIAN_SUITE:-bookworm}
architecture=$(dpkg-deb -f "$package" Architecture)

missing=
command -v debootstrap >/dev/null || missing="$missing debootstrap debian-archive-keyring"
command -v systemd-analyze >/dev/null || missing="$missing systemd"
command -v systemd-nspawn >/dev/null || missing="$missing systemd-container"
# shellcheck disable=SC2086 # a list of words
[ -z "$missing" ] || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null; }
work=$(mktemp -d)
root=$(realpath -m "${2:-$work/root}")
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    umount "$root/proc" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

if [ "$architecture" = "$(dpkg --print-architecture)" ]; then native=1; else native=; fi
if [ ! -e "$root/etc/debian_version" ]; then
    echo "== a Debian root for $architecture"
    # binfmt runs programs for another architecture in the emulator.
    debootstrap --variant=minbase --arch="$architecture" --include=netcat-openbsd,systemd-sysv,udev "$suite" "$root" \
        "$mirror" >"$work/debootstrap.log" || { tail -n 20 "$work/debootstrap.log"; exit 1; }
fi
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"

echo "== install"
cp "$package" "$root/tmp/package.deb"
chroot "$root" dpkg -i /tmp/package.deb
chroot "$root" dpkg -V edge-lmm
chroot "$root" edge-lmm --version
chroot "$root" edge-lmm-convert --version
chroot "$root" edge-lmm demo --no-html
chroot "$root" id edge-lmm

echo "== unit file"
unit="edge-lmm@.service"
units="$root/usr/lib/systemd/system"
# The unit is checked outside of the root, so the path of its program differs.
mkdir -p "$work/units"
sed "s,/usr/bin/edge-lmm,$root/usr/bin/edge-lmm,; /^Documentation=/d" "$units/$unit" \
    >"$work/units/edge-lmm@test.service"
[ ! -d "$units/$unit.d" ] || cp -r "$units/$unit.d" "$work/units/edge-lmm@test.service.d"
systemd-analyze verify "$work/units/edge-lmm@test.service"
# Exposure of at most 2.0 of 10 ("OK" to "safe" in systemd's words).
systemd-analyze security --offline=yes --threshold=20 "$work/units/edge-lmm@test.service" >"$work/security.txt" ||
    { cat "$work/security.txt"; exit 1; }
tail -n 1 "$work/security.txt"

echo "== service"
cp models/demo/qwen2vl-tiny.bpk "$root/var/lib/edge-lmm/test.bpk"
python3 - models/demo/shapes.png >"$root/root/request.json" <<'PYTHON'
import base64, json, sys

image = base64.b64encode(open(sys.argv[1], "rb").read()).decode()
print(json.dumps({"id": 1, "prompt": "how many shapes are there?", "images": [{"base64": image}]}))
PYTHON
rm -f "$root/root/reply.json"
if [ -n "$native" ]; then
    # systemd starts the unit with full confinement; a second unit is its client and shuts the
    # container down.
    echo 'EDGE_LMM_OPTIONS=--mlock --prefault' >"$root/etc/edge-lmm/test.conf"
    cat >"$root/etc/systemd/system/check.service" <<'UNIT'
[Unit]
Wants=edge-lmm@test.service
After=edge-lmm@test.service
SuccessAction=poweroff
FailureAction=poweroff

[Service]
Type=oneshot
TimeoutStartSec=60
ExecStart=/bin/sh -c 'nc -U -N /run/edge-lmm/test/socket </root/request.json >/root/reply.json'
ExecStopPost=/bin/sh -c '(systemctl status --no-pager edge-lmm@test; journalctl --no-pager --boot --unit=edge-lmm@test) >/root/status.txt'
UNIT
    # The container has its own /proc; in that of this machine it would see foreign processes. It
    # may lock memory, for --mlock.
    umount "$root/proc"
    timeout 300 systemd-nspawn --quiet --directory="$root" --register=no --keep-unit --system-call-filter=@memlock --boot \
        systemd.unit=check.service >"$work/boot.log" 2>&1 || { cat "$work/boot.log"; exit 1; }
    sed -n 1,12p "$root/root/status.txt"
    rm "$root/etc/systemd/system/check.service" "$root/etc/edge-lmm/test.conf"
    mount -t proc proc "$root/proc"
else
    # systemd cannot confine emulated programs: runs the command of the unit as its user.
    install -d -o "$(chroot "$root" id -u edge-lmm)" -g "$(chroot "$root" id -g edge-lmm)" -m 750 \
        "$root/run/edge-lmm/test"
    device=$(find "$units/$unit" "$units/$unit.d" -type f -exec sed -n 's/^Environment=EDGE_LMM_DEVICE=//p' {} + \
        2>/dev/null | tail -n 1)
    command=$(sed -n 's/^ExecStart=//p' "$units/$unit" |
        sed "s/%i/test/g; s/\${EDGE_LMM_DEVICE}/$device/; s/ \$EDGE_LMM_OPTIONS//")
    # shellcheck disable=SC2086 # a command line
    chroot "$root" setpriv --reuid=edge-lmm --regid=edge-lmm --clear-groups --no-new-privs $command &
    server=$!
    for _ in $(seq 300); do
        [ ! -S "$root/run/edge-lmm/test/socket" ] || break
        sleep 0.1
    done
    chroot "$root" sh -c 'nc -U -N /run/edge-lmm/test/socket </root/request.json >/root/reply.json'
    kill "$server"
    server=
fi
python3 - "$root/root/reply.json" <<'PYTHON'
import json, sys

reply = json.load(open(sys.argv[1]))
assert reply.get("text") == "two", reply
print("the service answers", repr(reply["text"]))
PYTHON

echo "== remove"
chroot "$root" dpkg -r edge-lmm
[ ! -e "$root/usr/bin/edge-lmm" ]
rm -f "$root/var/lib/edge-lmm/test.bpk"
echo "ok"
