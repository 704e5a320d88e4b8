"""Tests and benchmarks on a GPU; see gpu-check.sh. The comparison with PyTorch requires
`torch` and `transformers`."""

import argparse
import array
import importlib.util
import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib

DATA = pathlib.Path("models/tests/data")
# Promised tolerance for f32 records: norm of the difference over the norm of the values.
STAGE_TOLERANCE = 1e-3
# Number of golden samples per small model.
SAMPLES = 3
FAMILIES = ["qwen2vl-tiny", "qwen25vl-tiny", "llava-tiny", "blip2-tiny", "phi35v-tiny", "qwen2audio-tiny"]
# Inputs, which the project's own tests compare.
INPUTS = {"input_ids", "position_ids", "rope_delta", "grid_thw", "pixel_values", "input_features"}
IMAGE = 672
PREFILL = 512
DECODE = 64
# Required ratios of this project's times to PyTorch's (decode: PyTorch's to this project's).
LIMITS = {"vision": 1.0, "prefill": 1.2, "decode": 3.0}


class Check:
    def __init__(self, options):
        self.dry = options.dry_run
        folder = pathlib.Path(options.programs)
        self.program = str(folder / "edge-lmm")
        self.converter = str(folder / "edge-lmm-convert")
        self.device = options.device
        self.failures = []

    def run(self, *command, peak=None):
        """Runs a command and returns its output, or None in a dry run."""
        if self.dry:
            words = [word if len(word) < 100 else word[:20] + "..." for word in map(str, command)]
            print("  would run:", " ".join(words))
            return None
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        watch = Watch(process.pid) if peak is not None else None
        out, _ = process.communicate()
        if watch:
            peak.append(watch.stop())
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}")
        return out

    def step(self, name, action):
        print(f"== {name}", flush=True)
        start = time.monotonic()
        try:
            action()
        except Exception as error:  # every step is tried, and all failures are reported at the end
            print(f"  FAILED: {error}")
            self.failures.append(name)
        if not self.dry:
            print(f"  {time.monotonic() - start:.1f} s", flush=True)


class Watch(threading.Thread):
    """Records the peak memory of a process: on the GPU if nvidia-smi reports it, else of the machine (unified memory)."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.most, self.done = pid, 0, threading.Event()
        self.smi = shutil.which("nvidia-smi")
        self.before = available()
        self.start()

    def now(self):
        if self.smi:
            query = [self.smi, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
            rows = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
            pairs = [row.split(",") for row in rows if row.count(",") == 1]
            own = [used for pid, used in pairs if pid.strip() == str(self.pid) and used.strip().isdigit()]
            if own:
                return int(own[0]) << 20
        return max(0, self.before - available())

    def run(self):
        while not self.done.wait(0.1):
            self.most = max(self.most, self.now())

    def stop(self):
        self.done.set()
        self.join()
        return self.most


def available():
    """Returns the available memory of the machine in bytes."""
    text = pathlib.Path("/proc/meminfo").read_text()
    return int(re.search(r"MemAvailable:\s+(\d+)", text).group(1)) << 10


def tensors(path):
    """Reads the tensors of a safetensors file as arrays."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        values = array.array({"F32": "f", "I32": "i"}[entry["dtype"]])
        start, end = entry["data_offsets"]
        values.frombytes(data[8 + length + start : 8 + length + end])
        found[name] = values
    return found


def distance(found, expected):
    # Decoding steps are captured after the prompt, so the prompt's values come first.
    if len(found) < len(expected):
        raise RuntimeError(f"{len(found)} values, expected {len(expected)}")
    difference = sum((f - e) ** 2 for f, e in zip(found, expected))
    return (difference / max(sum(e * e for e in expected), 1e-30)) ** 0.5


def goldens(check, family, record, work):
    folder = DATA / "goldens" / family
    worst = (0.0, "nothing")
    stages = 0
    counted = ""
    samples = json.loads((folder / "index.json").read_text())["samples"]
    # A video consists of several files, which the command line expects as a folder.
    single = [sample for sample in samples if len(sample.get("media", [])) == 1]
    for sample in single[:SAMPLES]:
        media = folder / sample["media"][0]
        kind = "--audio" if media.suffix == ".wav" else "--image"
        dump = work / "stages.safetensors"
        out = check.run(
            check.program, "run", record, "--device", check.device, kind, media, "--prompt", sample["question"],
            "--max-tokens", len(sample["greedy16"]), "--ignore-eos", "--json", "--dump-stages", dump,
        )
        if out is None:
            continue
        report = json.loads(out)
        tokens, counted = report["tokens"], launches(report)
        if tokens != sample["greedy16"]:
            raise RuntimeError(f"sample {sample['id']}: tokens {tokens}, expected {sample['greedy16']}")
        found = tensors(dump)
        for name, expected in tensors(folder / f"sample_{sample['id']}.safetensors").items():
            stage = name.removesuffix("_head")
            if stage in INPUTS or stage not in found:
                continue
            stages += 1
            worst = max(worst, (distance(found[stage], expected), stage))
    if not check.dry:
        if stages == 0:
            raise RuntimeError("no stage was compared")
        print(f"  tokens identical; {stages} stages, largest difference {worst[0]:.1e} ({worst[1]}); {counted}")
        if not worst[0] <= STAGE_TOLERANCE:
            raise RuntimeError(f"{worst[1]} differs by {worst[0]:.1e}, allowed {STAGE_TOLERANCE}")


