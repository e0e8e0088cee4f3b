"""Every format of this binary, by the loaders that read it, against the libraries that write it."""

import argparse
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
# The models are tiny: threads that wait for each other cost more than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

from tqdm import tqdm  # noqa: E402

begin = tqdm.__init__
tqdm.__init__ = lambda self, *args, **options: begin(self, *args, **{**options, "disable": True})

import checkpoint  # noqa: E402
import compare  # noqa: E402
import faults  # noqa: E402
import formats  # noqa: E402
import layouts  # noqa: E402
import loaders  # noqa: E402
import mounts  # noqa: E402
import sources  # noqa: E402


@dataclass
class Row:
    """One spec on one model by one loader: tallies by what was compared, and what there is to say."""

    spec: str
    model: str
    loader: str
    version: str
    tallies: dict = field(default_factory=dict)
    logits: str = "-"
    notes: list = field(default_factory=list)

    @property
    def failed(self):
        return [f"{what}: {tally.first or 'nothing was compared'}" for what, tally in self.tallies.items() if not tally.good]


def store(format):
    """What reads and writes the format's directories."""
    return getattr(format, "STORE", checkpoint)


def plain(format, model):
    """What loads the model in full precision."""
    if hasattr(format, "plain"):
        return format.plain
    return loaders.plain_pipeline if model == "sd3" else loaders.plain


@contextmanager
def mounted(format, source, reference, spec, dense):
    """The two views that are compared: in `spec`, and rounded through it; where that one is refused, why, in its place."""
    with mounts.view(source, spec) as packed, ExitStack() as stack:
        try:
            unpacked = stack.enter_context(mounts.view(source, f"dense-{spec}"))
        except mounts.Refused as error:
            unpacked = error
        yield packed, unpacked


def stand_in(fault):
    """In place of mounts, what the library wrote: every check must pass, or it checks something else than the format. With a fault, it must not."""

    @contextmanager
    def serve(format, source, reference, spec, dense):
        with tempfile.TemporaryDirectory(prefix="quantfs-interop-") as made:
            packed, unpacked = Path(made, "packed"), Path(made, "dense")
            shutil.copytree(reference, packed)
            store(format).write(unpacked, source, dense, {})
            if fault:
                faults.plant(fault, packed, unpacked)
            yield packed, unpacked

    return serve


def line(error):
    """The beginning of what an error says."""
    return (str(error).splitlines() or [""])[0][:160]


def attempt(action, *args):
    """What it returns and no error, or nothing and the error in one line."""
    try:
        return action(*args), ""
    except Exception as error:  # a loader may raise anything
        if os.environ.get("QUANTFS_INTEROP_TRACE"):
            traceback.print_exc()
        return None, f"{type(error).__name__}: {line(error)}"


def rounded(source, decoded):
    """What the dense view must hold: the source, its quantized weights replaced by their decoded values."""
    return {name: decoded[name].to(tensor.dtype) if name in decoded else tensor for name, tensor in source.items()}


def read_by(format, label, case, expected, plain_output):
    """One loader's row. What a loader cannot do with the library's own checkpoint, a view cannot be blamed for."""
    spec, model, given, reference, packed, _ = case
    row = Row(spec, model, label, "")
    load = format.LOADERS[label]
    own, error = attempt(load, spec, model, reference)
    if own is None:
        row.notes.append(f"cannot read the library's own: {error}")
        return row
    expected = {name: tensor for name, tensor in expected.items() if name.startswith(own.part)}
    held = {name: tensor for name, tensor in (given | format.decode(spec, reference)).items() if name in expected}
    misread = compare.values(held, own.weights)
    got, error = attempt(load, spec, model, packed)
    tally = compare.Tally() if got is None else compare.values(expected, got.weights)
    if got is None:
        tally.add(False, f"{label} reads the library's own but not the view: {error}")
    elif not misread.good:
        row.notes.append(f"misreads the library's own as much: {misread}, {misread.first}")
        return row
    row.tallies["decoded"] = tally
    if got is not None and got.output is not None and plain_output is not None:
        off, bound = compare.relative(plain_output, got.output), format.bound(spec, label)
        # Which experts are chosen is a step: a rounding on its edge moves an output by a whole expert.
        bound *= 4 if "moe" in model else 1
        row.logits = "equal" if off == 0 else f"{off:.1e} (<= {bound:g})"
        row.tallies["logits"] = compare.Tally()
        row.tallies["logits"].add(off <= bound, f"off by {off:.2e} from the dense view's, {bound:g} allowed")
    return row


