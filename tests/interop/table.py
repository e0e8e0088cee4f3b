"""README's table of loaders, from the rows that `scripts/interop --json FILE` kept: `python tests/interop/table.py FILE...`.

Of several files' rows of one spec, model and loader the last one's counts.
"""

import json
import sys
from pathlib import Path

HEAD = ("spec", "tensors equal to the library's", "loaded, weights decoded as the format says", "not by")


def models(rows):
    return ", ".join(dict.fromkeys(row["model"] for row in rows))


def line(spec, rows):
    """One spec: its files against the library's, who loads which model, who does not and why."""
    files = [row for row in rows if row["loader"] == "(files)"]
    right, total = (sum(int(row["tensors"].split("/")[part]) for row in files if "/" in row["tensors"]) for part in (0, 1))
    by_loader = {}
    for row in rows:
        if row["loader"] != "(files)":
            by_loader.setdefault(row["loader"], []).append(row)
    read, unread = [], []
    for loader, tried in by_loader.items():
        good = [row for row in tried if "/" in row["decoded"] + row.get("layout", "-") and not row["failed"]]
        if good:
            outputs = {row["logits"] for row in good} - {"-"}
            logits = " (logits equal)" if outputs == {"equal"} else ""
            read.append(f"{loader}: {models(good)}{logits}")
        bad = [row for row in tried if row not in good]
        if bad:
            unread.append(f"{loader}: {models(bad)}")
    failed = " FAILED" if any(row["failed"] for row in rows) else ""
    return f"| {spec} | {right} of {total}, {models(files)}{failed} | {'; '.join(read)} | {'; '.join(unread)} |"


def merged(paths):
    """Versions and rows of all files, specs in the order of their first appearance."""
    versions, rows = {}, {}
    for path in paths:
        kept = json.loads(Path(path).read_text())
        versions |= kept["versions"]
        rows |= {(row["spec"], row["model"], row["loader"]): row for row in kept["rows"]}
    return versions, list(rows.values())


def main():
    versions, rows = merged(sys.argv[1:])
    print("Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n")
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for spec in dict.fromkeys(row["spec"] for row in rows):
        print(line(spec, [row for row in rows if row["spec"] == spec]))


if __name__ == "__main__":
    main()
