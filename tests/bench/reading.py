"""Measures what reading a quantized view costs, beside what reading its source costs. `scripts/bench` sets up and calls it.

    reading.py DIR --quantfs BIN --model DIR [--ggml GGML_QUANTIZE] [--quick | --readme]

Every turn is a job as a user does it, in processes of its own; rounds take turns, and a figure is the median of the rounds'
ratios, so that what the machine does meanwhile meets both sides. Files are dropped from the page cache by fadvise. Results go
to DIR/reading.jsonl, one row an object, and to DIR/reading.svg; --readme renders the last run as Markdown.
"""
import argparse
import json
import mmap
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

SPEC = "mlx-4bit-g64"
CACHE = 32 << 20
SOURCE = [256, 4096]  # rows and columns that are quantized from the caches, as `quantfs bench quantize` does
FAST = ("llama.cpp Q4_0", "llama.cpp Q4_1", "llama.cpp Q8_0")
LLAMA = {"mlx-4bit-g64": FAST, "mlx-8bit-g64": FAST, "mlx-mxfp4": ("llama.cpp MXFP4",)}
GIANT_LAYERS, GIANT_SHARDS = 80, 30
MISSED = " **"


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def call(*command, **environment):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise SystemExit(f"bench: {' '.join(map(str, command))}: {lines[-1]}")
    return done.stdout


def seconds(job, *args):
    started = time.monotonic()
    job(*args)
    return time.monotonic() - started


def shards(directory):
    return sorted(Path(directory).glob("*.safetensors"))


def cat(directory):
    with open("/dev/null", "w") as null:
        subprocess.run(["cat", *shards(directory)], stdout=null, check=True)


def evict(directory):
    for path in shards(directory):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def mounted(args, source, *flags):
    """The mount point, and the process that serves it."""
    with tempfile.TemporaryDirectory(prefix="quantfs-bench-") as point:
        facts = json.loads(call(args.quantfs, "mount", source, point, "--json", *flags))
        try:
            yield Path(point), facts["pid"]
        finally:
            call(args.quantfs, "umount", point, "--force")


def python(code, *args):
    return float(call(sys.executable, "-c", code, *args))


# ---- turns: each returns figures by name


LOAD = """
import sys, time
import mlx.core as mx
from mlx_lm.utils import load_model
from pathlib import Path
started = time.monotonic()
model, _ = load_model(Path(sys.argv[1]))
mx.eval(model.parameters())
print(time.monotonic() - started)
"""

MLX_QUANTIZE = """
import sys, time
import mlx.core as mx
mx.set_default_device(mx.cpu)
bits, group, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
w = (mx.random.normal((1024, 4096)) * 0.02).astype(mx.bfloat16)
mx.eval(w)
best = 1e9
for _ in range(3):
    started = time.monotonic()
    mx.eval(mx.quantize(w, group_size=group, bits=bits, mode=mode))
    best = min(best, time.monotonic() - started)
print(w.nbytes / best / 1e9)
"""


def whole_job(args):
    """Reading, exporting and converting the model, its source in the page cache."""
    source, out = args.model, {}
    cat(source)
    out["cat"] = seconds(cat, source)
    with mounted(args, source, "--spec", SPEC) as (point, _):
        out["cold"] = seconds(cat, point)
        out["warm"] = seconds(cat, point)
        out["plain bytes"] = sum(p.stat().st_size for p in shards(source)) / 1e9
        out["view bytes"] = sum(p.stat().st_size for p in shards(point)) / 1e9
    with tempfile.TemporaryDirectory(prefix="quantfs-bench-", dir="/dev/shm") as ram:
        out["export"] = seconds(call, args.quantfs, "export", source, f"{ram}/view", "--spec", SPEC)
    with mounted(args, source, "--spec", "source", "--passthrough", "auto") as (point, _):
        out["untouched"] = seconds(cat, point)
        out["untouched"] = seconds(cat, point)
    with mounted(args, source, "--spec", "source", "--passthrough", "off") as (point, _):
        out["through FUSE"] = seconds(cat, point)
    evict(source)
    out["cat evicted"] = seconds(cat, source)
    with mounted(args, source, "--spec", SPEC) as (point, _):
        evict(source)
        out["cold evicted"] = seconds(cat, point)
    return out