def laid_out(format, label, case):
    """A server's row: what its model holds after loading, and the schemes that it chose."""
    spec, model, _, reference, packed, _ = case
    row = Row(spec, model, f"{label} (layout)", layouts.version(label))
    own = layouts.ask(label, reference, format.SERVED)
    if "error" in own:
        row.notes.append(f"cannot read the library's own: {own['error']}")
        return row
    told = layouts.ask(label, packed, format.SERVED)
    misread, wrong = layouts.faults(label, spec, own), layouts.faults(label, spec, told)
    if misread and misread == wrong:
        name, why = next(iter(wrong.items()))
        row.notes.append(f"misreads the library's own as much: {len(wrong)} faults, {name}: {why}")
        return row
    row.tallies["layout"] = tally = compare.Tally()
    if "error" in told:
        tally.add(False, f"reads the library's own but not the view: {told['error']}")
        return row
    for name in layouts.checked(told):
        tally.add(name not in wrong, f"{name}: {wrong.get(name)}")
    return row


def case(format, spec, model, place, serve, wanted):
    """The rows of one spec on one model: its files, then each loader, or those wanted."""
    source = sources.make(model, place / "sources")
    reference = place / "reference" / spec / model
    format.write(spec, model, source, reference)
    given = store(format).tensors(source)
    decoded, error = attempt(format.decode, spec, reference)
    dense = rounded(given, decoded or {})
    try:
        with serve(format, source, reference, spec, dense) as (packed, unpacked):
            case = (spec, model, given, reference, packed, unpacked)
            return rows(format, case, wanted) if decoded is not None else [undecoded(format, case, error)]
    except mounts.Refused as error:
        return [failed(spec, model, "mount", line(error))]


def undecoded(format, case, error):
    """The row of a case whose library cannot read what it writes: names, shapes and bytes alone."""
    row = compared_files(format, case)
    row.notes.append(f"decoded by nothing: its library cannot read what it writes, {error}")
    return row


def failed(spec, model, what, error):
    return Row(spec, model, "(files)", "", {what: compare.Tally(0, 1, error)})


def rows(format, case, wanted):
    """All comparisons of the view `packed` with `reference` and with the dense view `unpacked`."""
    spec, model, given, _, packed, unpacked = case
    files = compared_files(format, case)
    labels = layouts.CHOSEN if hasattr(format, "SERVED") and model != "sd3" else ()
    servers = [laid_out(format, label, case) for label in labels if label in (wanted or (label,))]
    decoded, error = attempt(format.decode, spec, packed)
    if decoded is None:
        files.tallies["decoded"] = compare.Tally(0, 1, f"the library's decoder cannot read the view: {error}")
        return [files, *servers]
    output = None
    if getattr(format, "DENSE", True):
        files.tallies["dense"], output = measured(format, model, rounded(given, decoded), unpacked)
    read = [read_by(format, label, case, given | decoded, output) for label in format.LOADERS if label in (wanted or (label,))]
    return [files, *read, *servers]


def compared_files(format, case):
    """The row of the view's files beside the library's: their tensors and configs."""
    spec, model, _, reference, packed, _ = case
    read = store(format)
    files = Row(spec, model, "(files)", format.LIBRARY[1])
    files.tallies["tensors"] = compare.contents(read.tensors(reference), read.tensors(packed), getattr(format, "same", None))
    files.tallies["config"] = compare.configs(read.configs(reference), read.configs(packed))
    return files


def measured(format, model, expected, unpacked):
    """The dense view against the decoded values, and what the model makes of it."""
    if isinstance(unpacked, mounts.Refused):
        return compare.Tally(0, 1, f"not served: {line(unpacked)}"), None
    tally = compare.contents(expected, store(format).tensors(unpacked), getattr(format, "same_values", None))
    loaded, error = attempt(plain(format, model), unpacked)
    tally.add(loaded is not None, f"the dense view does not load: {error}")
    return tally, loaded.output if loaded else None


COLUMNS = ("spec", "model", "loader", "tensors", "config", "dense", "decoded", "layout", "logits")


def cells(row):
    return [row.spec, row.model, row.loader] + [str(row.tallies.get(column, "-")) for column in COLUMNS[3:8]] + [row.logits]


WIDTHS = (20, 11, 28, 8, 7, 8, 8, 8, 0)


def show(cells):
    print("  ".join(cell.ljust(size) for cell, size in zip(cells, WIDTHS)).rstrip())


def tell(row):
    """A row's line of the table, then what is to be said of it."""
    show(cells(row))
    for note in row.notes:
        print(f"    {row.loader} {note}")
    for fault in row.failed:
        print(f"    FAILED {fault}")
    sys.stdout.flush()


