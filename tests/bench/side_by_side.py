"""Lets quantfs and its peers take turns, and prints medians and ratios. `scripts/bench` sets up and calls it.

Every contender is a program that prints JSON lines; a round calls each of them once for each number of threads, so that
what the machine does meanwhile meets all of them. A figure is the median of its rounds. Turns in which other programs
wanted the same cores do not count: peers whose threads spin at barriers lose most then, and a ratio would flatter whoever
does not. A figure without an undisturbed turn is marked and compared with nothing. A peer that fails is named and left out. Results go to DIR/results.jsonl, one object a figure; --readme renders that file.
"""
import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

ROWS, COLS, SET = 14336, 4096, 512 << 20
INPUTS = [1, 8, 32, 128, 512]
SPECS = ["4bit-g64", "4bit-g32", "8bit-g64"]
SUBJECTS = ["layers", "model"]
MODEL_SPECS = ["4bit-g64", "4bit-g32"]
PROMPT, GENERATED = 512, 64
DISTURBED = 0.1  # of a core: what a clock, a shell and the kernel's own work take


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def counted(n):
    return f"{n} thread{'s' if n > 1 else ''}"


def threads():
    cores = len(os.sched_getaffinity(0))
    return [1, cores] if cores > 1 else [1]


class Failed(Exception):
    """A contender's command did not do what it should."""


