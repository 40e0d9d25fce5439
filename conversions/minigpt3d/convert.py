"""Convert the files of MiniGPT-3D's authors: the parts that training starts from, or a complete model."""

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from hf_any3d.chat import PUBLISHED_GENERATION, MiniGPT3DProcessor
from hf_any3d.conversions.checkpoints import check_vocabulary, open_tokenizer
from hf_any3d.conversions.minigpt3d.assembly import STAGES, assemble, read_stage
from hf_any3d.conversions.minigpt3d.card import write_minigpt3d_card
from hf_any3d.conversions.minigpt3d.parts import (
    Part,
    read_converted,
    read_language_model,
    read_point_encoder,
    read_qformer,
)
from hf_any3d.conversions.origin import record_terms
from hf_any3d.conversions.saving import dtype_of, save_weights, stored_bytes
from hf_any3d.modeling.minigpt3d.about import SYSTEM
from hf_any3d.utils.atomic_files import new_directory

_TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json vocab.json merges.txt added_tokens.json special_tokens_map.json"
).split()


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
    dtype: str = "float32",
    num_groups: int | None = None,
    group_size: int | None = None,
) -> dict[str, Any]:
    """Convert a complete model: its pretrained parts, and the checkpoints of its training stages.

    All parts are stored, also those that `convert_minigpt3d_parts` made: a directory has no public name.

    Args:
        output: Directory to create.
        point_encoder: `point_model.pth`, or the directory of the converted part.
        qformer: `blip2_pretrained_flant5xxl.pth`, or the directory of the converted part.
        language_model: Directory with Phi-2, as released or converted.
        checkpoint: File of a stage, or the one that training starts from.
        second_checkpoint: File of another stage; the later one takes precedence.
        tokenizer: Directory or hub name; by default that of `language_model`.
        stage: 2 if the last checkpoint is of stage II, whose files look like those of stage III.
        dtype: Type to store floats in: "float32", "bfloat16" or "float16".
        num_groups: Patches per cloud; published: 512.
        group_size: Points per patch; published: 32.

    Returns:
        Facts by name: `output`, `parameters`, `bytes`, `stages` by file, `tensors`, by file how many are used and
        those left out, by the first word of their names, and `fresh`, the parts that no file has.

    Raises:
        ValueError: `dtype` is none of the three, or a file has tensors that do not fit; names them.
        FileExistsError: `output` is there and not empty.
        FileNotFoundError: There is no such file of a part.

    Source: MiniGPT-3D (arXiv 2405.01413), Sec. 3.
    """
    torch_dtype = dtype_of(dtype)
    with new_directory(output) as directory:
        # Parts may have been converted before, which need not be read and stored twice.
        converted = read_converted("point_encoder", point_encoder)
        if converted and (num_groups or group_size):
            raise ValueError(f"{point_encoder} is converted, with patches of its own; leave out their numbers")
        parts = (
            converted or read_point_encoder(point_encoder, num_groups, group_size),
            read_converted("qformer", qformer) or read_qformer(qformer),
            read_converted("language_model", language_model) or read_language_model(language_model),
        )
        if tokenizer is None:
            tokenizer = language_model
        opened_tokenizer = open_tokenizer(tokenizer)
        ids = _set_token_ids(parts[2].config, opened_tokenizer)
        files = [read_stage(path) for path in (checkpoint, second_checkpoint) if path is not None]
        files.sort(key=lambda file: file.stage)  # files of the same stage keep their order
        assembly = assemble(*parts, files, stage=stage)
        model = assembly.model
        config = assembly.model.config
        record_terms(config, SYSTEM, [file.path for file in assembly.files])
        # The place of a cloud has an id of its own, which must not be that of a word.
        check_vocabulary(opened_tokenizer, min(config.point_token_id, parts[2].config.vocab_size))
        save_weights(directory, type(model).__name__, config, assembly.state, torch_dtype)
        # The released demo's settings; those of its evaluation are for beams.
        GenerationConfig(**PUBLISHED_GENERATION["demo"], **ids).save_pretrained(directory)
        MiniGPT3DProcessor.from_config(config, opened_tokenizer, hide_inner_bos=True).save_pretrained(directory)
        write_minigpt3d_card(directory, Path(output).name, assembly, dtype)
    tensors = {os.fspath(part.source): (len(part.state), part.left_out) for part in parts}
    tensors |= {os.fspath(file.path): (len(file.trained), file.left_out) for file in files}
    return {
        "output": os.fspath(output),
        "parameters": model.num_parameters(),
        "bytes": stored_bytes(output),
        "stages": {os.fspath(file.path): STAGES[file.stage] for file in files},
        "tensors": tensors,
        "fresh": list(assembly.fresh),
    }


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
    """Convert the parts that MiniGPT-3D is trained from, each into a directory that `build_from_parts` opens.

    Args:
        output: Directory to create, with `point_encoder`, `qformer` and `language_model` below it, as given.
        point_encoder: `point_model.pth`.
        qformer: `blip2_pretrained_flant5xxl.pth`.
        language_model: Directory with Phi-2.
        dtype: Type to store floats in: "float32", "bfloat16" or "float16".
        num_groups: Patches per cloud; published: 512.
        group_size: Points per patch; published: 32.

    Returns:
        Facts by name: `output`, `parameters` of each part.
    """
    torch_dtype = dtype_of(dtype)
    parameters = {}
    with new_directory(output) as directory:

        def save(name: str, part: Part) -> None:
            part.save(directory / name, torch_dtype)
            # Counted from the tensors, as no model is built.
            parameters[name] = sum(tensor.numel() for tensor in part.state.values())

        if point_encoder is not None:
            save("point_encoder", read_point_encoder(point_encoder, num_groups, group_size))
        if qformer is not None:
            save("qformer", read_qformer(qformer))
        if language_model is not None:
            # Not only weights: a language model needs its tokenizer and its end token.
            part = read_language_model(language_model)
            target = directory / "language_model"
            target.mkdir()
            # With its tokenizer, the directory of the language model is complete by itself.
            paths = [part.source / name for name in _TOKENIZER_FILES]
            files = [path for path in paths if path.is_file()]
            if files:
                for file in files:
                    shutil.copyfile(file, target / file.name)
                ids = _set_token_ids(part.config, open_tokenizer(target))
                GenerationConfig(**ids).save_pretrained(target)
            save("language_model", part)
    return {"output": os.fspath(output), "parameters": parameters}


def _set_token_ids(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Set a language model's start and end token to its tokenizer's, and return the ids for generation.

    Configs of transformers' first Phi have ids 1 and 2, which are ordinary words of Phi-2's tokenizer.
    """
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    # Phi-2 starts and ends texts with one token.
    if start is None:
        start = end
    if pad is None:
        pad = end
    config.bos_token_id = start
    config.eos_token_id = end
    return {"bos_token_id": start, "eos_token_id": end, "pad_token_id": pad}
