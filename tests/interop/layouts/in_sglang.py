"""SGLang's own model classes, quantization configs and weight loaders, on a machine without a GPU."""

import logging
import os
import sys
import tempfile
import types
import warnings
from functools import partial

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

# Where there is no GPU it takes the kernels of rotations and norms from vLLM, though it runs none here.
kernels = types.ModuleType("vllm._custom_ops")
kernels.rotary_embedding = kernels.rms_norm = kernels.fused_add_rms_norm = None
sys.modules |= {"vllm": types.ModuleType("vllm"), "vllm._custom_ops": kernels}

import torch  # noqa: E402
from sglang.srt.configs.load_config import LoadConfig  # noqa: E402
from sglang.srt.configs.model_config import ModelConfig  # noqa: E402
from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel  # noqa: E402
from sglang.srt.model_loader import loader  # noqa: E402
from sglang.srt.model_loader.utils import set_default_torch_dtype  # noqa: E402
from sglang.srt.runtime_context import SpawnRanks, publish  # noqa: E402
from sglang.srt.server_args import ServerArgs  # noqa: E402

import held  # noqa: E402


def groups(place):
    """One process alone: made once, when the first arguments are known."""
    if not torch.distributed.is_initialized():
        where = f"file://{place}/rendezvous"
        init_distributed_environment(world_size=1, rank=0, local_rank=0, distributed_init_method=where, backend="gloo")
        initialize_model_parallel()


def load(place, directory, dtype):
    args = ServerArgs(model_path=directory, skip_tokenizer_init=True, dtype=dtype, device="cpu")
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0))
    groups(place)
    config = ModelConfig.from_server_args(args)
    loading = LoadConfig(load_format="safetensors")
    quantization = loader._get_quantization_config(config, loading)
    with set_default_torch_dtype(config.dtype), torch.device("cpu"):
        model = loader._initialize_model(config, loading, quantization)
    own = loader.DefaultModelLoader(loading)
    own.load_weights_only(model, own._get_all_weights(config, model), torch.device("cpu"))
    return model


def capability(device=0):
    """An NVIDIA GPU of compute capability 9.0: what quantization methods ask when they choose."""
    return 9, 0


def main():
    torch.cuda.get_device_capability = capability
    for module in [module for name, module in sys.modules.items() if name.startswith("sglang.srt.layers.quantization")]:
        for name, answer in (("_is_cuda", True), ("get_device_capability", capability)):
            if hasattr(module, name):
                setattr(module, name, answer)
    with tempfile.TemporaryDirectory() as place:
        held.answer(partial(load, place))


if __name__ == "__main__":
    main()