def asked(name, arguments, served):
    """Whether a module of formats/ is to run: all that are served, or those of the formats and specs that are named."""
    format = formats.registered(name)
    words = {word.partition("-")[0] for word in arguments.format}
    return arguments.module == name if arguments.module else format in (words or served)


def chosen(arguments, served):
    """The (format, spec) pairs to run."""
    for name in formats.NAMES:
        module = formats.named(name) if asked(name, arguments, served) else None
        for spec in module.SPECS if module else ():
            if not arguments.format or formats.registered(name) in arguments.format or spec in arguments.format:
                yield module, spec


def apart(names, arguments):
    """Each format in a process of its own: a library that patches another's classes changes what that one writes."""
    rows, totals, status = [], [0, 0, 0], 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix="quantfs-interop-") as made:
            kept = Path(made, "rows.json")
            command = [sys.executable, "-B", __file__, *arguments.format, "--module", name, "--json", kept]
            command += [word for model in arguments.model or () for word in ("--model", model)]
            command += [word for loader in arguments.loader or () for word in ("--loader", loader)]
            command += ["--stand-in"] * arguments.stand_in + (["--fault", arguments.fault] if arguments.fault else [])
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                *_, last = [print(line, end="", flush=True) or line for line in child.stdout] or [""]
            counts = re.fullmatch(r"(\d+) passed, (\d+) failed, (\d+) skipped\n", last)
            totals = [a + int(b) for a, b in zip(totals, counts.groups() if counts else (0, 1, 0))]
            status |= child.returncode != 0
            rows += json.loads(kept.read_text())["rows"] if kept.exists() else []
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")
    print("{} passed, {} failed, {} skipped".format(*totals))
    return status


def versions():
    """The libraries of requirements.txt as they are installed."""
    lines = Path(__file__).with_name("requirements.txt").read_text().splitlines()
    names = [re.split("[=>]", line)[0] for line in lines if line and not line.startswith("#")]
    servers = {label: layouts.version(label) for label in layouts.CHOSEN if layouts.version(label)}
    return {name: metadata.version(name) for name in names if name != "setuptools"} | servers


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format", nargs="*", help="a format (ct fp8 gptq awq bnb onnx) or a spec (ct-4bit); all that the binary has by default")
    parser.add_argument("--model", action="append", help="only this model")
    parser.add_argument("--loader", action="append", help="only this loader: transformers, vLLM")
    parser.add_argument("--module", help=argparse.SUPPRESS)
    parser.add_argument("--stand-in", action="store_true", help="read what the libraries wrote in place of mounts: tries the checks, not quantfs")
    parser.add_argument("--fault", choices=faults.KINDS, help="with --stand-in: spoil this first; the run must fail")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    # Ended from outside, it unmounts and clears away all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    served = set(formats.NAMES) if arguments.stand_in else mounts.formats()
    names = [name for name in formats.NAMES if asked(name, arguments, served)]
    if len(names) > 1:
        return apart(names, arguments)
    with tempfile.TemporaryDirectory(prefix="quantfs-interop-work-") as place:
        return compared(arguments, Path(place))


def compared(arguments, place):
    """Runs the chosen cases, prints their rows and the count, and returns the exit status."""
    serve = stand_in(arguments.fault) if arguments.stand_in else mounted
    served = set(formats.NAMES) if arguments.stand_in else mounts.formats()
    made = []
    show(COLUMNS)
    for format, spec in chosen(arguments, served):
        for model in format.MODELS:
            if not arguments.model or model in arguments.model:
                lines, error = attempt(case, format, spec, model, place, serve, arguments.loader)
                made += (lines := lines or [failed(spec, model, "run", error)])
                for row in lines:
                    tell(row)
    absent = [] if arguments.format or arguments.module else [name for name in formats.NAMES if formats.registered(name) not in served]
    for name in absent:
        print(f"{name}: not in this binary, not tried")
    tallies = [tally for row in made for tally in row.tallies.values()]
    right, total = sum(t.right for t in tallies), sum(max(t.total, 1) for t in tallies)
    unread = sum(bool(row.notes) for row in made)
    if arguments.json:
        rows = [dict(zip(COLUMNS, cells(r)), notes=r.notes, failed=r.failed) for r in made]
        arguments.json.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")
    print(f"{right} passed, {total - right} failed, {unread + len(absent)} skipped")
    return 1 if right != total or not total else 0


if __name__ == "__main__":
    sys.exit(main())
