"""One module a format. Each has

SPECS       quantfs's specs that the library knows too
MODELS      the snapshots it is tried on
LIBRARY     (package, version) that writes and decodes the reference
write       (spec, model, source, target): the checkpoint as the library writes it
decode      (spec, directory): source name -> weight, by the library's decoder, of what is quantized there
SERVED      optional: the dtype in which servers are asked for its layout; absent where none reads it
LOADERS     label -> (spec, model, directory) -> Loaded
bound       (spec, label): how far the loader's output may be from the dense view's, relative; 0: every bit equal
STORE       optional: the module that reads and writes its directories; checkpoint.py's by default
plain       optional: directory -> Loaded, in full precision
same        optional: (name, reference, mounted) -> bool, where equal bytes are not what is promised
same_values optional: the same of decoded values, where the decoder does not keep all of their bits
"""

from importlib import import_module

# Of modules; the format's name in quantfs is what stands before a `_`.
NAMES = ("ct", "fp8", "gptq", "awq", "bnb", "sym", "onnx", "onnx_safetensors")


def named(name):
    return import_module(f"formats.{name}")


def registered(name):
    """The name in quantfs's registry of what a module is about."""
    return name.partition("_")[0]


def projections(contents):
    """The weights that a format without a list of its own quantizes: the models' linear layers but routers and heads."""
    return [name for name in contents if name.endswith("_proj.weight")]
