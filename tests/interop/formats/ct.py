"""compressed-tensors checkpoints by the library itself: the flow of llm-compressor's QuantizationModifier, without data.

The observer is `memoryless_minmax`: the library has no observer of its own, so minimum and maximum are taken here with torch.
All else - quantization parameters, compression, names, the config - is the library's.
"""

from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import (
    QuantizationArgs, QuantizationConfig, QuantizationScheme, apply_quantization_config, preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam, maybe_pad_tensor_for_block_quant
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import checkpoint
import loaders
from formats import pipelines

LIBRARY = ("compressed-tensors", version("compressed-tensors"))
SERVED = "bfloat16"
MODELS = ("llama", "llama-odd", "qwen2", "qwen3-moe", "sd3")

# Projections that share one global scale in nvfp4, since vLLM runs them as one matrix.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"), ("q_a_proj", "kv_a_proj_with_mqa"))


def packed(bits, group=128, symmetric=True):
    strategy = "group" if group else "channel"
    weights = QuantizationArgs(num_bits=bits, type="int", strategy=strategy, group_size=group, symmetric=symmetric, dynamic=False)
    return QuantizationScheme(targets=["Linear"], weights=weights)


def tensor_fp8():
    """The preset FP8 has static activations, which take data: here they are dynamic, and else as there."""
    scheme = preset_name_to_scheme("FP8", ["Linear"])
    return scheme.model_copy(update={"input_activations": scheme.input_activations.model_copy(update={"dynamic": True, "observer": None})})


SCHEMES = {
    "ct-4bit": lambda: packed(4),
    "ct-4bit-g32": lambda: packed(4, 32),
    "ct-4bit-g64": lambda: packed(4, 64),
    "ct-4bit-g64-asym": lambda: packed(4, 64, False),
    "ct-4bit-g128-asym": lambda: packed(4, 128, False),
    "ct-4bit-channel": lambda: packed(4, None),
    "ct-3bit": lambda: packed(3),
    "ct-8bit": lambda: packed(8),
    "ct-8bit-channel": lambda: packed(8, None),
    "ct-8bit-asym": lambda: packed(8, 128, False),
    "ct-int8": lambda: preset_name_to_scheme("W8A8", ["Linear"]),
    "ct-fp8": lambda: preset_name_to_scheme("FP8_DYNAMIC", ["Linear"]),
    "ct-fp8-tensor": tensor_fp8,
    "ct-fp8-b128": lambda: preset_name_to_scheme("FP8_BLOCK", ["Linear"]),
    "ct-mxfp4": lambda: preset_name_to_scheme("MXFP4A16", ["Linear"]),
    "ct-mxfp8": lambda: preset_name_to_scheme("MXFP8A16", ["Linear"]),
    "ct-nvfp4": lambda: preset_name_to_scheme("NVFP4A16", ["Linear"]),
}


SPECS = tuple(SCHEMES)


def observed(weight, args):
    """The weight with the elements that share one scale along the last axis and a leading axis of one."""
    match args.strategy:
        case "tensor":
            return weight.reshape(1, 1, -1)
        case "channel":
            return weight.unsqueeze(-2).unsqueeze(0)
        case "group" | "tensor_group":
            return weight.unflatten(-1, (-1, args.group_size)).unsqueeze(0)
        case "block":
            high, wide = args.block_structure
            padded = maybe_pad_tensor_for_block_quant(weight, args.block_structure)
            rows, columns = padded.shape
            return padded.reshape(rows // high, high, columns // wide, wide).transpose(1, 2).flatten(-2, -1).unsqueeze(0)
    raise ValueError(args.strategy)


def global_scale(weights):
    largest = torch.stack([torch.max(w.amax(), -w.amin()) for w in weights]).max().reshape(1)
    return generate_gparam(-largest, largest)


def parameters(weight, args, joint=()):
    """weight_scale, weight_zero_point and, for nvfp4, weight_global_scale over `joint`."""
    seen = observed(weight, args)
    low, high = seen.amin(dim=(0, -1)), seen.amax(dim=(0, -1))
    whole = global_scale(joint or [weight]) if args.strategy == "tensor_group" else None
    scale, zero = calculate_qparams(low, high, args, global_scale=whole)
    found = {"weight_scale": scale.to(weight.dtype), "weight_zero_point": zero}
    return found if whole is None else found | {"weight_global_scale": whole}


def siblings(name, names):
    """The modules fused with module `name`, itself included."""
    parent, _, leaf = name.rpartition(".")
    for group in FUSED:
        if leaf in group:
            return [f"{parent}.{other}" for other in group if f"{parent}.{other}" in names]
    return [name]


def fits(weight, scheme):
    """K must be whole groups; where activations come in groups, of those too."""
    groups = [args.group_size for args in (scheme.weights, scheme.input_activations) if args]
    return all(size in (None, -1) or weight.shape[-1] % size == 0 for size in groups)


def compress(weight, scheme, joint=()):
    """What the library stores for one matrix: suffix after the module's name -> tensor."""
    state = {"weight": weight} | parameters(weight, scheme.weights, joint)
    compressor = BaseCompressor.get_value_from_registry(infer_module_format(torch.nn.Linear, scheme).value)
    return compressor.compress(state, scheme)


def expert(name):
    return ".experts." in name and name.endswith("_proj.weight")


def write(spec, model, source, target):
    """Linear modules through ModelCompressor; experts one Linear each, as llm-compressor stores and vLLM reads them."""
    scheme = SCHEMES[spec]()
    if model == "sd3":
        return write_pipeline(scheme, source, target)
    dense = AutoModelForCausalLM.from_pretrained(source)
    linear = {n: m for n, m in dense.named_modules() if isinstance(m, torch.nn.Linear)}
    skipped = [n for n, m in linear.items() if not fits(m.weight, scheme)]
    apply_quantization_config(dense, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head", *skipped]))
    for name, module in linear.items():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        joint = [linear[n].weight for n in siblings(name, linear)]
        for key, value in parameters(module.weight.data, module.quantization_scheme.weights, joint).items():
            if hasattr(module, key):
                getattr(module, key).data = value.to(getattr(module, key).dtype)
    compressor = ModelCompressor.from_pretrained_model(dense)
    compressor.compress_model(dense)
    dense.save_pretrained(target)
    compressor.update_config(target)
    experts(scheme, source, target)


def write_pipeline(scheme, source, target):
    """A layer at a time, as the experts of mixtures; the block is the library's."""

    def made(name, weights):
        joint = [weights[other] for other in siblings(name, weights)]
        return {f"{name}.{key}": value for key, value in compress(weights[name], scheme, joint).items()}

    form = infer_module_format(torch.nn.Linear, scheme)
    scheme = scheme.model_copy(update={"format": form})
    for component, dense in pipelines.write(source, target, lambda weight: fits(weight, scheme), made).items():
        config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=dense, format=form.value, quantization_status="compressed")
        ModelCompressor(quantization_config=config).update_config(Path(target) / component)


def experts(scheme, source, target):
    """Replaces the dense experts of a saved checkpoint by what the library makes of each one."""
    given = checkpoint.tensors(source)
    names = [n for n in given if expert(n) and fits(given[n], scheme)]
    modules = {n.removesuffix(".weight") for n in names}
    saved = checkpoint.tensors(target)
    for module in modules:
        weight = given[saved_name := f"{module}.weight"]
        saved.pop(saved_name)
        joint = [given[f"{n}.weight"] for n in siblings(module, modules)]
        saved |= {f"{module}.{key}": value for key, value in compress(weight, scheme, joint).items()}
    if modules:
        save_file({n: t.contiguous() for n, t in saved.items()}, Path(target) / "model.safetensors", metadata={"format": "pt"})


def decode(spec, directory):
    """Every module with a weight_scale, by its compressor, in the config's own scheme."""
    configs, contents = checkpoint.configs(directory), checkpoint.tensors(directory)
    decoded = {}
    for module in (n.removesuffix(".weight_scale") for n in contents if n.endswith(".weight_scale")):
        component, slash, _ = module.rpartition("/")
        block = configs[f"{component}{slash}config.json"]["quantization_config"]
        scheme = QuantizationScheme.model_validate(block["config_groups"]["group_0"])
        compressor = BaseCompressor.get_value_from_registry(scheme.format)
        state = {n.removeprefix(f"{module}."): t for n, t in contents.items() if n.startswith(f"{module}.weight")}
        decoded[f"{module}.weight"] = compressor.decompress(state, scheme)["weight"].to(torch.bfloat16)
    return decoded


def default(spec, model, directory):
    """The first forward decompresses; where activations are quantized too, the output is no measure of the weights."""
    if model == "sd3":
        return loaders.plain_pipeline(directory)
    loaded = loaders.causal(directory)
    output = loaders.logits(loaded)
    return loaders.Loaded(loaders.per_expert(loaded.state_dict()), None if SCHEMES[spec]().input_activations else output)


def dequantized(spec, model, directory):
    config = transformers.CompressedTensorsConfig(dequantize=True)
    if model == "sd3":
        return pipelines.text_encoder(directory, quantization_config=config)
    loaded = loaders.causal(directory, quantization_config=config)
    return loaders.Loaded(loaders.per_expert(loaded.state_dict()), loaders.logits(loaded))


LOADERS = {"transformers": default, "transformers dequantize=True": dequantized}


def bound(spec, label):
    return 0.0
