"""README's table of loaders, from the rows that `scripts/interop --json FILE` kept: `python tests/interop/table.py FILE`."""

import json
import sys

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
        good = [row for row in tried if "/" in row["decoded"] and not row["failed"]]
        if good:
            logits = " (logits equal)" if all(row["logits"] == "equal" for row in good) else ""
            read.append(f"{loader}: {models(good)}{logits}")
        bad = [row for row in tried if row not in good]
        if bad:
            unread.append(f"{loader}: {models(bad)}")
    failed = " FAILED" if any(row["failed"] for row in rows) else ""
    return f"| {spec} | {right} of {total}, {models(files)}{failed} | {'; '.join(read)} | {'; '.join(unread)} |"


def main():
    kept = json.load(open(sys.argv[1]))
    specs = dict.fromkeys(row["spec"] for row in kept["rows"])
    print("Versions: " + ", ".join(f"{name} {version}" for name, version in kept["versions"].items()) + ".\n")
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for spec in specs:
        print(line(spec, [row for row in kept["rows"] if row["spec"] == spec]))


if __name__ == "__main__":
    main()
