"""vLLM's own model classes, quantization configs and weight loaders, on a machine without a GPU.

It is the CPU build of vLLM, told after all is imported that it runs on an NVIDIA GPU of compute capability 9.0: which scheme a module
gets and what parameters that scheme has is decided by what the GPU can do. Questions to compiled CUDA code whether it was built for that
GPU are answered yes. Nothing is computed: a model is made, its weights are loaded, and there it ends, before they are repacked for kernels.
"""

import logging
import os
import tempfile
import warnings

os.environ.update(HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1", TQDM_DISABLE="1")
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch  # noqa: E402
import vllm._custom_ops as ops  # noqa: E402
import vllm.v1.attention.backends.fa_utils  # noqa: E402, F401
from vllm.config import DeviceConfig, LoadConfig, ModelConfig, VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment  # noqa: E402
from vllm.distributed.parallel_state import destroy_model_parallel  # noqa: E402
from vllm.model_executor.model_loader import get_model_loader  # noqa: E402
from vllm.model_executor.model_loader.utils import initialize_model  # noqa: E402
from vllm.model_executor.models import llama, qwen2, qwen3_moe  # noqa: E402, F401
from vllm.platforms import current_platform  # noqa: E402
from vllm.platforms.cpu import CpuPlatform  # noqa: E402
from vllm.platforms.interface import DeviceCapability, PlatformEnum  # noqa: E402
from vllm.utils.torch_utils import set_default_torch_dtype  # noqa: E402

import held  # noqa: E402


class Hopper(CpuPlatform):
    """An NVIDIA GPU as far as choices go; memory and collectives stay the CPU's."""

    _enum = PlatformEnum.CUDA

    @classmethod
    def get_device_capability(cls, device_id=0):
        return DeviceCapability(9, 0)

    @classmethod
    def check_and_update_config(cls, vllm_config):
        """Nothing of a CPU's."""


def load(directory, dtype):
    model_config = ModelConfig(model=directory, skip_tokenizer_init=True, enforce_eager=True, dtype=dtype, max_model_len=64)
    loading = LoadConfig(load_format="safetensors", use_tqdm_on_load=False)
    config = VllmConfig(model_config=model_config, device_config=DeviceConfig(device="cpu"), load_config=loading)
    with set_current_vllm_config(config):
        # Whether there is a group for experts is the model's.
        destroy_model_parallel()
        ensure_model_parallel_initialized(1, 1)
        with set_default_torch_dtype(model_config.dtype), torch.device("cpu"):
            model = initialize_model(vllm_config=config)
        get_model_loader(loading).load_weights(model, model_config)
    return model


def main():
    for name in [name for name in dir(ops) if name.startswith("cutlass") and "supports" in name]:
        setattr(ops, name, lambda capability: True)
    current_platform.__class__ = Hopper
    with tempfile.TemporaryDirectory() as place:
        init_distributed_environment(1, 0, f"file://{place}/rendezvous", 0, "gloo")
        held.answer(load)


if __name__ == "__main__":
    main()
