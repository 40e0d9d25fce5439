"""Write converted models, into a directory that appears complete or not at all."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from hf_any3d.conversions.checkpoints import errors_about
from hf_any3d.conversions.origin import are_published, license_of, license_section
from hf_any3d.conversions.tensor_checks import account, listed
from hf_any3d.data.options import one_of
from hf_any3d.model_card.building import build_model_card
from hf_any3d.model_card.saving import FILE, save_card
from hf_any3d.model_card.subject import Subject
from hf_any3d.modeling.file_stamps import file_digest
from hf_any3d.utils.atomic_files import new_directory
from hf_any3d.utils.markdown import code
from hf_any3d.utils.progress import progress_bar
from hf_any3d.version import __version__

CONVERTED = f"converted by hf_any3d {__version__}"

# Largest difference between copies of the same float32 numbers.
_EQUAL = 1e-6


def dtype_of(name: str) -> torch.dtype:
    """Return a type that floats can be stored in."""
    return getattr(torch, one_of("dtype", name, ("float32", "bfloat16", "float16")))


def save_converted(
    output: str | os.PathLike,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: Mapping[str, torch.Tensor],
    processor: Any,
    sources: Mapping[str, Path],
    takes: str,
    sections: Mapping[str, str],
    *,
    dtype: torch.dtype = torch.float32,
    tied: Collection[str] = (),
    generation: GenerationConfig | None = None,
) -> dict[str, Any]:
    """Compare tensors with those of a model, and write model, processor and card.

    Tensors go from file to file, without a model in memory. The card names the files by what they hold, says what the
    model `takes`, and has the sections; "License" is that of the authors. `tied` are tensors that transformers stores
    under another name.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`.
    """
    # Errors name the authors' files, as nothing else is to blame for them.
    files = " and ".join(map(str, sources.values()))
    with errors_about(files):
        # Names and shapes alone, without memory or random numbers.
        with torch.device("meta"), no_init_weights():
            model = model_class(config)
            model.tie_weights()
        account(files, state, model.state_dict())
    with new_directory(output) as directory, errors_about(files):
        # Compared above like all others, but transformers stores tied weights once.
        stored = {name: tensor for name, tensor in state.items() if name not in tied}
        save_weights(directory, model_class.__name__, config, stored, dtype)
        processor.save_pretrained(directory)
        if generation is not None:
            generation.save_pretrained(directory)
        # A card says how many points a model reads where its processor takes a fixed number of them.
        num_points = processor.num_points if getattr(processor, "returns_num_points", False) else None
        listed_files = "\n".join(describe_source(what, [file]) for what, file in sources.items())
        them = "them" if len(sources) > 1 else "it"
        whose = "weights of the authors" if are_published(sources.values()) else "weights in the layout of the authors"
        write_card(
            directory,
            Path(output).name,
            Subject.from_model(model, num_points=num_points),
            f"These are {whose}, {CONVERTED}. It takes {takes}",
            {
                **sections,
                "Quality": "The converted model was not evaluated.",
                "Source": f"{listed_files}\n\nEvery tensor of {them} is accounted for.",
            },
            files=sources.values(),
        )
    return facts_of(output, model)


def write_card(
    directory: Path,
    title: str,
    subject: Subject,
    remark: str,
    sections: Mapping[str, str],
    *,
    files: Collection[Path],
    license: str | None = None,
    **metadata: Any,
) -> None:
    """Write the card of a converted model into a directory, with a remark and sections, title to text.

    The model may be without weights. The section "License" and `license`, for the metadata, are what is known of the
    authors' license, which the card states if the files are theirs. `metadata` is for `build_model_card`.
    """
    sections = {**sections, "License": license_section(files, sections.get("License", ""))}
    license = license_of(files, license)
    card = build_model_card(subject, title, remark=remark, sections=sections, license=license, **metadata)
    save_card(card, directory / FILE)


def describe_source(what: str, files: Sequence[Path]) -> str:
    """Return a line of a list with the authors' files and their checksums."""
    return f"- {what}: " + ", ".join(f"{code(file.name)} (sha256:{file_digest(file)})" for file in files)


def facts_of(output: str | os.PathLike, model: PreTrainedModel) -> dict[str, Any]:
    """Return what is printed about a converted model: `output`, `model`, `parameters`, `bytes`."""
    return {
        "output": os.fspath(output),
        "model": type(model).__name__,
        "parameters": model.num_parameters(),
        "bytes": stored_bytes(output),
    }


def save_weights(
    directory: Path,
    architecture: str,
    config: PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    max_shard_size: int | str = "1GB",
) -> None:
    """Write what `from_pretrained` opens, config.json and safetensors files, with floats of a dtype.

    The config gets the class and the dtype. Writing needs a shard in memory next to the tensors, which are often
    memory-mapped.
    """
    # Shards are planned by shapes and dtypes alone.
    planned = {
        name: torch.empty(tensor.shape, dtype=_stored_dtype(tensor, dtype), device="meta")
        for name, tensor in tensors.items()
    }
    split = split_torch_state_dict_into_shards(planned, max_shard_size=max_shard_size)
    files = split.filename_to_tensors.items()
    for file, names in progress_bar(files, hidden=not split.is_sharded, desc="writing", unit="file"):
        copies = {}
        for name in names:
            # A copy, since tensors that share memory cannot be stored.
            kind = _stored_dtype(tensors[name], dtype)
            copies[name] = tensors[name].to(kind, copy=True, memory_format=torch.contiguous_format)
            if kind == torch.float16 and not copies[name].isfinite().all() and tensors[name].isfinite().all():
                raise ValueError(f"{name} has numbers that float16 cannot hold; give --dtype bfloat16 or float32")
        save_file(copies, directory / file, {"format": "pt"})
        del copies  # before those of the next file are made
    if split.is_sharded:
        # As transformers writes it, with the name under which `from_pretrained` looks for it.
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config.architectures = [architecture]
    config.dtype = dtype
    config.save_pretrained(directory)


def check_frozen(
    checkpoint: str | os.PathLike,
    name: str,
    expected: Mapping[str, torch.Tensor],
    frozen: Mapping[str, torch.Tensor],
    option: str,
) -> None:
    """Check that the frozen tensors of a checkpoint are those of a named encoder, the value of an option."""
    # Names and shapes first, so that every tensor below has its counterpart.
    account(checkpoint, frozen, expected)
    different = []
    for key, tensor in expected.items():
        if not torch.allclose(frozen[key].float(), tensor, rtol=_EQUAL, atol=_EQUAL):
            different.append(key)
    if different:
        raise ValueError(
            f"{checkpoint}: its frozen layers are not those of encoder {name!r}: {len(different)} of {len(expected)} "
            f"tensors differ: {listed(different)}; give the encoder that it was trained with as {option}"
        )


def check_encoder(name: str | os.PathLike, config: PreTrainedConfig, expected: Mapping[str, Any]) -> None:
    """Check that the config of a named encoder has the values that a checkpoint requires."""
    # A field that a config lacks differs from any value.
    for field, value in expected.items():
        stated = getattr(config, field, None)
        if stated != value:
            raise ValueError(
                f"encoder {os.fspath(name)!r} ({config.model_type}) does not fit the checkpoint: it has "
                f"{field}={stated!r}, expected {value!r}"
            )


def stored_bytes(directory: str | os.PathLike) -> int:
    """Return the size of the files in a directory."""
    return sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file())


def _stored_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype
