"""The sd3 pipeline in formats that diffusers has no quantizer for: which layers are quantized, and the text encoder, which transformers loads."""

from pathlib import Path

import torch

import checkpoint
import loaders

# transformers keeps the layer that makes the encoder's output dense, as it does a language model's.
KEPT = {"transformer": (), "text_encoder": ("text_projection",)}


def write(source, target, holds, made):
    """A copy of the pipeline in which `made` replaces weights of linear layers that `holds`; component -> the layers left dense."""
    contents, dense = checkpoint.tensors(source), {}
    parts = loaders.components(loaders.pipeline(source))
    for component, kept in KEPT.items():
        linear = [name for name, module in parts[component].named_modules() if isinstance(module, torch.nn.Linear)]
        weights = {name: contents[f"{component}/{name}.weight"] for name in linear}
        taken = {name: weight for name, weight in weights.items() if name not in kept and holds(weight)}
        for name in taken:
            del contents[f"{component}/{name}.weight"]
            contents |= {f"{component}/{key}": tensor for key, tensor in made(name, taken).items()}
        dense[component] = [name for name in linear if name not in taken]
    checkpoint.write(target, source, contents, {})
    return dense


def text_encoder(directory, **options):
    """The one part that its own library loads here."""
    from transformers import CLIPTextModelWithProjection

    component = "text_encoder"
    model = CLIPTextModelWithProjection.from_pretrained(Path(directory) / component, **options)
    return loaders.Loaded({f"{component}/{name}": tensor for name, tensor in model.state_dict().items()}, part=f"{component}/")
