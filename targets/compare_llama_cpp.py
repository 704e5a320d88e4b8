#!/usr/bin/env python3
"""Compares the speed of this program and llama.cpp: alternating runs on one machine with equal threads, ratios of medians.

    python3 -m venv V && V/bin/pip install llama-cpp-python numpy     # builds llama.cpp for this processor
    V/bin/python targets/compare_llama_cpp.py --record qwen2-vl-2b.bpk \\
        --llm qwen2-vl-2b-q4_0.gguf --llm qwen2-vl-2b-q4_k_m.gguf --mmproj mmproj-qwen2-vl-2b-f16.gguf

The record and the GGUF files should come from the same checkpoint. Only time and memory are compared, so random weights
of real shapes are sufficient. Prefill is compared with the best result of llama.cpp over all --llm files, with and
without repacked weights. Decoding and the time to the first token are compared with the first file and default
settings. Every measurement runs in a separate process, which loads its models before the clock starts.

--json writes the medians, and for each image the stages of an answer of 64 tokens by both programs: `cargo xtask figure`
draws them.
"""

import argparse
import ctypes
import json
import os
import random
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

PROMPT_TOKENS, GENERATED, QUESTION = 512, 64, 32


def image(path, side):
    """Writes a square PNG of noise."""
    noise = random.Random(side)
    rows = b"".join(b"\0" + noise.randbytes(3 * side) for _ in range(side))

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    Path(path).write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    )


# --- llama.cpp, in a separate process ---------------------------------------------------------------------------


def peer_context(model, threads, repack=True):
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers, parameters.use_extra_bufts = 0, repack
    weights = llama_cpp.llama_model_load_from_file(os.fsencode(model), parameters)
    if not weights:
        sys.exit(f"error: llama.cpp cannot load {model}")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = 2048, 2048, 512
    options.n_threads = options.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(weights, options)
    return llama_cpp, weights, context, silent


def peer_decode(llama_cpp, context, tokens):
    start = time.perf_counter()
    batch = (llama_cpp.llama_token * len(tokens))(*tokens)
    if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(batch, len(tokens))):
        sys.exit("error: llama.cpp cannot decode")
    llama_cpp.llama_get_logits_ith(context, -1)
    return time.perf_counter() - start


def peer_text(model, threads, repack):
    llama_cpp, _, context, _keep = peer_context(model, threads, repack)
    ids = random.Random(1)
    prompt = [ids.randrange(1000) for _ in range(PROMPT_TOKENS)]
    peer_decode(llama_cpp, context, prompt[:32])
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    prefill = peer_decode(llama_cpp, context, prompt)
    decode = sum(peer_decode(llama_cpp, context, [token]) for token in prompt[:GENERATED])
    return {"prefill": PROMPT_TOKENS / prefill, "decode": GENERATED / decode}


