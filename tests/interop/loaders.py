"""The loaders, called as their users call them; what they hold afterwards is brought to the source's names."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from transformers import AutoModelForCausalLM

TOKENS = torch.arange(3, 19)[None]


@dataclass
class Loaded:
    """A loaded model: decoded weights by source name, and its output for fixed inputs; what its names begin with where it is a part."""

    weights: dict
    output: torch.Tensor | None = None
    part: str = ""
    notes: list = field(default_factory=list)


def per_expert(weights):
    """transformers keeps a layer's experts as two stacks; checkpoints hold one tensor each."""
    found = {}
    for name, tensor in weights.items():
        if name.endswith("experts.gate_up_proj"):
            for expert, (gate, up) in enumerate(zip(*tensor.chunk(2, dim=1))):
                found[name.replace("gate_up_proj", f"{expert}.gate_proj.weight")] = gate
                found[name.replace("gate_up_proj", f"{expert}.up_proj.weight")] = up
        elif name.endswith("experts.down_proj"):
            for expert, down in enumerate(tensor):
                found[name.replace("down_proj", f"{expert}.down_proj.weight")] = down
        else:
            found[name] = tensor
    return found


def causal(directory, **options):
    """`from_pretrained`; a tensor that it misses or does not know is an error, though it only warns."""
    model, told = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, **options)
    wrong = {kind: sorted(map(str, names))[:3] for kind, names in told.items() if names}
    if wrong:
        raise ValueError(f"from_pretrained says {wrong}")
    return model.eval()


@torch.no_grad
def logits(model):
    return model(TOKENS).logits.float()


def plain(directory):
    """A model in full precision."""
    model = causal(directory)
    return Loaded(per_expert(model.state_dict()), logits(model))


# What model_index.json of the pipeline says is null has to be said again when it is loaded.
ABSENT = dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder_2", "text_encoder_3"))


@contextmanager
def gpu_check_answered():
    """diffusers refuses bitsandbytes without a GPU, though its loading code and bitsandbytes run on a CPU: its question alone is answered."""
    from diffusers.quantizers.bitsandbytes import bnb_quantizer

    with mock.patch.multiple(bnb_quantizer.BnB4BitDiffusersQuantizer, validate_environment=lambda *_, **__: None, update_device_map=lambda *_: {"": "cpu"}), \
         mock.patch.multiple(bnb_quantizer.BnB8BitDiffusersQuantizer, validate_environment=lambda *_, **__: None, update_device_map=lambda *_: {"": "cpu"}):
        yield


def pipeline(directory):
    import diffusers

    return diffusers.StableDiffusion3Pipeline.from_pretrained(directory, dtype=torch.bfloat16, **ABSENT)


@torch.no_grad
def pictures(pipe):
    """What the transformer and the text encoder make of fixed inputs, joined."""
    generator = torch.Generator().manual_seed(7)
    noise, text, pooled = (torch.randn(shape, generator=generator).bfloat16() for shape in ((1, 4, 8, 8), (1, 7, 192), (1, 128)))
    seen = pipe.transformer(hidden_states=noise, encoder_hidden_states=text, pooled_projections=pooled, timestep=torch.tensor([3.0])).sample
    told = pipe.text_encoder(TOKENS).text_embeds
    return torch.cat([seen.flatten(), told.flatten()]).float()


def components(pipe):
    """Name -> module of the pipeline's parts that have weights."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def plain_pipeline(directory):
    pipe = pipeline(directory)
    weights = {f"{name}/{key}": value for name, part in components(pipe).items() for key, value in part.state_dict().items()}
    return Loaded(weights, pictures(pipe))
