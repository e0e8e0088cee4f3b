"""One module a format. Each has

SPECS       quantfs's specs that the library knows too
MODELS      the snapshots it is tried on
LIBRARY     (package, version) that writes and decodes the reference
write       (spec, model, source, target): the checkpoint as the library writes it
decode      (spec, directory): source name -> weight, by the library's decoder, of what is quantized there
LOADERS     label -> (spec, model, directory) -> Loaded
bound       (spec, label): how far the loader's output may be from the dense view's, relative; 0: every bit equal
STORE       optional: the module that reads and writes its directories; checkpoint.py's by default
plain       optional: directory -> Loaded, in full precision
same        optional: (name, reference, mounted) -> bool, where equal bytes are not what is promised
"""

from importlib import import_module

NAMES = ("ct", "fp8", "gptq", "awq", "bnb", "onnx")


def named(name):
    return import_module(f"formats.{name}")