def peer_image(model, mmproj, side, threads, answer=True):
    llama_cpp, weights, context, _keep = peer_context(model, threads)
    from llama_cpp import mtmd_cpp as mtmd

    options = mtmd.mtmd_context_params_default()
    options.use_gpu, options.print_timings, options.n_threads = False, False, threads
    encoder = mtmd.mtmd_init_from_file(os.fsencode(mmproj), weights, options)
    if not encoder:
        sys.exit(f"error: llama.cpp cannot load {mmproj}")
    pixels = (ctypes.c_uint8 * (3 * side * side)).from_buffer_copy(random.Random(side).randbytes(3 * side * side))
    bitmap = mtmd.mtmd_bitmap_init(side, side, pixels)
    text = mtmd.mtmd_input_text()
    text.text = mtmd.mtmd_default_marker() + b"!" * QUESTION
    text.text_len, text.add_special, text.parse_special = len(text.text), False, True
    chunks = mtmd.mtmd_input_chunks_init()
    start = time.perf_counter()
    if mtmd.mtmd_tokenize(encoder, chunks, ctypes.byref(text), (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap), 1):
        sys.exit("error: llama.cpp cannot prepare the image")
    past, vision = llama_cpp.llama_pos(0), 0.0
    count = mtmd.mtmd_input_chunks_size(chunks)
    for index in range(count):
        chunk, after = mtmd.mtmd_input_chunks_get(chunks, index), llama_cpp.llama_pos(0)
        if not mtmd.mtmd_input_chunk_get_n_tokens(chunk):
            continue  # a separator without a token in a small tokenizer
        if mtmd.mtmd_input_chunk_get_type(chunk) == 0:
            if not answer:
                continue
            last = index + 1 == count
            mtmd.mtmd_helper_eval_chunk_single(encoder, context, chunk, past, 0, 2048, last, ctypes.byref(after))
        else:
            before = time.perf_counter()
            if mtmd.mtmd_encode_chunk(encoder, chunk):
                sys.exit("error: llama.cpp cannot encode the image")
            vision += time.perf_counter() - before
            if not answer:
                continue
            features = mtmd.mtmd_get_output_embd(encoder)
            none = mtmd.mtmd_helper_post_decode_callback()
            mtmd.mtmd_helper_decode_image_chunk(
                encoder, context, chunk, features, past, 0, 2048, ctypes.byref(after), none, None
            )
        past = llama_cpp.llama_pos(past.value + mtmd.mtmd_input_chunk_get_n_pos(chunk))
    first = time.perf_counter() - start
    return {"vision": 1e3 * vision, "first token": 1e3 * first}


def peer_encode(model, mmproj, side, threads):
    """Times only the encoder, for families without a language model file."""
    return {"vision": peer_image(model, mmproj, side, threads, answer=False)["vision"]}


# --- this program -------------------------------------------------------------------------------------------------


def ours(arguments, *options):
    # Both programs decode one token per step.
    fixed = ["--json", "--ignore-eos", "--speculate", "off"]
    command = [arguments.edge_lmm, "run", arguments.record, *fixed, *map(str, options)]
    if arguments.threads:
        command += ["--threads", str(arguments.threads)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"error: {' '.join(command)} failed: {result.stderr.strip()}")
    answer = json.loads(result.stdout)
    stages = {stage["name"]: stage["ms"] for stage in answer["stages"] if stage["name"] == stage["stage"]}
    return answer, stages


def our_text(arguments):
    answer, stages = ours(arguments, "--prompt", " a" * (PROMPT_TOKENS - 14), "--max-tokens", GENERATED + 1)
    return {
        "prefill": 1e3 * answer["prompt_tokens"] / stages["prefill"],
        "decode": answer["tokens_per_second"],
        "start": stages["load"],
    }


def our_image(arguments, file, chain):
    reduce = ["--reduce", chain] if chain else []
    answer, stages = ours(arguments, "--image", file, "--prompt", "!" * QUESTION, "--max-tokens", 1, *reduce)
    return {
        "vision": stages["vision"],
        "first token": sum(ms for name, ms in stages.items() if name not in ("load", "decode")),
        "memory": answer["peak_resident_bytes"] / 2**20,
    }


# --- alternating runs ------------------------------------------------------------------------------------------------------


def peer(*what):
    """Runs a measurement of llama.cpp in a separate process and adds its peak memory."""
    command = [sys.executable, __file__, "--peer", json.dumps(what)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"error: llama.cpp failed: {result.stderr.strip()[-500:]}")
    return json.loads(result.stdout.splitlines()[-1])


def median(runs, key):
    return statistics.median(run[key] for run in runs)


ROWS = []


def row(name, unit, theirs, our, more_is_better):
    ratio = our / theirs
    better = "more is better" if more_is_better else "less is better"
    ROWS.append({"name": name, "unit": unit, "llama.cpp": theirs, "edge-lmm": our})
    print(f"| {name} | {theirs:.1f} {unit} | {our:.1f} {unit} | {ratio:.2f} ({better}) |", flush=True)


