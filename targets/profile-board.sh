#!/usr/bin/env bash
# Measures this program on a board over ssh and brings the results back: `edge-lmm doctor`, a
# profile of every record, and `edge-lmm bench paper`, as JSON, CSV, pages and a log.
#
#     targets/profile-board.sh USER@HOST [OPTIONS] [-- OPTIONS OF profile AND bench paper]
#
#     --program PATH         program for the board [default: target/release/edge-lmm]
#     --record FILE.bpk      record to measure; may be repeated [default: the embedded model, which
#                            has no profile]
#     --out DIR              folder for the results [default: board-HOST]
#     --profile-option OPT   option of `edge-lmm profile` alone, such as --image-size=224,448
#     --paper-option OPT     option of `edge-lmm bench paper` alone, such as --minutes=5
#     --ssh-option OPT       option of ssh, such as Port=2222; may be repeated
#     --poll SECONDS         time between two looks at the board [default: 10]
#     --keep                 keep program, records and results on the board
#
# The board needs a login with a key and a POSIX shell. Files are copied by rsync if both machines
# have it, otherwise by scp; those that the board has already are not copied again. The measurements
# do not depend on the connection: if it is lost, or this script ends, they go on, and the same
# command continues where it was. Measurements that failed are repeated by the same command, too.
# Paths within options are those of the board.
set -euo pipefail

# Folder on the board, in the home folder.
readonly folder=edge-lmm-board
# Looks at the board that may fail one after the other.
readonly most_failures=120

fail() {
    echo "error: $1" >&2
    exit 1
}

usage() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit "$1"
}

host='' program='' out='' keep='' poll=10
records=() profile_options=() paper_options=() both_options=()
ssh_options=(-o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15)
while [ $# -gt 0 ]; do
    case $1 in
    --program | --record | --out | --profile-option | --paper-option | --ssh-option | --poll)
        [ $# -gt 1 ] || fail "$1 needs a value; see $0 --help"
        case $1 in
        --program) program=$2 ;;
        --record) records+=("$2") ;;
        --out) out=$2 ;;
        --profile-option) profile_options+=("$2") ;;
        --paper-option) paper_options+=("$2") ;;
        --ssh-option) ssh_options+=(-o "$2") ;;
        --poll) poll=$2 ;;
        esac
        shift 2
        ;;
    --keep) keep=1 && shift ;;
    --) shift && both_options=("$@") && break ;;
    -h | --help) usage 0 ;;
    -*) fail "unknown option $1; see $0 --help (options of edge-lmm follow --)" ;;
    *)
        [ -z "$host" ] || fail "unexpected argument $1; records are given as --record FILE.bpk"
        host=$1
        shift
        ;;
    esac
done
[ -n "$host" ] || usage 2 >&2
case $poll in '' | *[!0-9]*) fail "--poll $poll: expected seconds, such as 10" ;; esac
out=${out:-board-$(printf '%s' "${host##*@}" | tr -c '[:alnum:].-' '_')}
program=${program:-$(dirname "$0")/../target/release/edge-lmm}

# Quotes words for a POSIX shell.
quoted() {
    local word
    for word in "$@"; do
        printf " '%s'" "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")"
    done
}

# Runs a command of a POSIX shell on the board. The exit code is 255 if there is no connection.
remote() {
    # shellcheck disable=SC2029 # quoted for the board
    ssh "${ssh_options[@]}" "$host" "exec sh -c$(quoted "$1")"
}

# As `remote`, in the folder on the board, without standard input.
in_folder() {
    remote "cd $folder && $1" </dev/null
}

checksum() {
    if command -v sha256sum >/dev/null; then sha256sum <"$1"; else shasum -a 256 <"$1"; fi | cut -d ' ' -f 1
}

check_inputs() {
    local record names=''
    [ -f "$program" ] || fail "there is no program $program; build it with \`cargo xtask cross --target DEVICE\` and name it with --program target/devices/DEVICE/edge-lmm"
    for record in ${records[@]+"${records[@]}"}; do
        [ -f "$record" ] || fail "there is no record $record; write it with edge-lmm-convert"
        record=$(basename "$record" .bpk)
        case $record in
        -* | *[!A-Za-z0-9._+-]*) fail "record $record: expected a name of letters, digits and . _ + -; rename the file" ;;
        esac
        case " $names " in
        *" $record "*) fail "two records have the name $record; rename one of them" ;;
        esac
        names="$names $record"
    done
    mkdir -p "$out" || fail "cannot create the folder $out; choose another one with --out"
}