def call(command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise Failed(f"{Path(str(command[0])).name} ended with {done.returncode}: {lines[-1]}")
    return done.stdout


def objects(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def cpu_seconds():
    """What the cores that we may use did, and what our finished children did of it."""
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in open("/proc/stat") if line.split()[0] in mine]
    # user, nice, system, idle, iowait, irq, softirq: all but the two of waiting.
    busy = sum(int(line[field]) for line in lines for field in (1, 2, 3, 6, 7))
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return busy / os.sysconf("SC_CLK_TCK"), own.ru_utime + own.ru_stime


def watched(turn, args, n):
    """A turn's figures, and whether other programs left it fewer cores than it has threads."""
    (all_before, own_before), started = cpu_seconds(), time.monotonic()
    figures = list(turn(args, n))
    (all_after, own_after), took = cpu_seconds(), time.monotonic() - started
    others = (all_after - all_before - own_after + own_before) / took
    return figures, n + others > len(os.sched_getaffinity(0)) + DISTURBED


# ---- contenders: each yields figures as dicts with subject, contender, case, bits, measure, threads, value, unit


def our_layers(args, n):
    specs = [word for spec in SPECS for word in ("--spec", spec)]
    inputs = ",".join(map(str, INPUTS))
    shape = ["--shape", f"{ROWS}x{COLS}", "--set", SET]
    command = [args.quantfs, "bench", "layers", "--json", "--rounds", args.turns, "--threads", n, "--inputs", inputs, *shape, *specs]
    for figure in objects(call(command)):
        bits = 8 if "8bit" in figure["spec"] else 4
        if figure["inputs"] == 1 and figure["limited_by"] == "memory read":
            yield {"subject": "machine", "contender": "machine", "case": "memory read", "bits": 0, "measure": "read",
                   "threads": n, "value": figure["limit"], "unit": "GB/s"}
        yield layer("quantfs", figure["spec"], bits, figure, n)


def peer_layers(command):
    def measure(args, n):
        for figure in objects(call([*command, ROWS, COLS, SET, args.turns, n, ",".join(map(str, INPUTS))])):
            yield layer(figure["peer"], figure["case"], figure["bits"], figure, n)

    return measure


def layer(contender, case, bits, figure, n):
    return {"subject": "decode" if figure["inputs"] == 1 else "batches", "contender": contender, "case": case, "bits": bits,
            "measure": f"x{figure['inputs']}", "threads": n, "value": figure["value"], "unit": figure["unit"],
            "bits_per_weight": figure["bits_per_weight"]}


def our_model(spec, directory, how, *flags):
    def measure(args, n):
        generate = [args.quantfs, "generate", directory, *flags, "--threads", n, "--json", "--prompt"]
        words = " ".join(f"w{7 * i % 32000}" for i in range(PROMPT))
        reading = objects(call([*generate, words, "--max-tokens", 1]))[-1]
        writing = objects(call([*generate, "w1", "--max-tokens", GENERATED + 1]))[-1]
        if reading["prompt_tokens"] != PROMPT or len(writing["tokens"]) != GENERATED + 1:
            raise Failed(f"quantfs generate read {reading['prompt_tokens']} and wrote {len(writing['tokens'])} tokens")
        yield from model("quantfs", f"{spec}, {how}", n, reading["prompt_tokens_per_second"], writing["tokens_per_second"])

    return measure


def llama_model(args, n):
    gguf = args.model / "q4_0.gguf"
    text = call([args.llama_bench, "-m", gguf, "-p", PROMPT, "-n", GENERATED, "-t", n, "-r", 1, "-o", "jsonl"])
    reading, writing = objects(text)
    yield from model("llama.cpp", "Q4_0", n, reading["avg_ts"], writing["avg_ts"])


def model(contender, case, n, reading, writing):
    for measure, value in [(f"prompt of {PROMPT}", reading), ("generation", writing)]:
        yield {"subject": "model", "contender": contender, "case": case, "bits": 4, "measure": measure, "threads": n,
               "value": value, "unit": "tokens/s"}


def mounted(args, spec, stack):
    """The model as a mount shows it, warm; exported where nothing can be mounted."""
    point = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quantfs-bench-")))
    mount = [args.quantfs, "mount", args.model / "hf", point, "--spec", spec]
    try:
        call(mount)
    except Failed as why:
        say(f"{spec} is exported: {why}")
        call([args.quantfs, "export", args.model / "hf", point, "--spec", spec])
        return point
    stack.callback(call, [args.quantfs, "umount", point])
    call([args.quantfs, "warm", point])
    return point


# ---- rounds


def contenders(args, stack):
    if "layers" in args.subjects:
        yield "quantfs layers", our_layers
        if args.ggml:
            yield "llama.cpp layers", peer_layers([args.ggml])
        yield "onnxruntime layers", peer_layers([sys.executable, args.onnx])
    if "model" in args.subjects:
        for spec in MODEL_SPECS:
            directory = mounted(args, spec, stack)
            yield f"quantfs model {spec}, mapped", our_model(f"mlx-{spec}", directory, "mapped")
            # In large pages of its own memory, as llama.cpp has what it repacks.
            yield f"quantfs model {spec}, read", our_model(f"mlx-{spec}", directory, "read", "--no-mmap")
        if args.llama_bench:
            yield "llama.cpp model", llama_model


def measure(args):
    figures, missing = {}, [] if args.ggml else ["llama.cpp: it could not be built"]
    with ExitStack() as stack:
        turns = list(contenders(args, stack))
        for round_ in range(args.rounds):
            # Whoever goes first finds another machine than whoever goes last.
            for name, turn in turns[round_ % len(turns):] + turns[: round_ % len(turns)]:
                say(f"round {round_ + 1} of {args.rounds}: {name}")
                try:
                    for n in threads():
                        found, disturbed = watched(turn, args, n)
                        for figure in found:
                            value = figure.pop("value")
                            figures.setdefault(json.dumps(figure), []).append((value, disturbed))
                except Failed as why:
                    if name.startswith("quantfs"):
                        raise
                    missing.append(f"{name}: {why}")
                    say(f"*** {missing[-1]} ***")
                    turns = [(other, t) for other, t in turns if other != name]
    return [machine(args, missing), *compared([{**json.loads(key), **middle(turns)} for key, turns in figures.items()])]


def middle(turns):
    """Of the undisturbed turns; of all, and marked, where there is none."""
    calm = [value for value, disturbed in turns if not disturbed]
    counted = calm or [value for value, _ in turns]
    return {"value": statistics.median(counted), "least": min(counted), "most": max(counted), "turns": len(counted),
            "disturbed": not calm}


def machine(args, missing):
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    flags = next((line for line in open("/proc/cpuinfo") if line.startswith("flags")), "")
    vectors = [name for name in ("avx2", "avx512bw", "avx512_vnni") if f" {name}" in flags]
    return {"subject": "run", "cpu": cpu, "cores": len(os.sched_getaffinity(0)), "vectors": vectors, "rounds": args.rounds,
            "turns": args.turns, "left_out": missing}


def compared(results):
    """The same, with speed in weights, and beside ours the best peer of the same width."""
    for r in [r for r in results if r["subject"] == "decode"]:
        scale = 8 / r["bits_per_weight"]
        scaled = {key: r[key] * scale for key in ("value", "least", "most")}
        results.append({**r, **scaled, "subject": "decode in weights", "unit": "billion weights/s"})
    for r in results:
        same = [p for p in results if not p["disturbed"] and all(p[k] == r[k] for k in ("subject", "measure", "threads", "bits"))]
        best = max((p for p in same if p["contender"] != "quantfs"), key=lambda p: p["value"], default=None)
        if r["contender"] == "quantfs" and best and not r["disturbed"]:
            r.update(best_peer=f"{best['contender']} {best['case']}", ratio=r["value"] / best["value"])
    read = {r["threads"]: r["value"] for r in results if r["subject"] == "machine" and not r["disturbed"]}
    for r in results:
        if r["subject"] == "decode" and r["threads"] in read and not r["disturbed"]:
            r.update(limit=read[r["threads"]], of_limit=r["value"] / read[r["threads"]])
    return results


# ---- tables


TITLES = {
    "decode": f"One input, {ROWS}x{COLS}, over {SET >> 20} MiB of weights in turn: GB/s of quantized bytes, and their share of reading memory",
    "decode in weights": "The same in billions of weights a second (formats differ in the bits that a weight takes)",
    "batches": f"Batches of inputs, {ROWS}x{COLS}: GFLOP/s",
    "model": "A Llama of 1.1 billion weights, the quantized directory mounted: tokens/s",
}


def cell(r):
    if r is None:
        return ""
    digits = 0 if r["value"] >= 100 else 1
    text = f"{r['value']:.{digits}f}{'*' if r['disturbed'] else ''}"
    if "of_limit" in r:
        text += f", {100 * r['of_limit']:.0f} %"
    if "ratio" in r:
        text += f" ({r['ratio']:.2f}x)"
    return text


def table(subject, results):
    mine = [r for r in results if r["subject"] == subject]
    columns = list(dict.fromkeys((r["threads"], r["measure"]) for r in sorted(mine, key=lambda r: r["threads"])))
    rows = dict.fromkeys((r["contender"], r["case"], r["bits"]) for r in sorted(mine, key=lambda r: (r["bits"], r["contender"] != "quantfs")))
    one = len({measure for _, measure in columns}) == 1
    yield ["", "width", *(counted(n) if one else f"{measure}, {counted(n)}" for n, measure in columns)]
    for contender, case, bits in rows:
        found = {(r["threads"], r["measure"]): r for r in mine if (r["contender"], r["case"], r["bits"]) == (contender, case, bits)}
        yield [f"{contender} {case}", f"{bits} bit", *(cell(found.get(c)) for c in columns)]


def render(results, markdown):
    run = results[0]
    read = [f"{r['value']:.1f} GB/s on {counted(r['threads'])}{'*' if r['disturbed'] else ''}" for r in results if r["subject"] == "machine"]
    memory = f"; reading memory: {', '.join(read)}" if read else ""
    print(f"{run['cpu']}, cores: {run['cores']}, {', '.join(run['vectors'])}{memory}. Medians of {run['rounds']} rounds; "
          "in brackets, times the best peer of the same width.")
    if any(r.get("disturbed") for r in results):
        print("\n*: other programs wanted the cores in every turn of this figure; it is compared with nothing.")
    for reason in run["left_out"]:
        print(f"\nLeft out: {reason}.")
    for subject, title in TITLES.items():
        lines = list(table(subject, results))
        if len(lines) > 1:
            print(f"\n{title}:\n")
            print_table(lines, markdown)


def print_table(lines, markdown):
    if markdown:
        lines.insert(1, ["---"] * len(lines[0]))
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    print("\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines))


def parse():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("subjects", nargs="*", help="default: both")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--readme", action="store_true")
    for name in ("--quantfs", "--model", "--onnx", "--ggml", "--llama-bench"):
        parser.add_argument(name, type=Path)
    args = parser.parse_intermixed_args()
    unknown = set(args.subjects) - set(SUBJECTS)
    if unknown:
        parser.error(f"unknown subject {', '.join(sorted(unknown))}; known are {' and '.join(SUBJECTS)}")
    args.subjects = args.subjects or SUBJECTS
    args.rounds, args.turns = (2, 2) if args.quick else (5, 3)
    return args


def main():
    args = parse()
    path = args.dir / "results.jsonl"
    if not args.readme:
        try:
            results = measure(args)
        except Failed as why:
            sys.exit(f"bench: {why}")
        path.write_text("".join(json.dumps(r) + "\n" for r in results))
    elif not path.exists():
        sys.exit("bench: no results yet; run scripts/bench first")
    render([json.loads(line) for line in path.open()], args.readme)
    say(f"results: {path}")


main()