def launches(report):
    """Formats the kernel launches per decoded token, and per layer of the language model."""
    steps = max(len(report["tokens"]) - 1, 1)
    decode = [s for s in report["stages"] if s["stage"] == "decode"]
    total = sum(s["launches"] for s in decode if s["name"] == "decode")
    layers, of_layers = set(), 0
    for s in decode:
        found = re.match(r"text\.(?:decoder\.)?layers\.(\d+)\.", s["name"])
        if found:
            layers.add(found[1])
            of_layers += s["launches"]
    each = of_layers / steps / max(len(layers), 1)
    return f"{total / steps:.1f} launches a token, {each:.1f} a layer of {len(layers)}"


def convert(check, family, record, *options):
    check.run(check.converter, DATA / family, "-o", record, *options)


def questions(check, record):
    """Answers the question set on the GPU and on the CPU, and counts correct and differing answers."""
    reports = []
    for device in [check.device, "cpu"]:
        out = check.run(
            check.program, "eval", record, "--device", device, "--manifest", DATA / "questions/manifest.csv",
            "--skip-unsupported", "--json", "--limit", 20,
        )
        reports.append(out and json.loads(out))
    if check.dry:
        return
    gpu, cpu = reports
    answers = [{p["id"]: p["predicted"] for p in report["predictions"]} for report in reports]
    differing = sum(answers[0][id] != text for id, text in answers[1].items())
    print(f"  {gpu['right']} of {gpu['questions']} right on {check.device}, {cpu['right']} on cpu; {differing} differ")
    # The CPU rounds activations to 8 bits before products, the GPU does not.
    if differing > gpu["questions"] * 0.05:
        raise RuntimeError("more than one answer in twenty differs")


def image(path):
    """Writes a PNG of colored stripes."""
    row = b"\0" + b"".join(bytes((x % 256, 3 * x % 256, 7 * x % 256)) for x in range(IMAGE))

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", IMAGE, IMAGE, 8, 2, 0, 0, 0)
    body = zlib.compress(row * IMAGE)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def times(check, record, work):
    """Returns this project's times in ms (image encoder, prefill, decoding) and its peak memory in bytes."""
    shown = work / "image.png"
    image(shown)
    words = " ".join(["one"] * (PREFILL - 32))
    result, peak = {}, []
    for name, options in {
        "vision": ["--image", shown, "--prompt", "What is this?", "--max-tokens", 2],
        "prefill": ["--prompt", words, "--max-tokens", DECODE],
    }.items():
        # First run compiles, second run is timed.
        for _ in range(2):
            out = check.run(
                check.program, "run", record, "--device", check.device, *options, "--ignore-eos", "--json",
                "--temperature", 0, peak=peak,
            )
        if out is None:
            continue
        report = json.loads(out)
        stage = {s["name"]: s["ms"] for s in report["stages"]}
        if name == "vision":
            result["vision"] = stage["vision"]
        else:
            result |= {"tokens": report["prompt_tokens"], "prefill": stage["prefill"]}
            result["decode"] = stage["decode"] / max(len(report["tokens"]) - 1, 1)
            print(f"  {launches(report)}")
    return result, max(peak, default=0)


def torch_times(check, checkpoint, tokens):
    """Returns the times and peak memory of PyTorch, in a separate process like edge-lmm."""
    device = "cpu" if check.device == "cpu" else "cuda"
    peak = []
    out = check.run(
        sys.executable, __file__, "--torch", checkpoint, "--torch-tokens", tokens, "--torch-device", device, peak=peak,
    )
    result = json.loads(out.splitlines()[-1])
    return result["ms"], peak[0], result["bandwidth"]


