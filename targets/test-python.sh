#!/bin/sh
# Builds the Python package as a wheel, installs it into a new virtual environment and runs its tests.
# The tests with PyTorch run if a Python of this machine has it (on Debian: python3-torch); it is not
# installed, because its wheel has gigabytes of CUDA. The first lines of pytest say what is tested.
#
# Usage: targets/test-python.sh [--pure | --module FILE]
#   --pure         does not build the wheel: tests only the profiler of PyTorch modules, from the sources
#   --module FILE  does not build the wheel: tests the sources with a module that cargo built
#                  (cargo build -p edge-lmm-python: target/debug/libedge_lmm_native.so)
set -eu
cd "$(dirname "$0")/.."

build=wheel
module=
case $#,${1:-} in
0,) ;;
1,--pure) build= ;;
2,--module)
    build=
    module=$2
    ;;
*)
    echo "error: $0: unknown arguments $*; expected --pure, --module FILE or nothing" >&2
    exit 2
    ;;
esac

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# A Python with PyTorch, or else the first one.
find_python() {
    for python in python3 /usr/bin/python3; do
        if "$python" -c 'import torch' >/dev/null 2>&1; then
            echo "$python"
            return
        fi
    done
    echo python3
}

target=${CARGO_TARGET_DIR:-target}
environment=$target/python-tests
python=$(find_python)
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "installing python3-venv"
    as_root apt-get update -qq
    as_root apt-get install -y -qq --no-install-recommends python3-venv
fi
# The site packages of the system have PyTorch.
"$python" -m venv --clear --system-site-packages "$environment"
pip() {
    "$environment/bin/python" -m pip install -q --disable-pip-version-check --root-user-action ignore "$@"
}
pip pytest==9.2.0 jsonschema==4.26.0 numpy pillow==13.0.0
version=$("$environment/bin/python" -c 'import torch; print(torch.__version__.split(".")[0])' 2>/dev/null || true)
case $version in
'') ;;
0 | 1) pip 'transformers>=4.45,<4.48' ;;
*) pip 'transformers>=4.45' ;;
esac
if [ -n "$build" ]; then
    pip maturin==1.16.0
    wheels=$target/python-wheels
    rm -rf "$wheels"
    # The profile of the other tests, whose builds of the dependencies are used again.
    "$environment/bin/maturin" build --locked --profile dev --manifest-path targets/python/Cargo.toml \
        --interpreter "$environment/bin/python" --out "$wheels"
    pip "$wheels"/*.whl
fi
if [ -n "$module" ]; then
    packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp -r targets/python/python/edge_lmm "$packages"
    cp "$module" "$packages/edge_lmm/_native.abi3.so"
fi
exec "$environment/bin/python" -m pytest targets/python