def answer_stages(runs, tokens_per_second):
    """Returns the milliseconds of the stages of an answer of GENERATED tokens."""
    vision, first = median(runs, "vision"), median(runs, "first token")
    return {"vision": vision, "prefill": first - vision, "decode": 1e3 * (GENERATED - 1) / tokens_per_second}


def processor():
    """Returns the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--edge-lmm", default="target/release/edge-lmm")
    parser.add_argument("--record", help="record of edge-lmm, from the same checkpoint")
    parser.add_argument("--llm", action="append", default=[], metavar="GGUF", help="language model of llama.cpp; may be repeated")
    parser.add_argument("--mmproj", metavar="GGUF", help="vision tower of llama.cpp, F16")
    parser.add_argument("--sides", type=int, nargs="*", default=[336, 672], help="sides of the square images in pixels")
    parser.add_argument("--only-vision", action="store_true", help="time the vision tower only")
    parser.add_argument("--only-images", action="store_true", help="skip prefill and decoding of text")
    parser.add_argument("--reduce", action="append", default=[], metavar="METHODS",
                        help="also answer with these reductions of visual tokens; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write the medians, with the processor and the versions")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.peer:
        kind, *rest = json.loads(arguments.peer)
        figures = {"text": peer_text, "image": peer_image, "encode": peer_encode}[kind](*rest)
        figures["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(figures))
        return
    if not (arguments.record and arguments.llm):
        parser.error("--record and --llm are required")
    report = {
        "processor": processor(), "threads": arguments.threads, "repeat": arguments.repeat,
        "record": Path(arguments.record).stem, "generated_tokens": GENERATED, "answers": [],
    }
    speed = {}
    print(f"{arguments.threads} threads, medians of {arguments.repeat} alternating runs\n")
    print("| what | llama.cpp | edge-lmm | ratio |\n|---|---|---|---|")
    if not (arguments.only_vision or arguments.only_images):
        ways = [(model, repack) for model in arguments.llm for repack in (True, False)]
        theirs, our = [[] for _ in ways], []
        for _ in range(arguments.repeat):
            for runs, (model, repack) in zip(theirs, ways):
                runs.append(peer("text", model, arguments.threads, repack))
                our.append(our_text(arguments))
        best = max(median(runs, "prefill") for runs in theirs)
        row(f"prefill, {PROMPT_TOKENS} tokens", "tok/s", best, median(our, "prefill"), True)
        speed = {"llama.cpp": median(theirs[0], "decode"), "edge-lmm": median(our, "decode")}
        row(f"decode, {GENERATED} tokens", "tok/s", speed["llama.cpp"], speed["edge-lmm"], True)
        print(f"| start, warm file cache | | {median(our, 'start'):.0f} ms | |")
    with tempfile.TemporaryDirectory() as folder:
        for side in arguments.sides if arguments.mmproj else []:
            file = Path(folder) / f"{side}.png"
            image(file, side)
            chains = ["", *arguments.reduce]
            theirs, our = [], {chain: [] for chain in chains}
            kind = "encode" if arguments.only_vision else "image"
            for _ in range(arguments.repeat):
                theirs.append(peer(kind, arguments.llm[0], arguments.mmproj, side, arguments.threads))
                for chain in chains:
                    our[chain].append(our_image(arguments, file, chain))
            for chain, runs in our.items():
                how = f", {chain}" if chain else ""
                row(f"vision, {side}x{side}{how}", "ms", median(theirs, "vision"), median(runs, "vision"), False)
                if not arguments.only_vision:
                    name = f"first token, {side}x{side} and {QUESTION} tokens{how}"
                    row(name, "ms", median(theirs, "first token"), median(runs, "first token"), False)
                    row("peak resident memory of that", "MiB", median(theirs, "memory"), median(runs, "memory"), False)
                if speed and not chain:
                    for program, measured in (("llama.cpp", theirs), ("edge-lmm", runs)):
                        stages = answer_stages(measured, speed[program])
                        report["answers"].append({"program": program, "pixels": side, "stages_ms": stages})
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({**report, "rows": ROWS}, indent=2) + "\n")


if __name__ == "__main__":
    main()
