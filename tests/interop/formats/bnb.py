"""bitsandbytes checkpoints, by from_pretrained with a BitsAndBytesConfig and save_pretrained: transformers', and diffusers' for the pipeline."""

import json
from importlib.metadata import version

import bitsandbytes
import torch
from bitsandbytes import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import checkpoint
import loaders

LIBRARY = ("bitsandbytes", version("bitsandbytes"))
MODELS = ("llama", "llama-odd", "qwen2", "qwen3-moe", "sd3")


def four(kind, double=False):
    return dict(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=torch.bfloat16)


OPTIONS = {"bnb-nf4": four("nf4"), "bnb-nf4-dq": four("nf4", True), "bnb-fp4": four("fp4"), "bnb-fp4-dq": four("fp4", True), "bnb-int8": dict(load_in_8bit=True)}
SPECS = tuple(OPTIONS)


def write(spec, model, source, target):
    if model == "sd3":
        return write_pipeline(spec, source, target)
    AutoModelForCausalLM.from_pretrained(source, quantization_config=BitsAndBytesConfig(**OPTIONS[spec])).save_pretrained(target)


def write_pipeline(spec, source, target):
    import diffusers

    backend = "bitsandbytes_8bit" if spec == "bnb-int8" else "bitsandbytes_4bit"
    parts = diffusers.PipelineQuantizationConfig(
        quant_backend=backend, quant_kwargs=OPTIONS[spec], components_to_quantize=["transformer", "text_encoder"],
    )
    with loaders.gpu_check_answered():
        pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(source, quantization_config=parts, dtype=torch.bfloat16, **loaders.ABSENT)
    pipe.save_pretrained(target)


def by_definition(codes, state):
    """Entries of the book times their blocks' magnitudes, in flat order."""
    if state.nested:
        absmax = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    else:
        absmax = state.absmax
    flat = codes.flatten()
    book = state.code[torch.stack([flat >> 4, flat & 15], 1).long()].flatten()[: state.shape.numel()]
    return (book * absmax.repeat_interleave(state.blocksize)[: book.numel()]).reshape(state.shape).to(state.dtype)


def decode(spec, directory):
    contents = checkpoint.tensors(directory)
    if spec == "bnb-int8":
        rows = {n.removesuffix(".SCB"): t for n, t in contents.items() if n.endswith(".SCB")}
        return {f"{m}.weight": functional.int8_vectorwise_dequant(contents[f"{m}.weight"], scb).bfloat16() for m, scb in rows.items()}
    decoded = {}
    for name in (n.removesuffix(".absmax") for n in contents if n.endswith(".weight.absmax")):
        state = {n: t for n, t in contents.items() if n.startswith(f"{name}.")}
        state = functional.QuantState.from_dict(state, torch.device("cpu"))
        # The kernel for CPUs with AVX-512 starts a block with each row, which its own quantizer does not.
        by_rows = state.shape[-1] % state.blocksize != 0
        decoded[name] = by_definition(contents[name], state) if by_rows else functional.dequantize_4bit(contents[name], state)
    return decoded


def held(module):
    """The weights of a loaded module, those that bitsandbytes holds decoded by it."""
    weights = dict(module.state_dict())
    for name, part in module.named_modules():
        if isinstance(part, bitsandbytes.nn.Linear4bit):
            weights[f"{name}.weight"] = functional.dequantize_4bit(part.weight.data, part.weight.quant_state)
        elif isinstance(part, bitsandbytes.nn.Linear8bitLt):
            weights[f"{name}.weight"] = functional.int8_vectorwise_dequant(part.weight.data, part.weight.SCB).bfloat16()
    return weights


# At its first forward for inference, a CPU with AVX512-BF16 repacks a 4-bit weight and rounds absmax to bf16; in training mode it computes
# with what the file has. No model here has a dropout, so that the mode changes nothing else.
def load(spec, model, directory):
    if model == "sd3":
        with loaders.gpu_check_answered():
            pipe = loaders.pipeline(directory)
        parts = loaders.components(pipe)
        weights = {f"{name}/{key}": value for name, part in parts.items() for key, value in held(part).items()}
        for part in parts.values():
            part.train()
        return loaders.Loaded(weights, loaders.pictures(pipe))
    loaded = loaders.causal(directory)
    weights = loaders.per_expert(held(loaded))
    return loaders.Loaded(weights, loaders.logits(loaded.train()))


LOADERS = {"transformers, diffusers": load}


def bound(spec, label):
    """int8 multiplies rounded activations; the 4-bit kinds multiply the decoded weights."""
    return 0.05 if spec == "bnb-int8" else 0.0


# nested_offset is a mean in f32: torch's order of adding depends on the CPU's vectors.
OFFSET = 1e-6


def same(name, reference, mounted):
    """The quant_state is JSON in a tensor: padded with spaces, so that its length does not depend on the weights."""
    if ".quant_state." not in name:
        return checkpoint.same_bits(reference, mounted)
    left, right = json.loads(bytes(reference.tolist())), json.loads(bytes(mounted.tolist()))
    ours, theirs = right.pop("nested_offset", 0.0), left.pop("nested_offset", 0.0)
    return list(left.items()) == list(right.items()) and abs(ours - theirs) <= OFFSET * abs(theirs)
