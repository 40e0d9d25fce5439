"""Models of billions of parameters written file by file, without being built."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

# What is in memory at a time beside what the tensors themselves take, which is little where files are read in place.
_SHARD = "1GB"


def save_weights(
    directory: Path,
    architecture: str,
    config: PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Write what `from_pretrained` opens: config.json and safetensors files.

    Args:
        directory: Where to.
        architecture: Name of the model's class.
        config: Of the model; it is told class and dtype.
        tensors: The state dict of the model.
        dtype: What fractions are stored in; whole numbers stay as they are.

    Raises:
        ValueError: If a number is too large for the dtype.
    """
    planned = {
        name: torch.empty(tensor.shape, dtype=_kept(tensor, dtype), device="meta") for name, tensor in tensors.items()
    }
    split = split_torch_state_dict_into_shards(planned, max_shard_size=_SHARD)
    files = split.filename_to_tensors.items()
    for file, names in tqdm(files, desc="writing", unit="file", disable=None if split.is_sharded else True):
        # Without a name, which would keep a file's tensors until the next one's are there too.
        save_file({name: _cast(name, tensors[name], dtype) for name in names}, directory / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config.architectures, config.dtype = [architecture], dtype
    config.save_pretrained(directory)


def _kept(tensor: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # A copy, as tensors that share their memory cannot be stored.
    cast = tensor.to(_kept(tensor, dtype), copy=True, memory_format=torch.contiguous_format)
    if cast.dtype == torch.float16 and not cast.isfinite().all() and tensor.isfinite().all():
        raise ValueError(f"{name} has numbers that float16 cannot hold; give --dtype bfloat16 or float32")
    return cast