def convert(args):
    """mlx-lm's way and ours to a model in memory."""
    out = {}
    cat(args.model)
    with tempfile.TemporaryDirectory(prefix="quantfs-bench-", dir=args.dir) as scratch:
        copy = f"{scratch}/mlx"
        out["convert"] = seconds(call, sys.executable, "-m", "mlx_lm", "convert", "--hf-path", args.model, "--mlx-path", copy, "-q")
        evict(copy)
        out["load copy"] = python(LOAD, copy)
    cat(args.model)
    with mounted(args, args.model, "--spec", SPEC) as (point, _):
        out["load mount"] = python(LOAD, point)
    evict(args.model)
    with mounted(args, args.model, "--spec", SPEC) as (point, _):
        evict(args.model)
        out["load mount evicted"] = python(LOAD, point)
    return out


def kept(args):
    """A view whose files are finished in --cache-dir and passed through, beside those very files."""
    with tempfile.TemporaryDirectory(prefix="quantfs-bench-", dir=args.dir) as cache:
        for _ in range(5):
            with mounted(args, args.model, "--spec", SPEC, "--cache-dir", cache) as (point, _):
                cat(point)
                status = json.loads((point / ".quantfs/status.json").read_text())
                if not status["passed_through"]:
                    time.sleep(3)  # what was read is being written
                    continue
                mine = shards(point)[0]
                plain = max(Path(cache).rglob("*.data"), key=lambda path: path.stat().st_size)
                pairs = [(read_whole(mine), read_whole(plain)) for _ in range(3)]
                sums = [(*summed(mine), *summed(plain)) for _ in range(3)]
                middle = statistics.median
                return {"kept read": middle(a / b for a, b in pairs), "kept fresh": middle(s[0] / s[2] for s in sums),
                        "kept mapped": middle(s[1] / s[3] for s in sums)}
    raise SystemExit("bench: no file was passed through; is this root?")


def read_whole(path):
    started, buffer = time.monotonic(), bytearray(1 << 17)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.monotonic() - started


