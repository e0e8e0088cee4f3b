"""Bad input gets one clear line that names the thing, an exit code, and nothing left mounted; a source that changes
under a live mount gives an error and never wrong bytes."""

import json
import os
import shutil
import struct
import time
from pathlib import Path

import pytest

from conftest import mounted, run


@pytest.fixture
def model(snapshots, tmp_path):
    """A copy of a two-shard snapshot that a test may spoil."""
    return Path(shutil.copytree(snapshots("llama", shards=2), tmp_path / "model"))


def header(path, text, body=b""):
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def lying(text):
    return lambda m: header(m / "model-00001-of-00002.safetensors", text, b"\0" * 16)


def edit_index(change):
    def spoil(model):
        path = model / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return spoil


def truncate(model):
    os.truncate(model / "model-00002-of-00002.safetensors", 5000)


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ONE = b'{"a.weight":{"dtype":"BF16","shape":[2,4],"data_offsets":[%d,%d]}}'
# What is done to the snapshot, further arguments, the exit code, words that the line must have.
BAD = {
    "missing": (shutil.rmtree, [], 1, ["model", "no such"]),
    "empty": (lambda m: (shutil.rmtree(m), m.mkdir()), [], 1, ["model", "empty"]),
    "no weights": (lambda m: [p.unlink() for p in m.glob("*.safetensors")], [], 1, ["no .safetensors"]),
    "truncated": (truncate, [], 1, [SECOND]),
    "not a header": (lying(b"not json"), [], 1, [FIRST]),
    "header past the end": (lambda m: (m / FIRST).write_bytes(struct.pack("<Q", 1 << 40)), [], 1, [FIRST]),
    "seven bytes": (lambda m: (m / FIRST).write_bytes(b"1234567"), [], 1, [FIRST]),
    "offsets past the end": (lying(ONE % (0, 1 << 50)), [], 1, [FIRST, "a.weight"]),
    "offsets that lie": (lying(ONE % (0, 12)), [], 1, [FIRST, "a.weight"]),
    "absent shard": (lambda m: (m / SECOND).unlink(), [], 1, ["model.safetensors.index.json", SECOND]),
    "absent tensor": (edit_index(lambda w: w.update(ghost=FIRST)), [], 1, ["ghost", FIRST]),
    "wrong shard": (edit_index(lambda w: w.update({"model.embed_tokens.weight": SECOND})), [], 1, ["model.embed_tokens.weight", FIRST]),
    "escaping index": (edit_index(lambda w: w.update(ghost="../x.safetensors")), [], 1, ["model.safetensors.index.json"]),
    "config": (lambda m: (m / "config.json").write_text("{"), [], 1, ["config.json"]),
    "nothing quantized": (lambda m: None, ["--rule", "*=source"], 1, ["not one weight"]),
    "unknown spec": (lambda m: None, ["--spec", "9bit"], 2, ["9bit", "4bit"]),
    "unknown option": (lambda m: None, ["--spec", "4bit-g65"], 2, ["g65", "g64"]),
    "contradiction": (lambda m: None, ["--spec", "4bit", "--bits", "8"], 2, ["--bits 8"]),
    "idle rule": (lambda m: None, ["--rule", "nothing*=8bit"], 2, ["nothing*=8bit", "matches no tensor"]),
    "rule without spec": (lambda m: None, ["--rule", "x"], 2, ["`x`"]),
    "unknown flag": (lambda m: None, ["--bitz", "4"], 2, ["--bitz"]),
    "quantized already": (lambda m: (m / "quantization.json").write_text("{}"), [], 1, ["quantized already"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, model, tmp_path):
    spoil, options, code, words = BAD[name]
    spoil(model)
    point = tmp_path / "mnt"
    point.mkdir()
    done = run("mount", model, point, *options, check=False)
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert "panicked" not in done.stderr
    assert code == 2 or len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not os.path.ismount(point)


def test_bad_mount_points(model, tmp_path):
    file, full = tmp_path / "file", tmp_path / "full"
    file.write_text("x")
    full.mkdir()
    (full / "x").write_text("x")
    inside = model / "inside"
    inside.mkdir()
    for point, word in ((tmp_path / "nowhere", "nowhere"), (file, "file"), (full, "empty"), (inside, "inside")):
        done = run("mount", model, point, check=False)
        assert done.returncode == 1 and word in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not os.path.ismount(point)
    with mounted(model) as view:
        done = run("mount", model, view, check=False)
        assert done.returncode == 1 and str(view) in done.stderr, done.stderr


def read_error(path):
    """The errno of reading a file whole, past the page cache; None where it can be read."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        at = 0
        while data := os.pread(fd, 1 << 20, at):
            at += len(data)
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)


CHANGES = {
    "rewritten": lambda p: p.write_bytes(p.read_bytes()),
    "shrunk": lambda p: os.truncate(p, 4000),
    "grown": lambda p: open(p, "ab").write(b"x"),
    "gone": lambda p: p.unlink(),
    "replaced": lambda p: (shutil.copy(p, f"{p}.new"), os.replace(f"{p}.new", p)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_source_that_changes(name, model):
    import errno

    with mounted(model, "--bits", 4) as view:
        time.sleep(0.02)
        CHANGES[name](model / FIRST)
        assert read_error(view / FIRST) in (errno.ESTALE, errno.EIO)
        assert read_error(view / SECOND) is None
        assert read_error(view / "config.json") is None
        assert json.loads(run("status", view, "--json").stdout)
