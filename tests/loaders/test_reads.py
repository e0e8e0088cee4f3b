"""The mount is the exported files, however it is read; and the tools of a Unix machine agree with stat."""

import hashlib
import mmap
import os
import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from conftest import mounted, run

READS, THREADS = 100_000, 8


@pytest.fixture(scope="module")
def pair(snapshots, tmp_path_factory):
    """A mount with a cache smaller than the view, and the export of the same view."""
    source = snapshots("mixtral", shards=3, hidden_size=256, intermediate_size=1024, num_hidden_layers=4)
    out = tmp_path_factory.mktemp("export") / "out"
    run("export", source, out, "--bits", 4)
    with mounted(source, "--bits", 4, "--cache-size", "4MiB") as view:
        yield view, out


def files(directory):
    return sorted(p.relative_to(directory) for p in Path(directory).rglob("*") if p.is_file())


def drop(path):
    """Forgets the page cache of a file, so that reads reach the daemon again."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def test_random_reads(pair):
    view, out = pair
    names = [n for n in files(out) if (out / n).stat().st_size]
    whole = {n: (out / n).read_bytes() for n in names}
    wrong = []

    def reader(seed):
        rng = random.Random(seed)
        fds = {n: os.open(view / n, os.O_RDONLY) for n in names}
        maps = {n: mmap.mmap(fds[n], 0, prot=mmap.PROT_READ) for n in names}
        for i in range(READS // THREADS):
            name = rng.choice(names)
            size = len(whole[name])
            offset = rng.randrange(size)
            length = rng.choice((1, 7, 512, 4096, 65536, 300_000))
            expected = whole[name][offset : offset + length]
            if (got := os.pread(fds[name], length, offset) if i % 2 else maps[name][offset : offset + length]) != expected:
                wrong.append((name, offset, length, len(got)))
            if i % 500 == 0:
                os.posix_fadvise(fds[name], 0, 0, os.POSIX_FADV_DONTNEED)
        for n in names:
            maps[n].close()
            os.close(fds[n])

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]


def test_direct_reads(pair):
    view, out = pair
    name = max(files(out), key=lambda n: (out / n).stat().st_size)
    expected = (out / name).read_bytes()
    fd = os.open(view / name, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 1 << 20)
    got = bytearray()
    while n := os.preadv(fd, [buffer], len(got)):
        got += buffer[:n]
    os.close(fd)
    assert bytes(got) == expected


def test_sendfile_and_splice(pair, tmp_path):
    view, out = pair
    name = max(files(out), key=lambda n: (out / n).stat().st_size)
    expected = (out / name).read_bytes()
    drop(view / name)
    with open(view / name, "rb") as source, open(tmp_path / "sent", "wb") as target:
        while os.sendfile(target.fileno(), source.fileno(), None, 1 << 20):
            pass
    assert (tmp_path / "sent").read_bytes() == expected
    drop(view / name)
    reader, writer = os.pipe()
    got = bytearray()
    with open(view / name, "rb") as source:
        while n := os.splice(source.fileno(), writer, 65536):
            got += os.read(reader, n)
    os.close(reader), os.close(writer)
    assert bytes(got) == expected


@pytest.mark.parametrize("copy", (["cp", "-r"], ["rsync", "-a"]), ids=lambda c: c[0])
def test_copies_agree(pair, tmp_path, copy):
    view, out = pair
    subprocess.run([*copy, f"{view}/.", str(tmp_path / "copy")], check=True, timeout=120)
    assert files(tmp_path / "copy") == files(out)
    for name in files(out):
        assert (tmp_path / "copy" / name).read_bytes() == (out / name).read_bytes(), name
    if copy[0] == "rsync":
        for name in files(out):
            assert (tmp_path / "copy" / name).stat().st_mtime_ns == (view / name).stat().st_mtime_ns


def test_tar_sha256sum_find_and_du_agree_with_stat(pair, tmp_path):
    view, out = pair
    subprocess.run(["tar", "-cf", tmp_path / "view.tar", "-C", view, "."], check=True, timeout=120)
    (tmp_path / "untarred").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "view.tar", "-C", tmp_path / "untarred"], check=True, timeout=120)
    sums = subprocess.run(["sha256sum", *files(out)], cwd=view, check=True, capture_output=True, text=True, timeout=120).stdout
    for line, name in zip(sums.splitlines(), files(out), strict=True):
        data = (tmp_path / "untarred" / name).read_bytes()
        assert line.split()[0] == hashlib.sha256(data).hexdigest() == hashlib.sha256((out / name).read_bytes()).hexdigest()
    found = subprocess.run(["find", ".", "-type", "f", "-printf", "%P %s\n"], cwd=view, check=True, capture_output=True, text=True).stdout
    assert sorted(found.split("\n")[:-1]) == sorted(f"{n} {(view / n).stat().st_size}" for n in files(out))
    apparent = subprocess.run(["du", "-sb", "--apparent-size", "."], cwd=view, check=True, capture_output=True, text=True).stdout
    directories = sum(p.stat().st_size for p in [view, *view.rglob("*")] if p.is_dir())
    assert int(apparent.split()[0]) == sum((view / n).stat().st_size for n in files(out)) + directories


def test_a_killed_export_goes_on(snapshots, tmp_path):
    """The same command takes a killed export up again, and does not write again what was finished."""
    source = snapshots("llama", shards=6, hidden_size=1024, intermediate_size=2048, num_hidden_layers=6)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run("export", source, whole, "--bits", 4)
    command = [os.environ.get("QUANTFS_BIN") or "quantfs", "export", source, cut, "--bits", "4", "--threads", "1"]
    finished = {}
    for _ in range(5):
        shutil.rmtree(cut, ignore_errors=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not any(cut.glob("model-*.safetensors")):
            pass
        process.kill()
        process.wait()
        finished = {p.name: p.stat().st_ino for p in cut.glob("model-*.safetensors")}
        if (cut / ".quantfs-export").exists():
            break
    assert finished and (cut / ".quantfs-export").exists(), "the kill came too late five times"
    other = run("export", source, cut, "--bits", 8, check=False)
    assert other.returncode == 1 and "another view" in other.stderr
    refused = run("verify", cut, check=False)
    assert refused.returncode == 1 and "was not finished" in refused.stdout
    run("export", source, cut, "--bits", 4)
    assert {p.name: p.stat().st_ino for p in cut.glob("model-*.safetensors") if p.name in finished} == finished
    assert files(cut) == files(whole)
    for name in files(whole):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert "already" in run("export", source, cut, "--bits", 4).stdout
    inside = run("export", source, source / "4bit", "--bits", 4, check=False)
    assert inside.returncode == 1 and "inside the source" in inside.stderr
