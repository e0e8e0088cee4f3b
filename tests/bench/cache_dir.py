"""What --cache-dir gains: warm reads against an ordinary file, cold reads against encoding.

    python tests/bench/cache_dir.py QUANTFS MODEL SCRATCH [ROUNDS]

MODEL is a snapshot of one .safetensors file, SCRATCH a directory on the file system to try (a disk, or a tmpfs). Needs root,
FUSE and numpy. Everything takes turns; what is printed are medians, ratios of the two of one turn, and their quartiles.
The bytes of both sides are compared before anything is timed. One JSON object a line.
"""

import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

quantfs, model, scratch = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 9
NAME = "model.safetensors"
BLOCK = 1 << 20
mnt, cache, plain = scratch / "mnt", scratch / "cache", scratch / "plain"


def run(*words):
    subprocess.run([quantfs, *map(str, words)], check=True, stdout=subprocess.DEVNULL)


class Mount:
    def __init__(self, *flags):
        self.flags = flags

    def __enter__(self):
        run("mount", model, mnt, *self.flags)
        return mnt / NAME

    def __exit__(self, *_):
        run("umount", mnt)


def status():
    out = subprocess.run([quantfs, "status", "--json", mnt], check=True, capture_output=True)
    return json.loads(out.stdout)


def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def read(path):
    buffer = bytearray(BLOCK)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def mapped(path):
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def add_up(mapping):
    # Gone when it returns, so that the mapping can be closed.
    return int(np.frombuffer(mapping, dtype=np.uint64, count=len(mapping) // 8).sum(dtype=np.uint64))


def fresh(path):
    add_up(mapped(path))


def evict(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def same(one, two):
    return subprocess.run(["cmp", one, two]).returncode == 0


def tell(what, ours, theirs, **more):
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    quarter = len(ratios) // 4
    figures = {"what": what, "ratio": statistics.median(ratios), "quartiles": [ratios[quarter], ratios[-1 - quarter]],
               "seconds": statistics.median(ours), "against_seconds": statistics.median(theirs), **more}
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}), flush=True)


def turns(what, ours, theirs, count=rounds, before=lambda: None, **more):
    pairs = []
    for turn in range(count):
        pair = {}
        for side, work in [("ours", ours), ("theirs", theirs)][:: 1 if turn % 2 else -1]:
            before()
            pair[side] = timed(work)
        pairs.append(pair)
    tell(what, [p["ours"] for p in pairs], [p["theirs"] for p in pairs], **more)


def cold(*flags, evicted=()):
    """Seconds of the first read of a fresh mount."""
    for path in evicted:
        evict(path)
    with Mount(*flags) as path:
        return timed(lambda: read(path))


def main():
    shutil.rmtree(scratch, ignore_errors=True)
    mnt.mkdir(parents=True)
    flag = f"--cache-dir={cache}"
    with Mount() as path:
        shutil.copy(path, plain)
    read(model / NAME)

    # What storing costs those who read, each time into an empty directory.
    storing, bare = [], []
    for _ in range(rounds):
        bare.append(cold())
        shutil.rmtree(cache, ignore_errors=True)
        storing.append(cold(flag))
    tell("cold read that stores / cold read that does not", storing, bare)

    started = time.perf_counter()
    while True:
        with Mount(flag) as path:
            read(path)
            figures = status()
        if figures["passed_through"]:
            break
    finished = time.perf_counter() - started
    stored = next((cache / "v1").glob("*.data"))
    with Mount(flag) as path:
        assert same(path, plain) and same(stored, plain), "the bytes differ"
        assert status()["passed_through"] == 1
    size = os.path.getsize(plain)
    print(json.dumps({"bytes": size, "source_bytes": os.path.getsize(model / NAME), "seconds_until_whole": round(finished, 2),
                      "file_system": os.popen(f"stat -f -c %T {scratch}").read().strip()}), flush=True)

    # Against the very file that the kernel passes through to, opened beside the mount: two copies of a file differ by up to a
    # third in speed, by where their pages happen to lie.
    with Mount(flag) as path:
        for what, work in [("read", read), ("fresh mapping", fresh)]:
            work(path), work(stored), work(plain)
            turns(f"passthrough: {what} / the same file", lambda: work(path), lambda: work(stored), 3 * rounds)
            turns(f"for comparison: {what} of a copy / the same file", lambda: work(plain), lambda: work(stored), 3 * rounds)
        ours, theirs = mapped(path), mapped(stored)
        add_up(ours), add_up(theirs)
        turns("passthrough: existing mapping / the same file", lambda: add_up(ours), lambda: add_up(theirs), 3 * rounds)
        assert status()["counters"]["reads"] == 0
        ours.close(), theirs.close()

    off = ("--passthrough", "off")
    pairs = [(cold(), cold(flag), cold(flag, *off)) for _ in range(rounds)]
    tell("cold, store in memory: passthrough / encoding", [p[1] for p in pairs], [p[0] for p in pairs])
    tell("cold, store in memory: checked by the daemon / encoding", [p[2] for p in pairs], [p[0] for p in pairs])
    source = model / NAME
    pairs = [
        (cold(evicted=[source]), cold(flag, evicted=[stored, source]), cold(flag, *off, evicted=[stored, source]))
        for _ in range(max(3, rounds // 2))
    ]
    tell("cold, both evicted: passthrough / encoding", [p[1] for p in pairs], [p[0] for p in pairs])
    tell("cold, both evicted: checked by the daemon / encoding", [p[2] for p in pairs], [p[0] for p in pairs])
    read(source)
    pairs = [(cold(), cold(flag, evicted=[stored])) for _ in range(max(3, rounds // 2))]
    tell("cold, store evicted, source in memory: passthrough / encoding", [p[1] for p in pairs], [p[0] for p in pairs])
    shutil.rmtree(scratch)


main()
