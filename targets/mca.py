#!/usr/bin/env python3
"""Estimates the cycles of the AArch64 kernels without a board: compiles them, finds the innermost loops with products
and runs llvm-mca on them. The estimate models the pipelines of the core, but not caches, memory or branch prediction.

    eval "$(targets/aarch64-toolchain.sh)"      # the compiler's library and linker for AArch64
    python3 targets/mca.py                      # needs llvm-mca (Debian: llvm-19), --llvm-mca names another one
    python3 targets/mca.py --ggml DIR           # and ggml's kernels for the same core: DIR holds ggml/src of llama.cpp

"share" is the fraction of the core's peak: two multiply-accumulate instructions per cycle, of 16 products with `sdot`, or
one of 8 with `smlal` (Cortex-A72 has one multiplier). LLVM describes the Cortex-A76 with the pipelines of the older
Cortex-A57; Neoverse N1 is the same core as the A76 with its own description.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = "aarch64-unknown-linux-gnu"
# Products per instruction, by its name and the arrangement of its result.
PRODUCTS = {"sdot": 16, "udot": 16, "smlal": 8, "smlal2": 8, "smull": 8, "smull2": 8, "fmla": 4}
# Core: description, and peak byte products per cycle.
CORES = {
    "cortex-a76": ("Raspberry Pi 5", 32),
    "neoverse-n1": ("the same core, with its own description", 32),
    "cortex-a72": ("Raspberry Pi 4", 8),
}
# Our kernels: function, number of certain instructions in the loop, cores, and whether the loop
# loads the weights (for one token) or not.
OURS = {
    "q4 and q8 gemm": (r"dotprod.*some_tokens", {}, ["cortex-a76", "neoverse-n1"], None),
    "q4 gemv": (r"dotprod\d+q4", {"sdot": 16, "mla": 2}, ["cortex-a76", "neoverse-n1"], "one"),
    "q8 gemv": (r"dotprod\d+q8", {"sdot": 16, "mla": 0}, ["cortex-a76", "neoverse-n1"], "one"),
    "q4 gemm, no sdot": (r"Kernels.*quantized", {"smlal": 32}, ["cortex-a72"], "many"),
    "q4 gemv, no sdot": (r"Kernels.*quantized", {"smlal": 32}, ["cortex-a72"], "one"),
    "q8 gemm, no sdot": (r"Kernels.*quantized", {"smlal": 16, "smull": 16}, ["cortex-a72"], "many"),
    "q8 gemv, no sdot": (r"Kernels.*quantized", {"smlal": 16, "smull": 16}, ["cortex-a72"], "one"),
}
GGML = {
    "ggml q4_0 4x4 gemm": ("arch/arm/repack.cpp", r"ggml_gemm_q4_0_4x4_q8_0"),
    "ggml q4_0 4x4 gemv": ("arch/arm/repack.cpp", r"ggml_gemv_q4_0_4x4_q8_0"),
    "ggml q4_0 dot": ("arch/arm/quants.c", r"ggml_vec_dot_q4_0_q8_0"),
    "ggml q8_0 dot": ("arch/arm/quants.c", r"ggml_vec_dot_q8_0_q8_0"),
}


def run(command, **options):
    result = subprocess.run(command, capture_output=True, text=True, **options)
    if result.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} failed:\n{result.stderr[-2000:]}")
    return result.stdout


def compile_ours():
    """Returns the assembly of the kernels in a release build."""
    directory = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "mca"
    flags = os.environ.get("EDGE_LMM_CARGO_FLAGS", "").split()
    command = ["cargo", "rustc", "--release", "-q", "--locked", *flags, "--target", TARGET, "-p", "edge-lmm-kernels"]
    run([*command, "--", "--emit", "asm", "-C", "codegen-units=1"], cwd=ROOT, env={**os.environ, "CARGO_TARGET_DIR": str(directory)})
    files = (directory / TARGET / "release/deps").glob("edge_lmm_kernels-*.s")
    return max(files, key=lambda file: file.stat().st_mtime).read_text()


def compile_ggml(folder, source):
    """Returns the assembly of one of ggml's files for the Cortex-A76."""
    base = Path(folder) / "ggml/src"
    path = base / "ggml-cpu" / source
    if not path.exists():
        sys.exit(f"error: {path} does not exist: --ggml expects the folder that contains ggml/src")
    compiler = "aarch64-linux-gnu-g++" if path.suffix == ".cpp" else "aarch64-linux-gnu-gcc"
    includes = [base, base / "ggml-cpu", base / "../include"]
    flags = ["-O3", "-mcpu=cortex-a76", "-DNDEBUG", "-D_GNU_SOURCE", "-S", "-o", "-"]
    text = run([compiler, *flags, *[f"-I{include}" for include in includes], path])
    # Instructions that are encoded as numbers, with their names in a comment.
    return re.sub(r"\.inst\s+0x[0-9a-f]+\s*//\s*", "", text)


