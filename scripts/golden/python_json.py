#!/usr/bin/env python3
"""Writes tests/golden/json/*.json: what Python's own json module makes of texts.

read.json: cases [text, indent, what json.dumps(json.loads(text), indent=indent) gives].
refused.json: texts that json.loads refuses.
Seeded, so that a run again gives the same files (floats depend on no library: repr is exact).
"""
import json
import random
import struct
import sys
from pathlib import Path

random.seed(20)
OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "json"

TEXTS = [
    "{}", "[]", '""', "null", " true ", "[ ]", "{ }", "[[], {}, [[]]]", '{"a": {}}', "-0", "0", "-0.0", "0.0",
    "1e5", "1E5", "1e+5", "1e-5", "0.0001", "0.00001", "1e15", "1e16", "123456789012345680.0", "9999999999999998.0",
    "1e22", "1e400", "-1e400", "1e-400", "5e-324", "2.2250738585072014e-308", "1.7976931348623157e308", "10000.0",
    "1.0", "0.1", "0.30000000000000004", "3.14159", "1.50", "100e-2", "123456789012345678901234567890",
    "-123456789012345678901234567890", "9223372036854775808", "18446744073709551616", "NaN", "Infinity", "-Infinity",
    '[NaN, Infinity, -Infinity, "NaN", "Infinity"]', '{"a": 1, "b": 2, "a": 3}', '{"a": {"x": 1}, "a": {"y": 2}}',
    '"\\u00e9"', '"é"', '"\\ud83d\\ude00"', '"😀"', '"\\u0000\\u001f\\u007f\\u0080\\u2028\\uffff"', '"\\/"',
    '"\\"\\\\\\b\\f\\n\\r\\t"', '"\x7f"', '"<|im_end|>"', '"a\\\\"', '["\\\\", "\\""]', "[1,2 , 3\n,\t4\r]",
    '{"rope_theta": 1000000.0, "eps": 1e-05, "rms": 1e-06, "time_step_limit": [0.0, Infinity]}', '{"": 1, " ": 2}',
    '{"é": 1, "\\u00e9": 2}', '{"\\u0061": 1, "a": 2}', "[" * 60 + "]" * 60,
]
REFUSED = [
    "", " ", "{", "[", "]", '{"a"}', '{"a":}', '{"a":1,}', "[1,]", "[,1]", "01", "1.", ".5", "+1", "-", "1e", "1e+", "--1",
    "nan", "inf", "infinity", "+Infinity", "- Infinity", "-NaN", "NaN1", "nul", "nullx", "True", "'a'", '"a', '"\\x"', '"\\u12"',
    '"a\nb"', '"\t"', "{1: 2}", '{"a" 1}', "[1 2]", "1 2", "\ufeff{}", "\u00a01", "[1]]", '{"a": 1}}', "/* */ 1", "\"\\\"",
]


def floats():
    for _ in range(400):
        yield struct.unpack("<d", random.randbytes(8))[0]
    for _ in range(400):
        yield random.choice([-1, 1]) * random.random() * 10.0 ** random.randint(-8, 20)
    # Where the spacing of floats changes, the nearest of the shortest decimals may not read back.
    yield from (2.0 ** exponent for exponent in range(-1074, 1024, 3))
    # Halfway between two shortest decimals.
    yield from ((random.randrange(2 ** 51) * 4 + 1) / 2.0 ** random.randint(1, 4) for _ in range(100))
    for exponent in range(-7, 23):
        yield 10.0 ** exponent
        yield float(f"1.5e{exponent}")


def texts():
    yield from TEXTS
    for value in floats():
        yield f"{value:.17e}" if value == value and abs(value) != float("inf") else json.dumps(value)
    for _ in range(100):
        yield json.dumps("".join(chr(c) for c in (random.randrange(0x110000) for _ in range(20)) if not 0xD800 <= c < 0xE000),
                         ensure_ascii=random.random() < 0.5)
    for path in sys.argv[1:]:
        yield Path(path).read_text()


def refused(text):
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return True
    raise SystemExit(f"Python accepts {text!r}")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    cases = []
    for n, text in enumerate(texts()):
        indents = [0, 1, 2, 4] if n < len(TEXTS) else [4]
        cases += [[text, indent, json.dumps(json.loads(text), indent=indent)] for indent in indents]
    provenance = f"scripts/golden/python_json.py, CPython {sys.version.split()[0]}"
    write("read.json", {"provenance": provenance, "cases": cases})
    write("refused.json", {"provenance": provenance, "cases": [t for t in REFUSED if refused(t)]})


def write(name, table):
    (OUT / name).write_text(json.dumps(table, ensure_ascii=True, separators=(",", ":")) + "\n")


main()
