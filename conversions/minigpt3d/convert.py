"""MiniGPT-3D from the files of its authors: the parts that training starts from, or a whole model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from hf_any3d.chat import PUBLISHED_GENERATION, MiniGPT3DProcessor
from hf_any3d.conversions.minigpt3d.assembly import put_together
from hf_any3d.conversions.minigpt3d.parts import (
    Part,
    read_converted,
    read_language_model,
    read_point_encoder,
    read_qformer,
)
from hf_any3d.conversions.minigpt3d.stages import STAGES, read_stage
from hf_any3d.conversions.model_cards import write_minigpt3d_card
from hf_any3d.conversions.saving import new_directory, save_weights

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)


def open_tokenizer(name: str | os.PathLike) -> PreTrainedTokenizerBase:
    """Open a tokenizer.

    Args:
        name: Directory or hub name.

    Raises:
        ValueError: There is none, or it has no end token.
    """
    # Of such a directory transformers makes a tokenizer without any words.
    if os.path.isdir(name) and not any((Path(name) / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise ValueError(f"{name}: no tokenizer; expected tokenizer.json or vocab.json, or give --tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name}: no tokenizer that can be opened ({reason}); give --tokenizer") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{name}: the tokenizer has no end token, which answers and padding need")
    return tokenizer


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the files of a tokenizer; returns the names of those that there are."""
    found = [name for name in FILES if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


def take_token_ids(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Give a language model's config the start and end token of its tokenizer, and return what generation needs.

    Configs of transformers' first Phi have ids 1 and 2 there, which are ordinary words of Phi-2's tokenizer.
    """
    end = tokenizer.eos_token_id
    config.bos_token_id = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    config.eos_token_id = end
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return {"bos_token_id": config.bos_token_id, "eos_token_id": end, "pad_token_id": pad}


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert_minigpt3d_parts(
    output: str | os.PathLike,
    *,
    point_encoder: str | os.PathLike | None = None,
    qformer: str | os.PathLike | None = None,
    language_model: str | os.PathLike | None = None,
    dtype: str = "float32",
    num_groups: int | None = None,
    group_size: int | None = None,
) -> dict[str, Any]:
    """Convert what MiniGPT-3D is trained from, each part into a directory that `build_from_parts` opens.

    Args:
        output: Directory to make, with `point_encoder`, `qformer` and `language_model` below it, as given.
        point_encoder: `point_model.pth`.
        qformer: `blip2_pretrained_flant5xxl.pth`.
        language_model: Directory with Phi-2.
        dtype: What fractions are stored in: "float32", "bfloat16" or "float16".
        num_groups: Patches of a cloud; published: 512.
        group_size: Points of a patch; published: 32.

    Returns:
        Facts by name: `output`, `parameters` of each part.

    Raises:
        ValueError: No part is given, a file cannot be read, or its tensors are not all those of the part.
        FileNotFoundError: No such file.
        FileExistsError: `output` exists and is not empty.
    """
    stored_in = _dtype(dtype)
    if point_encoder is None and qformer is None and language_model is None:
        raise ValueError("no part is given; give --point-encoder, --qformer or --language-model")
    parameters = {}
    with new_directory(output) as directory:
        if point_encoder is not None:
            part = read_point_encoder(point_encoder, num_groups, group_size)
            parameters["point_encoder"] = _save(part, directory / "point_encoder", stored_in)
        if qformer is not None:
            parameters["qformer"] = _save(read_qformer(qformer), directory / "qformer", stored_in)
        if language_model is not None:
            part, target = read_language_model(language_model), directory / "language_model"
            target.mkdir()
            if copy_tokenizer(part.source, target):
                ids = take_token_ids(part.config, open_tokenizer(target))
                GenerationConfig(**ids).save_pretrained(target)
            parameters["language_model"] = _save(part, target, stored_in)
    return {"output": os.fspath(output), "parameters": parameters}


def convert_minigpt3d(
    output: str | os.PathLike,
    *,
    point_encoder: str | os.PathLike,
    qformer: str | os.PathLike,
    language_model: str | os.PathLike,
    checkpoint: str | os.PathLike,
    second_checkpoint: str | os.PathLike | None = None,
    tokenizer: str | os.PathLike | None = None,
    stage: int | None = None,
    store_parts: bool = False,
    dtype: str = "float32",
    num_groups: int | None = None,
    group_size: int | None = None,
) -> dict[str, Any]:
    """Convert a whole model: its pretrained parts, and what stages of training made of the rest.

    Parts that `convert_minigpt3d_parts` made are not stored again, but named, with their checksums, in the config. The
    language model is stored all the same before stage II, as what training starts from has other norms.

    Args:
        output: Directory to make.
        point_encoder: `point_model.pth`, or the directory of the converted part.
        qformer: `blip2_pretrained_flant5xxl.pth`, or the directory of the converted part.
        language_model: Directory with Phi-2, as released or converted.
        checkpoint: File of a stage, or the one that training starts from.
        second_checkpoint: File of a later stage, which counts where both hold the same.
        tokenizer: Directory or hub name; by default that of `language_model`.
        stage: 2 where the last checkpoint is of stage II, whose files look like those of stage III.
        store_parts: Whether to store converted parts all the same.
        dtype: What fractions are stored in: "float32", "bfloat16" or "float16".
        num_groups: Patches of a cloud; published: 512.
        group_size: Points of a patch; published: 32.

    Returns:
        Facts by name: `output`, `parameters`, `bytes`, `stages` by file, `fresh`, the parts that no file has, and
        `named`, the directories that hold the parts that are not stored.

    Raises:
        ValueError: A file cannot be read, is of the wrong stage, lacks a tensor or has one too many, or was trained
            with another point encoder.
        FileNotFoundError: No such file.
        FileExistsError: `output` exists and is not empty.

    Source: MiniGPT-3D (arXiv 2405.01413), Sec. 3.
    """
    stored_in = _dtype(dtype)
    with new_directory(output) as directory:
        eyes = read_converted("point_encoder", point_encoder)
        if eyes and (num_groups or group_size):
            raise ValueError(f"{point_encoder}: is converted, with patches of its own; leave out their numbers")
        parts = (
            eyes or read_point_encoder(point_encoder, num_groups, group_size),
            read_converted("qformer", qformer) or read_qformer(qformer),
            read_converted("language_model", language_model) or read_language_model(language_model),
        )
        words = open_tokenizer(language_model if tokenizer is None else tokenizer)
        ids = take_token_ids(parts[2].config, words)
        files = [read_stage(path) for path in (checkpoint, second_checkpoint) if path is not None]
        whole = put_together(*parts, files, stage=stage, store_parts=store_parts)
        config = whole.model.config
        room = min(config.point_token_id, config.text_config.vocab_size)
        if len(words) > room:
            raise ValueError(f"the tokenizer has {len(words)} tokens; the language model takes at most {room}")
        save_weights(directory, type(whole.model).__name__, config, whole.state, stored_in)
        GenerationConfig(**PUBLISHED_GENERATION["demo"], **ids).save_pretrained(directory)
        MiniGPT3DProcessor.from_config(config, words, hide_inner_bos=True).save_pretrained(directory)
        write_minigpt3d_card(directory, Path(output).name, whole, dtype)
    written = [file for file in Path(output).rglob("*") if file.is_file()]
    return {
        "output": os.fspath(output),
        "parameters": whole.model.num_parameters(),
        "bytes": sum(file.stat().st_size for file in written),
        "stages": {os.fspath(file.path): STAGES[file.stage] for file in whole.files},
        "fresh": list(whole.fresh),
        "named": {part: recorded["name_or_path"] for part, recorded in (config.parts or {}).items()},
    }


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r}; expected one of {', '.join(map(repr, DTYPES))}")
    return DTYPES[name]


def _save(part: Part, directory: Path, dtype: torch.dtype) -> int:
    part.save(directory, dtype)
    return sum(tensor.numel() for tensor in part.state.values())
