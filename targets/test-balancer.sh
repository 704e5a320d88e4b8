#!/bin/sh
# Tests three servers behind HAProxy, with the configuration of docs/boards.md, on the loopback
# interface: turns of a conversation stay on one server and reuse its state, conversations spread
# over the servers, and a failed server is replaced. Requires haproxy (2.6 or later), curl and
# python3.
#
# Usage: targets/test-balancer.sh [PROGRAM [RECORD]]
set -eu
cd "$(dirname "$0")/.."
program=${1:-target/debug/edge-lmm}
record=${2:-models/demo/qwen2vl-tiny.bpk}
ports="18081 18082 18083"
proxy=18080

folder=$(mktemp -d)
cleanup() {
    for file in "$folder"/*.pid; do
        kill "$(cat "$file")" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap cleanup EXIT INT TERM

fail() {
    echo "error: $*" >&2
    exit 1
}

for port in $ports; do
    "$program" serve "$record" --http "127.0.0.1:$port" --threads 1 --max-tokens 8 \
        2>"$folder/$port.log" &
    echo $! >"$folder/$port.pid"
done
# The first block of the page is the configuration; the servers are those of this test.
# shellcheck disable=SC2086 # a list of words
python3 - "$folder/haproxy.cfg" "$proxy" $ports <<'PYTHON'
import pathlib, re, sys
path, proxy, *ports = sys.argv[1:]
page = pathlib.Path("docs/boards.md").read_text()
section = page.split("## HAProxy", 1)[1]
text = section.split("```", 2)[1].strip()
text = text.replace("bind :8080", f"bind 127.0.0.1:{proxy}")
text = re.sub(r"\n    server .*", "", text)
servers = [f"    server board{i} 127.0.0.1:{port} check inter 200ms" for i, port in enumerate(ports, 1)]
pathlib.Path(path).write_text("\n".join([text, *servers, ""]))
PYTHON
for port in $ports; do
    curl -sf --retry 60 --retry-delay 1 --retry-connrefused -o "$folder/health" "http://127.0.0.1:$port/health" ||
        fail "server $port does not start: $(cat "$folder/$port.log")"
done
haproxy -f "$folder/haproxy.cfg" -D -p "$folder/haproxy.pid"
curl -sf --retry 30 --retry-delay 1 --retry-connrefused -o "$folder/health" "http://127.0.0.1:$proxy/health"

# shellcheck disable=SC2086 # a list of words
python3 - "$proxy" "$folder" $ports <<'PYTHON'
import json, os, pathlib, signal, sys, time, urllib.request
proxy, folder, *ports = sys.argv[1:]
QUESTION = "how many shapes are there?"

def ask(conversation, messages):
    request = urllib.request.Request(
        f"http://127.0.0.1:{proxy}/v1/chat/completions",
        json.dumps({"messages": messages}).encode(),
        {"Content-Type": "application/json", "X-Conversation-Id": conversation},
    )
    return json.load(urllib.request.urlopen(request, timeout=60))

def answers(port):
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    lines = (line for line in text.splitlines() if line.startswith("edge_lmm_answers_total"))
    return sum(float(line.split()[-1]) for line in lines)

def turns(name, count):
    """Asks several times and returns the cached tokens of the later turns."""
    messages, cached = [], []
    for _ in range(count):
        messages.append({"role": "user", "content": f"{name}: {QUESTION}"})
        answer = ask(name, messages)
        text = answer["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": text})
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    return cached[1:]

before = {port: answers(port) for port in ports}
reused = turns("first", 3)
used = [port for port in ports if answers(port) > before[port]]
assert len(used) == 1, f"a conversation was answered by {used}"
assert all(reused), f"cached tokens of later turns: {reused}"
print(f"three turns on server {used[0]}, cached tokens {reused}")

for i in range(24):
    ask(f"other-{i}", [{"role": "user", "content": QUESTION}])
spread = {port: answers(port) - before[port] for port in ports}
assert all(count > 0 for count in spread.values()), f"answers of the servers: {spread}"
print(f"answers of the servers: {spread}")

os.kill(int(pathlib.Path(folder, f"{used[0]}.pid").read_text()), signal.SIGKILL)
time.sleep(1.5)
assert all(turns("first", 2)), "the conversation does not go on elsewhere"
print(f"server {used[0]} was replaced")
PYTHON
echo "the balancer works"