def functions(assembly):
    """Yields the name and lines of every function."""
    name, lines = None, []
    for line in assembly.splitlines():
        label = re.match(r"^([A-Za-z_$][\w$.]*):", line)
        if label and not label[1].startswith(".L"):
            if name:
                yield name, lines
            name, lines = label[1], []
        elif name:
            lines.append(line)
            if re.match(r"\s*\.size\s", line):
                yield name, lines
                name = None


def loops(lines):
    """Returns the innermost loops: from a label to a branch back to it, without another such pair inside."""
    places = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"^(\.?L?[\w.$]+):", line))}
    numbered = [(int(m[1]), i) for i, line in enumerate(lines) if (m := re.match(r"^\s*(\d+):", line))]
    found = []
    for i, line in enumerate(lines):
        branch = re.match(r"\s*(?:b\.?\w+|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\d+,)\s+([\w.$]+)", line)
        if not branch:
            continue
        start = places.get(branch[1])
        if start is None and (m := re.fullmatch(r"(\d+)b", branch[1])):
            start = max((at for number, at in numbered if number == int(m[1]) and at < i), default=None)
        if start is not None and start < i:
            found.append((start, i + 1))
    inner = [a for a in found if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in found)]
    return [lines[start:end] for start, end in inner]


def products(loop):
    count = 0
    for line in loop:
        instruction = re.match(r"\s*([a-z]\w*)\s", line)
        count += PRODUCTS.get(instruction[1], 0) if instruction and not line.strip().startswith("fm") else 0
    return count


def clean(loop):
    """Strips comments, directives and labels; branch targets are replaced by one label."""
    lines = [re.sub(r"//.*|/\*.*?\*/", "", line).strip() for line in loop]
    lines = [line for line in lines if line and not line.startswith((".", "#")) and not line.endswith(":")]
    return "\n".join(re.sub(r"\s(\.L\w+|\d+b)$", " .Lnext", line) for line in lines) + "\n.Lnext:\n"


def cycles(llvm_mca, core, loop):
    """Returns the average cycles per iteration."""
    command = [llvm_mca, "-mtriple=aarch64", f"-mcpu={core}", "-mattr=+dotprod,+fullfp16", "-iterations=200"]
    text = run(command, input=clean(loop))
    return int(re.search(r"Total Cycles:\s+(\d+)", text)[1]) / 200


def count(loop, instruction):
    """Counts an instruction; `smlal` includes `smlal2`."""
    return sum(bool(re.match(rf"\s*{instruction}2?\s", line)) for line in loop)


def loads(loop):
    return sum(bool(re.match(r"\s*ld", line)) for line in loop)


def find_loop(assembly, pattern, instructions=None, kind=None):
    """Finds the loop with products in a matching function: with these instructions, and most loads for one token, or fewest for
    many; or else the one with most products for its length."""
    candidates = []
    for name, lines in functions(assembly):
        if re.search(pattern, name):
            candidates += [loop for loop in loops(lines) if products(loop) >= 32]
    if instructions:
        fits = lambda loop: all(count(loop, name) == n for name, n in instructions.items())
        candidates = [loop for loop in candidates if fits(loop)]
    if not candidates:
        return None
    if kind:
        return max(candidates, key=loads) if kind == "one" else min(candidates, key=loads)
    return max(candidates, key=lambda loop: products(loop) / len(clean(loop).splitlines()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llvm-mca", default=None, help="program to run (default: llvm-mca-19 or llvm-mca)")
    parser.add_argument("--ggml", metavar="DIR", help="a llama.cpp source folder to compare with")
    parser.add_argument("--show", metavar="KERNEL", help="print the loop of a kernel instead")
    arguments = parser.parse_args()
    names = [arguments.llvm_mca] if arguments.llvm_mca else ["llvm-mca-19", "llvm-mca"]
    llvm_mca = next((name for name in names if subprocess.run(["which", name], capture_output=True).returncode == 0), None)
    if not llvm_mca:
        sys.exit("error: llvm-mca is missing: on Debian, apt-get install llvm-19")

    assembly = compile_ours()
    kernels = {}
    for name, (pattern, instructions, cores, kind) in OURS.items():
        kernels[name] = (find_loop(assembly, pattern, instructions, kind), cores)
    if arguments.ggml:
        compiled = {}
        for name, (source, pattern) in GGML.items():
            if source not in compiled:
                compiled[source] = compile_ggml(arguments.ggml, source)
            kernels[name] = (find_loop(compiled[source], pattern), ["cortex-a76", "neoverse-n1"])
    if arguments.show:
        loop, _ = kernels[arguments.show]
        print(clean(loop))
        return
    print(f"{'kernel':22} {'core':12} {'products':>9} {'cycles':>8} {'per cycle':>10} {'share':>7}")
    for name, (loop, cores) in kernels.items():
        if loop is None:
            sys.exit(f"error: no loop with products found for {name}; was the function renamed?")
        for core in cores:
            count, time = products(loop), cycles(llvm_mca, core, loop)
            share = count / time / CORES[core][1]
            print(f"{name:22} {core:12} {count:9} {time:8.1f} {count / time:10.1f} {share:7.0%}")


if __name__ == "__main__":
    main()
