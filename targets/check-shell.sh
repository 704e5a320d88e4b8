#!/bin/sh
# Checks the syntax of all shell scripts and, if shellcheck is installed, their style.
#
# Usage: targets/check-shell.sh
set -eu
cd "$(dirname "$0")/.."

scripts=$(grep -rlE '^#!.*[ /](ba)?sh$' .ci targets --include='*.sh' --include=run --include='post*' --include=prerm \
    --exclude-dir=target)
for script in $scripts; do
    case $(head -n 1 "$script") in
    *bash) bash -n "$script" ;;
    *) sh -n "$script" ;;
    esac
done
if command -v shellcheck >/dev/null; then
    # shellcheck disable=SC2086 # names without special characters
    shellcheck $scripts
else
    echo "shellcheck is not installed: only the syntax was checked" >&2
fi
