"""Every golden vector of MLX, read through a real mount."""

import json
from pathlib import Path

import pytest

import models
from conftest import mounted

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "mlx"


def parsed(path):
    """name -> (dtype, shape, bytes)"""
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    return {n: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])]) for n, t in header.items()}


def cases():
    """(golden file, input, dtype, scheme) -> spec: each group of vectors is one view."""
    found = {}
    for name, flavour in (("mlx_0.32.4", ""), ("mlx_0.31.2", "-nearest"), ("metal_emulated", "-metal")):
        for vector in parsed(GOLDEN / f"{name}.safetensors"):
            *where, scheme, _part = vector.split(".")
            found[(name, ".".join(where), scheme)] = flavour
    return sorted(found.items())


def spec_of(scheme, flavour):
    if scheme.startswith("affine_b"):
        bits, group = scheme.removeprefix("affine_b").split("_g")
        return f"mlx-{bits}bit-g{group}{flavour if flavour == '-metal' else ''}"
    kind, _, rule = scheme.partition("_")
    return f"mlx-{kind}{flavour}" + ("-nearest" if rule == "nearest" and kind != "nvfp4" else "")


class Raw:
    """Bytes that `models.save` writes as they are."""

    def __init__(self, shape, data):
        self.shape, self.data, self.nbytes = shape, data, len(data)

    def tobytes(self):
        return self.data


@pytest.mark.parametrize("case,flavour", cases(), ids=lambda v: "/".join(v) if isinstance(v, tuple) else v)
def test_vectors(case, flavour, tmp_path):
    golden, where, scheme = case
    expected = {n: v for n, v in parsed(GOLDEN / f"{golden}.safetensors").items() if n.startswith(f"{where}.{scheme}.")}
    assert expected
    kind, _, dtype = where.rpartition(".")
    inputs = parsed(GOLDEN / f"input_{'edge' if kind == 'edge' else 'finite'}.safetensors")
    tag, shape, data = inputs[dtype]
    source = tmp_path / "source"
    source.mkdir()
    models.save(source / "rows.safetensors", {"rows.weight": (tag, Raw(shape, data))}, {"format": "pt"})
    with mounted(source, "--spec", spec_of(scheme, flavour)) as view:
        shown = parsed(view / "rows.safetensors")
        for name, value in expected.items():
            assert shown[f"rows.{name.rpartition('.')[2]}"] == value, name