# Prints the processor architecture of an ELF file, as `uname -m` names it.
architecture() {
    [ "$(head -c 4 "$1" | od -An -tx1 | tr -d ' \n')" = 7f454c46 ] || fail "$1 is not a program for Linux (ELF)"
    case $(od -An -tu1 -j 18 -N 2 "$1" | tr -s ' ' | sed 's/^ //; s/ *$//') in
    '62 0') echo x86_64 ;;
    '183 0') echo aarch64 ;;
    '40 0') echo armv7l ;;
    '243 0') echo riscv64 ;;
    *) echo unknown ;;
    esac
}

check_board() {
    local machine found
    machine=$(remote 'uname -m' </dev/null) ||
        fail "cannot log in to $host: check that \`ssh $host\` works without a password (ssh-copy-id $host installs your key)"
    found=$(architecture "$program")
    [ "$found" = "$machine" ] ||
        fail "$host has the architecture $machine, $program is built for $found: build it with \`cargo xtask cross --target DEVICE\` and name it with --program target/devices/DEVICE/edge-lmm"
    remote "mkdir -p $folder/records" </dev/null || fail "cannot create the folder $folder on $host; is its disk full?"
}

# Prints the state of the measurements on the board: none, running, died, done CODE or fetched CODE;
# and, in a second line, the checksum of their plan.
state() {
    # The process is looked for before its exit code, which it writes before it ends.
    # shellcheck disable=SC2016 # expanded on the board
    in_folder 'pid=$(cat pid 2>/dev/null) || pid=none
        process=died
        ! grep -q measure.sh "/proc/$pid/cmdline" 2>/dev/null || process=running
        if [ -s code ]; then
            word=done; [ ! -f fetched ] || word=fetched
            echo "$word $(cat code)"
        elif [ "$pid" = none ]; then echo none
        else echo "$process"; fi
        cat plan 2>/dev/null || echo none'
}

# Copies a file to a path in the folder on the board, if the board does not have it.
send() {
    local file=$1 path=$2 sum
    sum=$(checksum "$file")
    in_folder "echo '$sum  $path' | sha256sum -c >/dev/null 2>&1" && return
    echo "copying $file ($(($(wc -c <"$file") / 1048576)) MiB)"
    check_space "$file"
    if command -v rsync >/dev/null && in_folder 'command -v rsync >/dev/null'; then
        rsync --partial --inplace -e "ssh$(quoted "${ssh_options[@]}")" "$file" "$host:$folder/incoming"
    else
        scp -q "${ssh_options[@]}" "$file" "$host:$folder/incoming"
    fi || fail "$file was not copied to $host; the same command tries again"
    in_folder "echo '$sum  incoming' | sha256sum -c >/dev/null && mv incoming '$path'" ||
        fail "$file is damaged on $host, or it has no sha256sum; the same command tries again"
}

check_space() {
    local needed free
    needed=$(($(wc -c <"$1") / 1024 + 65536))
    free=$(in_folder "df -Pk . | awk 'NR == 2 { print \$4 }'")
    [ "${free:-0}" -ge "$needed" ] ||
        fail "$host has $((${free:-0} / 1024)) MiB of free disk space, $((needed / 1024)) MiB are needed for $1: delete files there"
}

# Prints the program that runs on the board, in the folder. A step that is complete is skipped, so
# that a run can be continued.
measure_script() {
    local record name
    cat <<'END'
# Written by targets/profile-board.sh.
echo $$ >pid
mkdir -p results complete
failed=0
step() { # NAME OUTPUT COMMAND...
    name=$1 output=results/$2
    shift 2
    [ ! -f "complete/$name" ] || return 0
    echo "== $name"
    code=0
    "$@" >"$output.part" || code=$?
    [ ! -s "$output.part" ] || mv "$output.part" "$output"
    rm -f "$output.part"
    if [ $code = 0 ]; then touch "complete/$name"; else
        failed=1
        echo "== $name failed with exit code $code"
    fi
}
media() { # RECORD: options for synthetic media
    case $(./edge-lmm inspect "$1" --json | sed -n 's/.*"model_type": *"\([^"]*\)".*/\1/p') in
    qwen2_audio) echo --audio-seconds=5 ;;
    qwen2_vl | qwen2_5_vl | llava | blip-2 | phi3_v) echo --image-size=448 ;;
    esac
}
step doctor doctor.json ./edge-lmm doctor --json
END
    local both profile
    both=$(quoted ${both_options[@]+"${both_options[@]}"})
    profile=$(quoted ${profile_options[@]+"${profile_options[@]}"})
    local paths=()
    for record in ${records[@]+"${records[@]}"}; do
        name=$(basename "$record" .bpk)
        paths+=("records/$name.bpk")
        echo "step profile-$name profile-$name.json ./edge-lmm profile records/$name.bpk --json" \
            "--html results/profile-$name.html --csv results/profile-$name.csv" \
            "${profile:-\$(media records/$name.bpk)}$both"
    done
    echo "step paper paper.json ./edge-lmm bench paper$(quoted ${paths[@]+"${paths[@]}"})" \
        "--out results/paper --json --html results/paper.html --csv results/paper.csv" \
        "$(quoted ${paper_options[@]+"${paper_options[@]}"})$both"
    # shellcheck disable=SC2016 # expanded on the board
    echo 'echo $failed >code'
}

