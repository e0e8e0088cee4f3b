"""A loader in a process of its own, which no other library has patched: `python alone.py MODULE`, of this directory.

Requests come in by line: (function, arguments, a file). What the function returns goes into the file, and a line says so.
"""

import json
import subprocess
import sys
import tempfile
import traceback
from dataclasses import asdict
from functools import cache
from importlib import import_module
from pathlib import Path


class Failed(Exception):
    """What the loader raised there, in one line."""


@cache
def process(module):
    return start(module)


def start(module):
    return subprocess.Popen(
        [sys.executable, "-B", __file__, module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def call(module, function, *arguments, fresh=False):
    """The function's `Loaded`; with `fresh`, in a process that has loaded nothing before."""
    import torch

    import loaders

    child = start(module) if fresh else process(module)
    with tempfile.NamedTemporaryFile(prefix="quantfs-interop-") as made:
        child.stdin.write(json.dumps([function, [str(a) for a in arguments], made.name]) + "\n")
        child.stdin.flush()
        answer = child.stdout.readline()
        if fresh:
            child.communicate()
        error = json.loads(answer)["error"] if answer else "its process ended"
        if error:
            raise Failed(error)
        return loaders.Loaded(**torch.load(made.name))


def main():
    out, sys.stdout = sys.stdout, sys.stderr
    import run  # noqa: F401 - silences the libraries as the other processes do

    module = import_module(sys.argv[1])
    import torch

    for line in sys.stdin:
        function, arguments, path = json.loads(line)
        error = ""
        try:
            loaded = getattr(module, function)(*arguments)
            torch.save(asdict(loaded), path)
        except Exception as raised:  # a loader may raise anything
            traceback.print_exc()
            error = f"{type(raised).__name__}: {run.line(raised)}"
        print(json.dumps({"error": error}), file=out, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
