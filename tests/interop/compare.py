"""Comparisons that count what is equal and keep the first that is not."""

from dataclasses import dataclass

import torch

import checkpoint


@dataclass
class Tally:
    """`right` of `total`, and what the first difference is."""

    right: int = 0
    total: int = 0
    first: str = ""

    def add(self, ok, what=""):
        self.total += 1
        self.right += bool(ok)
        if not ok and not self.first:
            self.first = what

    @property
    def good(self):
        return self.total > 0 and self.right == self.total

    def __str__(self):
        return f"{self.right}/{self.total}"


def contents(reference, mounted, same=None):
    """Names, dtypes, shapes and bytes of two checkpoints' tensors."""
    tally = Tally()
    equal = same or (lambda _, left, right: checkpoint.same_bits(left, right))
    for name in sorted(reference.keys() | mounted.keys()):
        if name not in mounted:
            tally.add(False, f"{name} is missing, {checkpoint.describe(reference[name])} in the library's")
        elif name not in reference:
            tally.add(False, f"{name} is not in the library's")
        else:
            left, right = reference[name], mounted[name]
            tally.add(equal(name, left, right), f"{name}: {checkpoint.describe(left)} by the library, {checkpoint.describe(right)} mounted; {distance(left, right)}")
    return tally


def distance(left, right):
    if left.shape != right.shape or left.dtype != right.dtype:
        return "another type or shape"
    unlike = (left.contiguous().reshape(-1).view(torch.uint8) != right.contiguous().reshape(-1).view(torch.uint8)).sum().item()
    return f"{unlike} of {left.numel() * left.element_size()} bytes differ"


# A fact of the maker and not of the model.
LOOSE = {"_name_or_path", "_diffusers_version", "transformers_version"}


def unordered(value):
    """Lists of names say the same in any order."""
    if isinstance(value, dict):
        return {key: unordered(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [unordered(item) for item in value]
        return sorted(items) if all(isinstance(item, str) for item in items) else items
    return value


def configs(reference, mounted):
    """Every key at the top level of every config; what is said of a difference is where it begins."""
    tally = Tally()
    for file in sorted(reference.keys() | mounted.keys()):
        left, right = reference.get(file, {}), mounted.get(file, {})
        for key in sorted((left.keys() | right.keys()) - LOOSE):
            tally.add(*equal(f"{file}: {key}", unordered(left.get(key, ABSENT)), unordered(right.get(key, ABSENT))))
    return tally


ABSENT = "absent"


def equal(path, left, right):
    """Whether they are, and the innermost key at which they are not."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys()):
            ok, what = equal(f"{path}.{key}", left.get(key, ABSENT), right.get(key, ABSENT))
            if not ok:
                return ok, what
    return left == right, f"{path} is {str(right)[:200]}, the library's {str(left)[:200]}"


def values(expected, found):
    """Decoded weights: every expected one is there, of the same shape, with equal bits once it has the dtype that the loader computes in."""
    tally = Tally()
    for name, tensor in sorted(expected.items()):
        other = found.get(name)
        ok = other is not None and other.shape == tensor.shape and checkpoint.same_bits(tensor.to(other.dtype), other)
        off = "missing" if other is None else f"{checkpoint.describe(other)}, largest difference {gap(tensor, other):.3g}"
        tally.add(ok, f"{name}: {off}")
    return tally


def gap(left, right):
    return (left.double() - right.double()).abs().max().item() if left.shape == right.shape else float("nan")


def relative(reference, output):
    """How far an output is off, in norm; not a number counts as infinitely far."""
    off = ((output.double() - reference.double()).norm() / reference.double().norm()).item()
    return off if off == off else float("inf")