# Starts the measurements on the board; a folder of results with another plan is emptied.
start() {
    local plan=$1 known=$2
    in_folder "rm -f incoming code pid fetched; [ '$known' = '$plan' ] || rm -rf results complete; mkdir -p results"
    measure_script | remote "cd $folder && cat >measure.sh && echo '$plan' >plan" || fail "cannot write to $host; is its disk full?"
    # The measurements must not end with the connection.
    # shellcheck disable=SC2016 # expanded on the board
    in_folder 'session=$(command -v setsid) || session=
        nohup $session sh measure.sh >>results/log.txt 2>&1 </dev/null &
        for _ in 1 2 3 4 5; do [ -s pid ] || sleep 1; done' ||
        fail "cannot start the measurements on $host"
}

# Waits for the end of the measurements and shows their log.
follow() {
    local shown=0 failures=0 answer
    while :; do
        if answer=$(state && in_folder "tail -n +$((shown + 1)) results/log.txt"); then
            failures=0
            local lines
            lines=$(printf '%s\n' "$answer" | tail -n +3)
            if [ -n "$lines" ]; then
                printf '%s\n' "$lines"
                shown=$((shown + $(printf '%s\n' "$lines" | wc -l)))
            fi
            case $answer in
            running*) ;;
            done* | fetched*) return ;;
            *) fail "the measurements on $host ended early (was it restarted?); the same command continues them" ;;
            esac
        else
            failures=$((failures + 1))
            [ $failures -lt $most_failures ] ||
                fail "$host cannot be reached any more; the measurements go on there, and the same command continues"
            [ $failures -gt 1 ] || echo "the connection to $host is lost; the measurements go on there; trying again" >&2
        fi
        sleep "$poll"
    done
}

# Brings the results back.
fetch() {
    local archive=$out/.results.tar
    in_folder 'tar cf - -C results .' >"$archive" ||
        fail "the results were not copied from $host; the same command tries again"
    tar xf "$archive" -C "$out" || fail "cannot write to $out; the results are still on $host in $folder/results"
    rm -f "$archive"
}

main() {
    local plan now known code record
    check_inputs
    check_board
    plan=$({
        measure_script
        checksum "$program"
        for record in ${records[@]+"${records[@]}"}; do checksum "$record"; done
    } | { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; } | cut -d ' ' -f 1)
    now=$(state) || fail "the connection to $host is lost; the same command tries again"
    known=${now##*$'\n'}
    case $now in
    running*)
        [ "$known" = "$plan" ] ||
            fail "other measurements are running on $host: wait for them, or stop them with \`ssh $host 'pkill -g \$(cat $folder/pid)'\`"
        echo "the measurements on $host are already running"
        ;;
    'done 0'*) [ "$known" = "$plan" ] || now=none ;;
    fetched\ 0*) now=none known=none ;;
    esac
    case $now in
    running* | 'done 0'*) ;;
    *)
        send "$program" edge-lmm
        for record in ${records[@]+"${records[@]}"}; do send "$record" "records/$(basename "$record" .bpk).bpk"; done
        in_folder 'chmod +x edge-lmm && ./edge-lmm --version' ||
            fail "$program does not start on $host: its C library may be too old, or the system may have 32 bits; build with \`cargo xtask cross --static\`"
        start "$plan" "$known"
        ;;
    esac
    trap 'echo "stopped; the measurements go on on $host, and the same command continues" >&2; exit 130' INT TERM
    follow
    fetch
    code=$(in_folder 'cat code && touch fetched') || fail "the connection to $host is lost; the same command tries again"
    echo "results: $out"
    [ "$code" = 0 ] ||
        fail "some measurements failed, see $out/log.txt; the same command repeats them (\`ssh $host rm -r $folder\` removes them)"
    [ -n "$keep" ] || remote "rm -rf $folder" </dev/null
}

main
