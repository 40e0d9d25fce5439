"""Write converted models, into a directory that appears complete or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from hf_any3d.conversions.checkpoints import account, listed
from hf_any3d.utils.atomic_files import claim, remove_temporaries, temporary_path

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types that floats can be stored in, by name."""
# The copy of a shard is what writing needs in memory next to the tensors, which are often memory-mapped.
_SHARD = "1GB"
# Largest difference between copies of the same float32 numbers.
_EQUAL = 1e-6


@contextmanager
def new_directory(output: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to `output` at the end, or removed after an error.

    Args:
        output: The final directory; it must be new or empty.

    Raises:
        FileExistsError: It is not empty, or a symbolic link.
        BlockingIOError: Another process is writing it.
        OSError: It cannot be written, as on a full disk.
    """
    output = Path(output).absolute()
    if output.is_symlink():
        raise FileExistsError(f"{output}: is a symbolic link to {os.readlink(output)}; give a new directory")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output}: exists already and is not empty; give a new directory")
    output.parent.mkdir(parents=True, exist_ok=True)
    # Two conversions into one directory would remove each other's temporary files.
    with claim(output.with_name(f".{output.name}.lock"), output):
        remove_temporaries(output.parent, output.name)
        temporary = temporary_path(output)
        temporary.mkdir()
        try:
            yield temporary
            os.replace(temporary, output)
        except SafetensorError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(f"{output}: cannot be written ({error})") from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def save_weights(
    directory: Path,
    architecture: str,
    config: PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Write what `from_pretrained` opens: config.json and safetensors files.

    Args:
        directory: Existing directory to write to.
        architecture: Name of the model's class.
        config: The model's config; its class and dtype are set.
        tensors: The state dict of the model.
        dtype: Type to store floats in; integers stay as they are.

    Raises:
        ValueError: A number is too large for the dtype.
    """
    # Shards are planned by shapes and dtypes alone.
    planned = {
        name: torch.empty(tensor.shape, dtype=_stored_dtype(tensor, dtype), device="meta")
        for name, tensor in tensors.items()
    }
    split = split_torch_state_dict_into_shards(planned, max_shard_size=_SHARD)
    files = split.filename_to_tensors.items()
    for file, names in tqdm(files, desc="writing", unit="file", disable=None if split.is_sharded else True):
        # No variable holds the copies, so that they are freed before those of the next file are made.
        save_file({name: _cast(name, tensors[name], dtype) for name in names}, directory / file, {"format": "pt"})
    if split.is_sharded:
        # As transformers writes it, with the name under which `from_pretrained` looks for it.
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config.architectures, config.dtype = [architecture], dtype
    config.save_pretrained(directory)


def check_frozen(
    checkpoint: str | os.PathLike,
    name: str,
    expected: Mapping[str, torch.Tensor],
    frozen: Mapping[str, torch.Tensor],
    option: str,
) -> None:
    """Check that the frozen tensors of a checkpoint are those of a named encoder.

    Args:
        checkpoint: The file that they came from.
        name: The encoder.
        expected: Its tensors.
        frozen: Those in the checkpoint, under the same names.
        option: The command line's option for the encoder.

    Raises:
        ValueError: Tensors are missing, left over, of another shape or have other values; they are listed.
    """
    account(checkpoint, frozen, expected)
    different = [
        key
        for key, tensor in expected.items()
        if not torch.allclose(frozen[key].float(), tensor, rtol=_EQUAL, atol=_EQUAL)
    ]
    if different:
        raise ValueError(
            f"{checkpoint}: its frozen layers are not those of encoder {name!r}: {len(different)} of {len(expected)} "
            f"tensors differ: {listed(different)}; give the encoder that it was trained with as {option}"
        )


def wrong_fields(config: PreTrainedConfig, expected: Mapping[str, Any]) -> list[str]:
    """Describe the fields of an encoder's config that have other values than a checkpoint requires."""
    found = {name: getattr(config, name, None) for name in expected}
    return [f"{name}={found[name]!r}, expected {value!r}" for name, value in expected.items() if found[name] != value]


def stored_bytes(directory: str | os.PathLike) -> int:
    """Return the total size of the files in a directory."""
    return sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file())


def _stored_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # A copy, since tensors that share memory cannot be stored.
    cast = tensor.to(_stored_dtype(tensor, dtype), copy=True, memory_format=torch.contiguous_format)
    if cast.dtype == torch.float16 and not cast.isfinite().all() and tensor.isfinite().all():
        raise ValueError(f"{name} has numbers that float16 cannot hold; give --dtype bfloat16 or float32")
    return cast
