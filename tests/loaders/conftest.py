"""Mounts, exports and conversions for the loader tests."""

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

import models

QUANTFS = os.environ.get("QUANTFS_BIN") or "quantfs"
REQUIRED = os.environ.get("QUANTFS_REQUIRE_FUSE") == "1"

# transformers says on every import that it has no torch; it is not needed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def run(*args, check=True, timeout=120, **options):
    """Runs quantfs and returns the finished process; a failure shows what it printed."""
    done = subprocess.run([QUANTFS, *map(str, args)], capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode:
        raise AssertionError(f"quantfs {' '.join(map(str, args))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


@contextmanager
def mounted(source, *options):
    """A mount of `source` on a directory beside it."""
    point = Path(f"{source}.mount{os.urandom(4).hex()}")
    point.mkdir()
    try:
        run("mount", source, point, *options)
        yield point
    finally:
        if os.path.ismount(point):
            run("umount", point)
        point.rmdir()


def pytest_collection_modifyitems(items):
    if REQUIRED or os.path.exists("/dev/fuse"):
        return
    print("\nSKIPPING ALL LOADER TESTS: /dev/fuse is missing (modprobe fuse, or run the container with --device /dev/fuse)")
    for item in items:
        item.add_marker(pytest.mark.skip(reason="/dev/fuse is missing"))


@pytest.fixture(scope="session")
def snapshots(tmp_path_factory):
    """Makes each family's snapshot once: snapshots("llama", shards=2)."""
    made = {}

    def make(family, **options):
        key = json.dumps([family, options])
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family) / "model"
            models.make(family, made[key], **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def converted(tmp_path_factory, snapshots):
    """What mlx_lm.convert -q writes for a snapshot: converted("llama", group_size=64, bits=4, mode="affine")."""
    made = {}

    def convert(family, group_size=64, bits=4, mode="affine", **options):
        key = json.dumps([family, group_size, bits, mode, options])
        if key not in made:
            from mlx_lm import convert as reference

            target = tmp_path_factory.mktemp(family) / "converted"
            reference(
                str(snapshots(family, **options)), str(target), quantize=True, q_group_size=group_size, q_bits=bits, q_mode=mode
            )
            made[key] = target
        return made[key]

    return convert
