#!/usr/bin/env python3
"""Load test of `edge-lmm serve --http`.

Starts a server, lets several clients send requests of mixed kinds at once (short and long, streams,
images, hang-ups, malformed ones), and reports times and memory. Every reply but the intended ones is a
failure. Needs Python 3.9, no packages.

    python3 targets/load_test.py target/debug/edge-lmm models/demo/qwen2vl-tiny.bpk \\
        --image models/demo/shapes.png --clients 8 --requests 200
"""
import argparse
import base64
import collections
import http.client
import json
import pathlib
import random
import re
import subprocess
import threading
import time

CHAT = "/v1/chat/completions"


def start(program, model, options):
    """Starts a server on a free port; returns it and its port."""
    command = [program, "serve", model, "--http", "127.0.0.1:0", *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        found = re.search(r"listens on http://127\.0\.0\.1:(\d+)", line)
        if found:
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, int(found.group(1))
    raise SystemExit("the server did not start")


def resident(pid, key="RssAnon"):
    """Returns resident memory of a process in MiB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(key + r":\s+(\d+)", status).group(1)) / 1024


class Client:
    """Sends requests and counts the replies."""

    def __init__(self, port, image, seed):
        self.port, self.image, self.random = port, image, random.Random(seed)
        self.times, self.replies, self.failures = [], collections.Counter(), []

    def run(self, count):
        kinds = [self.short] * 5 + [self.long] * 2 + [self.stream] * 4
        kinds += [self.picture] * 4 + [self.hang_up] * 2 + [self.malformed] * 3
        for _ in range(count):
            kind = self.random.choice(kinds)
            begin = time.monotonic()
            try:
                answered = kind()
            except Exception as error:
                self.failures.append(f"{kind.__name__}: {error!r}")
                continue
            self.replies[kind.__name__] += 1
            if answered:
                self.times.append(time.monotonic() - begin)

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

    def send(self, body, path=CHAT):
        connection = self.connect()
        if not isinstance(body, (str, bytes)):
            body = json.dumps(body)
        connection.request("POST", path, body, {"content-type": "application/json"})
        return connection, connection.getresponse()

    def ask(self, content, expected=200, **fields):
        """Sends a request until it is not rejected for the length of the queue."""
        while True:
            messages = [{"role": "user", "content": content}]
            connection, reply = self.send({"messages": messages, **fields})
            text = reply.read().decode()
            connection.close()
            if reply.status == 429:
                self.replies["429"] += 1
                time.sleep(0.05)
                continue
            assert reply.status == expected, (reply.status, text[:200])
            return text

    def short(self):
        text = self.ask(f"number {self.random.random()}", max_tokens=self.random.randint(1, 8))
        assert json.loads(text)["usage"]["completion_tokens"] >= 1
        return True

    def long(self):
        self.ask("word " * self.random.randint(100, 600), max_tokens=32, temperature=1.0)
        return True

    def stream(self):
        text = self.ask("tell", stream=True, max_tokens=16, logprobs=self.random.random() < 0.3)
        assert text.endswith("data: [DONE]\n\n"), text[-100:]
        return True

    def picture(self):
        url = "data:image/png;base64," + self.image
        part = {"type": "image_url", "image_url": {"url": url}}
        content = [part, {"type": "text", "text": "how many shapes are there?"}]
        text = self.ask(content)
        answer = json.loads(text)["choices"][0]["message"]["content"]
        assert answer == "two", answer
        return True

    def hang_up(self):
        connection = self.connect()
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1000}
        body.update(stream=self.random.random() < 0.5, ignore_eos=True)
        body = json.dumps(body)
        part = self.random.choice([len(body), len(body), len(body) // 2])
        connection.putrequest("POST", CHAT)
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(len(body)))
        connection.endheaders()
        connection.send(body[:part].encode())
        time.sleep(self.random.random() * 0.05)
        connection.close()
        return False

    def malformed(self):
        bad = self.random.choice(["{", "[]", '{"messages": 5}', b"\xff\xfe", '{"messages": []}',
                                  '{"messages": [{"role": "user", "content": [{"type": "x"}]}]}'])
        connection, reply = self.send(bad)
        body = json.loads(reply.read())
        connection.close()
        assert reply.status == 400 and body["error"]["message"], (reply.status, body)
        return False


def percentile(values, share):
    return values[min(len(values) - 1, int(share * len(values)))] * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--image", required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1, help="repeats, with memory after each")
    parser.add_argument("--option", action="append", default=[], help="option of the server")
    arguments = parser.parse_args()
    image = base64.b64encode(pathlib.Path(arguments.image).read_bytes()).decode()
    server, port = start(arguments.program, arguments.model, arguments.option)
    failures, times, replies = [], [], collections.Counter()
    try:
        Client(port, image, 0).run(20)
        print(f"memory at the start: {resident(server.pid):.1f} MiB")
        begin = time.monotonic()
        for round_ in range(arguments.rounds):
            clients = [Client(port, image, f"{round_} {i}") for i in range(arguments.clients)]
            run = [threading.Thread(target=c.run, args=[arguments.requests]) for c in clients]
            for thread in run:
                thread.start()
            for thread in run:
                thread.join()
            for client in clients:
                failures += client.failures
                times += client.times
                replies += client.replies
            memory, peak = resident(server.pid), resident(server.pid, "VmHWM")
            print(f"round {round_ + 1}: memory {memory:.1f} MiB, peak with weights {peak:.1f} MiB",
                  flush=True)
        seconds = time.monotonic() - begin
        total = arguments.rounds * arguments.clients * arguments.requests
        print(f"{total} requests in {seconds:.1f} s: {dict(replies)}")
        times.sort()
        shares = ", ".join(f"p{p} {percentile(times, p / 100):.0f} ms" for p in (50, 95, 99))
        print(f"{len(times)} answers: {shares}, largest {times[-1] * 1e3:.0f} ms")
        for failure in failures[:10]:
            print("failure:", failure)
        print(f"{len(failures)} failures")
    finally:
        server.kill()
        server.wait()
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