def torch_main(checkpoint, tokens, device):
    """Prints PyTorch's times: `transformers` in bfloat16 with SDPA, random weights of the checkpoint's sizes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def timed(call, repeat):
        call()
        wait()
        start = time.perf_counter()
        for _ in range(repeat):
            last = call()
        wait()
        return (time.perf_counter() - start) * 1e3 / repeat, last

    config = AutoConfig.from_pretrained(checkpoint)
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        # The number format in a configuration overrides the default.
        model = kind.from_config(config, attn_implementation="sdpa").to(torch.bfloat16).eval()
    # Disables end-of-sequence tokens.
    model.generation_config.eos_token_id = None
    result = {}
    with torch.inference_mode():
        if config.model_type in ("qwen2_vl", "qwen2_5_vl"):
            vision = config.vision_config
            side = IMAGE // vision.patch_size
            width = 3 * vision.temporal_patch_size * vision.patch_size**2
            pixels = torch.randn(side * side, width, device=device)
            grid = torch.tensor([[1, side, side]], device=device)
            visual = getattr(model, "visual", None)
            visual = model.model.visual if visual is None else visual
            result["vision"], _ = timed(lambda: visual(pixels, grid_thw=grid), 5)
        ids = torch.ones(1, tokens, dtype=torch.long, device=device)
        # Logits of the last token only, as in this project.
        result["prefill"], _ = timed(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1), 5)
        options = dict(do_sample=False, use_cache=True, pad_token_id=0, attention_mask=torch.ones_like(ids))
        one, _ = timed(lambda: model.generate(ids, max_new_tokens=1, **options), 1)
        all_of_them, answer = timed(lambda: model.generate(ids, max_new_tokens=DECODE, **options), 1)
        steps = answer.shape[1] - tokens
        if steps != DECODE:
            raise RuntimeError(f"PyTorch ended after {steps} of {DECODE} tokens")
        result["decode"] = (all_of_them - one) / (DECODE - 1)
        bandwidth = copy_bandwidth(torch, device, wait)
    print(json.dumps({"ms": result, "bandwidth": bandwidth}))


def copy_bandwidth(torch, device, wait):
    """Returns the bytes per second that a copy reads and writes."""
    source = torch.zeros(256 << 20, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    target.copy_(source)
    wait()
    start = time.perf_counter()
    for _ in range(20):
        target.copy_(source)
    wait()
    return 2 * 20 * source.numel() / (time.perf_counter() - start)


def compare(check, pair, work):
    record, _, checkpoint = pair.partition("=")
    own, peak = times(check, record, work)
    inspected = check.run(check.program, "inspect", record, "--json")
    if check.dry:
        print("  would time PyTorch (bfloat16, SDPA, random weights) with the sizes of", checkpoint or "no checkpoint")
        return
    weights = json.loads(inspected)["parts"]["text"]["bytes"]
    print(f"  {record}: {own}, peak {peak / 2**20:.0f} MiB, text weights {weights / 2**20:.0f} MiB")
    if not checkpoint:
        return
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"  not compared with PyTorch: python3 lacks {' and '.join(missing)}")
        return
    theirs, their_peak, bandwidth = torch_times(check, checkpoint, own["tokens"])
    rows = []
    for name in [name for name in ("vision", "prefill", "decode") if name in theirs]:
        ratio = theirs[name] / own[name] if name == "decode" else own[name] / theirs[name]
        met = ratio >= LIMITS[name] if name == "decode" else ratio <= LIMITS[name]
        sign = ">=" if name == "decode" else "<="
        rows.append((name, f"{own[name]:.2f}", f"{theirs[name]:.2f}", f"{ratio:.2f}", f"{sign} {LIMITS[name]}", met))
    memory = peak / their_peak
    rows.append(("peak MiB", f"{peak / 2**20:.0f}", f"{their_peak / 2**20:.0f}", f"{memory:.2f}", "<= 0.33", memory <= 1 / 3))
    share = weights / (own["decode"] / 1e3) / bandwidth
    rows.append(("bandwidth", f"{share * bandwidth / 1e9:.0f} GB/s", f"{bandwidth / 1e9:.0f} GB/s", f"{share:.2f}", ">= 0.6", share >= 0.6))
    print("  | what (ms) | edge-lmm | PyTorch | ratio | required | met |\n  |---|---|---|---|---|---|")
    for *cells, met in rows:
        print("  |", " | ".join(cells), "|", "yes |" if met else "no |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", default="target/release", help="folder of edge-lmm and edge-lmm-convert")
    parser.add_argument("--device", default="cuda", help="device of edge-lmm (cpu to test this script)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    parser.add_argument("records", nargs="*", metavar="RECORD.bpk=CHECKPOINT")
    parser.add_argument("--torch", metavar="CHECKPOINT", help=argparse.SUPPRESS)
    parser.add_argument("--torch-tokens", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--torch-device", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torch:
        return torch_main(options.torch, options.torch_tokens, options.torch_device)
    check = Check(options)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        if options.device == "cuda":
            check.step("kernels", lambda: print(check.run(check.program, "doctor", "--cuda") or "", end=""))
        exact = ["--text-quant", "f32", "--vision-quant", "f32", "--audio-quant", "f32"]
        for family in FAMILIES:
            record = work / f"{family}-f32.bpk"

            def parity(family=family, record=record):
                convert(check, family, record, *exact)
                goldens(check, family, record, work)

            check.step(f"reference values of {family}", parity)

        def asked():
            record = work / "qwen2vl-tiny.bpk"
            convert(check, "qwen2vl-tiny", record)
            questions(check, record)

        check.step("questions", asked)
        for pair in options.records:
            check.step(f"times of {pair}", lambda pair=pair: compare(check, pair, work))
    if check.failures:
        sys.exit("failed: " + ", ".join(check.failures))
    print("dry run: nothing was checked" if options.dry_run else "all checks passed")


if __name__ == "__main__":
    main()