def summed(path):
    """Seconds of adding a file's words up, in a mapping that is new and in one that is known."""
    with open(path, "rb") as file:
        started = time.monotonic()
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            words = np.frombuffer(mapping, dtype=np.uint64, count=len(mapping) // 8)
            words.sum()
            between = time.monotonic()
            words.sum()
            ended = time.monotonic()
            del words
    return between - started, ended - between


def memory(args):
    """Peak of a daemon whose reader takes ten times its cache, in MiB."""
    with mounted(args, args.model, "--spec", SPEC, "--cache-size", CACHE) as (point, pid):
        cat(point)
        peak = next(line for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM"))
        return {"peak": int(peak.split()[1]) / 1024}


def giant(args):
    """A sparse snapshot of 140 GB: to readiness, and until everything but weights was looked at."""
    out = {}
    with tempfile.TemporaryDirectory(prefix="quantfs-bench-", dir=args.dir) as source:
        make_giant(Path(source))
        started = time.monotonic()
        with mounted(args, source, "--spec", SPEC) as (point, pid):
            out["ready"] = 1e3 * (time.monotonic() - started)
            started = time.monotonic()
            for path in point.rglob("*"):
                path.stat()
                if path.suffix == ".safetensors":
                    with open(path, "rb") as file:
                        json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
                elif path.suffix == ".json":
                    path.read_bytes()
            out["looked at"] = 1e3 * (time.monotonic() - started)
            peak = next(line for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM"))
            out["giant peak"] = int(peak.split()[1]) / 1024
    return out


def make_giant(out):
    """Llama 70B's shape in bf16, its weights holes."""
    hidden, inner, vocab, kv = 8192, 28672, 128256, 1024
    tensors = [("model.embed_tokens.weight", [vocab, hidden]), ("lm_head.weight", [vocab, hidden]), ("model.norm.weight", [hidden])]
    for i in range(GIANT_LAYERS):
        layer = {"self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [kv, hidden], "self_attn.v_proj": [kv, hidden],
                 "self_attn.o_proj": [hidden, hidden], "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden],
                 "mlp.down_proj": [hidden, inner], "input_layernorm": [hidden], "post_attention_layernorm": [hidden]}
        tensors += [(f"model.layers.{i}.{name}.weight", shape) for name, shape in layer.items()]
    index = {}
    for n in range(GIANT_SHARDS):
        name, header, at = f"model-{n + 1:05}-of-{GIANT_SHARDS:05}.safetensors", {}, 0
        for tensor, shape in tensors[n::GIANT_SHARDS]:
            end = at + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[tensor], index[tensor], at = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}, name, end
        text = json.dumps(header).encode()
        with open(out / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (out / "config.json").write_text(json.dumps({
        "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocab,
        "num_hidden_layers": GIANT_LAYERS, "num_attention_heads": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5}))


def figures(args):
    """What `quantfs bench` measures by itself, each beside its limit."""
    out = {}
    for line in call(args.quantfs, "bench", "read", args.model, "--spec", SPEC, "--json", "--rounds", 1).splitlines():
        f = json.loads(line)
        case = f["case"].removeprefix(SPEC).strip()
        out[f"{case} {f['threads']}"], out[f"{case} {f['threads']} limit"] = f["value"], f["limit"]
    for line in call(args.quantfs, "bench", "quantize", "--json", "--rounds", 3).splitlines():
        f = json.loads(line)
        out[f"quantize {f['spec']} {f['threads']}"], out[f"quantize {f['spec']} {f['threads']} limit"] = f["value"], f["limit"]
    for line in call(args.quantfs, "bench", "quantize", "--json", "--rounds", 3, "--threads", 1, QUANTFS_ISA="avx2").splitlines():
        f = json.loads(line)
        out[f"avx2 {f['spec']}"] = f["value"]
    if args.ggml:
        for line in call(args.ggml, *SOURCE, 0.5).splitlines():
            f = json.loads(line)
            out[f"llama.cpp {f['case'].upper()}"] = f["value"]
    for bits, group, mode, spec in [(4, 64, "affine", "mlx-4bit-g64"), (8, 64, "affine", "mlx-8bit-g64"), (4, 32, "mxfp4", "mlx-mxfp4")]:
        out[f"mlx {spec}"] = python(MLX_QUANTIZE, bits, group, mode)
    return out


# ---- rows: what, at least, and from a round's figures the value; lower is better where `most`


def rows(names):
    cores = max(int(name[5:]) for name in names if name.startswith("cold ") and name[5:].isdigit())
    ratio = lambda a, b: lambda f: f[a] / f[b]
    yield "cold read of the view / `cat` of the source", "x", "most", 2.0, ratio("cold", "cat")
    yield "the same / `export` to memory", "x", "most", 1.3, ratio("cold", "export")
    parts = lambda f: f["cat"] + f["plain bytes"] / f[f"quantize {SPEC} 1"] + max(0, f["through FUSE"] - f["cat"]) * f["view bytes"] / f["plain bytes"]
    yield "the same / reading the source, quantizing on one core and FUSE's copy, one after the other", "x", "most", 1.1, lambda f: f["cold"] / parts(f)
    yield "the same, times faster than `mlx_lm.convert -q`", "x", "least", 20, ratio("convert", "cold")
    yield "the same, source evicted / `cat` of the evicted source", "x", "most", 1.1, ratio("cold evicted", "cat evicted")
    yield "`mlx_lm.load` and evaluation from a fresh mount, source in memory / from a converted copy, evicted", "x", "most", 1.3, ratio("load mount", "load copy")
    yield "the same, times faster than converting and loading", "x", "least", 5, lambda f: (f["convert"] + f["load copy"]) / f["load mount"]
    yield "`mlx_lm.load` from a fresh mount, source evicted / from a converted copy, evicted", "x", "none", None, ratio("load mount evicted", "load copy")
    warm = lambda case: lambda f: f[f"{case} {cores} limit"] / f[f"{case} {cores}"]
    yield "warm read / an ordinary file", "x", "most", 1.3, warm("warm")
    yield "fresh mapping / an ordinary file", "x", "most", 2.2, warm("fresh mapping")
    yield "existing mapping / an ordinary file", "x", "most", 1.05, warm("existing mapping")
    yield "warm read of a file kept by `--cache-dir`, passed through / that file itself", "x", "most", 1.05, lambda f: f["kept read"]
    yield "the same, fresh mapping", "x", "most", 1.05, lambda f: f["kept fresh"]
    yield "the same, existing mapping", "x", "most", 1.05, lambda f: f["kept mapped"]
    yield "untouched file / the file itself", "x", "most", 1.05, ratio("untouched", "cat")
    yield "first 4096x4096 weights in the middle of a cold view", "ms", "most", 15, lambda f: f[f"first layer {cores}"]
    yield "mount of a 140 GB snapshot, to readiness", "ms", "most", 100, lambda f: f["ready"]
    yield "its names, sizes, headers and JSON read", "ms", "most", 200, lambda f: f["looked at"]
    yield "memory of its daemon", "MiB", "most", 64, lambda f: f["giant peak"]
    yield f"memory beyond the cache ({CACHE >> 20} MiB) while streaming a view of many times its size", "MiB", "most", 64, lambda f: f["peak"] - (CACHE >> 20)
    if cores > 1:
        yield f"quantizing on {cores} threads / on one", "x", "least", 0.9 * cores, ratio(f"quantize {SPEC} {cores}", f"quantize {SPEC} 1")


def quantizing(names):
    """The same for each scheme: its name, and a column's."""
    for name in names:
        if not (name.startswith("quantize ") and name.endswith(" 1")):
            continue
        spec = name.split()[1]
        over = lambda other, name=name: lambda f: f[name] / max(f[peer] for peer in other)
        yield spec, "one core, GB/s", "least", floor(spec), lambda f, name=name: f[name]
        yield spec, "of reading memory", "none", None, over([f"{name} limit"])
        yield spec, "AVX2 alone, of all", "least", 0.5, lambda f, name=name, spec=spec: f[f"avx2 {spec}"] / f[name]
        if f"mlx {spec}" in names:
            yield spec, "times MLX", "least", 150 if "mxfp" in spec else 15, over([f"mlx {spec}"])
        theirs = [peer for peer in LLAMA.get(spec, ()) if peer in names]
        if theirs:
            yield spec, "times llama.cpp", "least", 12 if "fp" in spec else 6, over(theirs)


def floor(spec):
    if spec in ("mlx-4bit-g64", "mlx-8bit-g64"):
        return 12
    if not spec.startswith(("mlx-", "zimage-")):
        return 2
    return 6 if "fp" in spec else 8


def measure(args):
    rounds = []
    for n in range(args.rounds):
        found = {}
        for turn in (whole_job, kept, figures, memory, giant, convert):
            say(f"round {n + 1} of {args.rounds}: {turn.__name__}")
            found.update(turn(args))
        rounds.append(found)
        (args.dir / "reading-rounds.json").write_text(json.dumps(rounds))
    table = []
    for what, unit, kind, bar, value in rows(rounds[0]):
        table.append({"what": what, "unit": unit, **summary(kind, bar, [value(found) for found in rounds])})
    for spec, column, kind, bar, value in quantizing(rounds[0]):
        table.append({"what": "quantize", "spec": spec, "column": column, **summary(kind, bar, [value(found) for found in rounds])})
    times = {name: statistics.median(found[name] for found in rounds) for name in ("cat", "cold", "warm", "export", "convert")}
    return [{"rounds": args.rounds, "seconds": times, "source_gb": rounds[0]["plain bytes"]}, *table]


def summary(kind, bar, values):
    middle = statistics.median(values)
    met = {"most": lambda: middle <= bar, "least": lambda: middle >= bar, "none": lambda: True}[kind]()
    return {**({} if kind == "none" else {kind: bar}), "value": middle, "from": min(values), "to": max(values), "met": met}


# ---- what is printed


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def render(results):
    print(f"A Llama of 1.1 billion weights ({results[0]['source_gb']:.1f} GB) as {SPEC}; medians of {results[0]['rounds']} rounds; {MISSED.strip()}: short of the aim.\n")
    print("| what | aim | here | from - to |\n| --- | --- | --- | --- |")
    for row in (row for row in results[1:] if row["what"] != "quantize"):
        aim = next((f"at {kind} {row[kind]:g} {row['unit']}" for kind in ("most", "least") if kind in row), "")
        print(f"| {row['what']} | {aim} | {cell(row)} {row['unit']} | {number(row['from'])} - {number(row['to'])} |")
    print("\nQuantizing on one core, the bf16 source in its caches (2 MiB); in brackets the aim, at least; llama.cpp's fastest of Q4_0, Q4_1 and Q8_0, "
          "MXFP4 beside MXFP4; MLX on the CPU:\n")
    found = {}
    for row in (row for row in results[1:] if row["what"] == "quantize"):
        found.setdefault(row["spec"], {})[row["column"]] = row
    columns = list(dict.fromkeys(column for line in found.values() for column in line))
    print(f"| scheme | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for spec, line in found.items():
        print(f"| {spec} | {' | '.join(bracketed(line.get(column)) for column in columns)} |")


def cell(row):
    return number(row["value"]) + ("" if row["met"] else MISSED)


def bracketed(row):
    return "" if row is None else cell(row) + (f" ({row['least']:g})" if "least" in row else "")


def chart(results):
    """Bars of seconds, as SVG."""
    labels = {"cat": "cat of the source (bf16)", "cold": "cold read of the 4-bit view", "warm": "warm read of the view",
              "export": "quantfs export to memory", "convert": "mlx_lm.convert -q"}
    times = results[0]["seconds"]
    longest, lines = max(times.values()), []
    for i, (name, label) in enumerate(labels.items()):
        y, width = 20 + 34 * i, max(1, 420 * times[name] / longest)
        lines.append(f'<text x="230" y="{y + 16}" text-anchor="end">{label}</text>'
                     f'<rect x="240" y="{y}" width="{width:.1f}" height="22" rx="3" fill="{"#2f6fde" if name in ("cold", "warm", "export") else "#9aa4b2"}"/>'
                     f'<text x="{246 + width:.1f}" y="{y + 16}">{times[name]:.2f} s</text>')
    height = 20 + 34 * len(labels)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif" font-size="14">'
            f'<rect width="760" height="{height}" fill="white"/>{"".join(lines)}</svg>\n')


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--quantfs", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--ggml", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--readme", action="store_true")
    args = parser.parse_args()
    args.rounds = 1 if args.quick else 5
    path = args.dir / "reading.jsonl"
    if not args.readme:
        if not shutil.which("cat") or not Path("/dev/fuse").exists():
            sys.exit("bench: reading needs /dev/fuse")
        results = measure(args)
        path.write_text("".join(json.dumps(row) + "\n" for row in results))
        (args.dir / "reading.svg").write_text(chart(results))
    elif not path.exists():
        sys.exit("bench: no results yet; run scripts/bench read first")
    render([json.loads(line) for line in path.open()])
    say(f"results: {path}")


main()
