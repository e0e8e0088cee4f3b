"""Views of a source by the quantfs binary."""

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

QUANTFS = os.environ.get("QUANTFS_BIN") or "quantfs"


class Refused(Exception):
    """quantfs does not serve the view; the message is what it printed."""


def run(*args):
    done = subprocess.run([QUANTFS, *map(str, args)], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise Refused((done.stderr or done.stdout).strip())
    return done.stdout


def formats():
    """The names of the formats in this binary's registry."""
    lines = run("formats").splitlines()[1:]
    return {line.split()[0] for line in lines if line.strip() and not line.split()[0].endswith(":")}


@contextmanager
def view(source, spec):
    """A mount of `source` in `spec`, on a directory of its own."""
    point = Path(tempfile.mkdtemp(prefix="quantfs-interop-"))
    try:
        run("mount", source, point, "--spec", spec)
        yield point
    finally:
        if os.path.ismount(point):
            run("umount", point)
        point.rmdir()
