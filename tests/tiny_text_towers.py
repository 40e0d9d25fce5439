"""Tiny random checkpoints that embed texts: encoder, tokenizer, and the files of sentence encoders."""

from __future__ import annotations

import json
import os
import shutil
import string
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from hf_any3d.modeling.any2point import Any2PointForZeroShotPointCloudClassification
from hf_any3d.modeling.encoders import composite_checkpoints
from hf_any3d.tuners import GuidedAdapterConfig
from tests.tiny_encoders import saved_encoder, tiny_model

LABELS = ["chair", "lamp", "table"]
_POOLING = {"word_embedding_dimension": 48, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of letters with the special token ids of the tiny encoders."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = {token: number for number, token in enumerate([*special.values(), *string.ascii_lowercase])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **special)


def write_text_files(directory: Path, *, is_sentence_encoder: bool) -> Path:
    """Write a tokenizer, and the files of a sentence encoder, to the directory of an encoder."""
    tiny_tokenizer().save_pretrained(directory)
    if is_sentence_encoder:
        (directory / "modules.json").write_text(json.dumps(_MODULES))
        (directory / "1_Pooling").mkdir(exist_ok=True)
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(_POOLING))
    return directory


def tiny_clip_files(directory: Path, width: int) -> dict[str, bytes]:
    """Return the files of a repository with a tiny CLIP whose features have this width; writes them to a directory."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = small | {"vocab_size": 40, "max_position_embeddings": 40, "eos_token_id": 2}
    vision = small | {"image_size": 8, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)).save_pretrained(directory)
    write_text_files(directory, is_sentence_encoder=False)
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def saved_text_tower(model_type: str) -> str:
    """Return the directory of a tiny checkpoint with a text tower, written once per test run."""
    directory = Path(os.environ["HF_HOME"]) / "tiny-text-towers" / model_type
    if not directory.is_dir():
        shutil.copytree(saved_encoder(model_type), directory)
        write_text_files(directory, is_sentence_encoder=model_type not in composite_checkpoints())
    return str(directory)


def tiny_zero_shot_model(encoder: str = "bert", **kwargs: Any) -> Any2PointForZeroShotPointCloudClassification:
    """Make a `tiny_model` with a text tower."""
    source = encoder if os.path.isdir(encoder) or "/" in encoder else saved_text_tower(encoder)
    return tiny_model(source, Any2PointForZeroShotPointCloudClassification, **kwargs).eval()


def adapted_zero_shot_model(encoder: str = "bert", **kwargs: Any) -> PeftModel:
    """Make the same with a guided adapter that has an effect before training."""
    config = GuidedAdapterConfig(r=4, init_weights=False, bottleneck_dropout=0.0)
    return get_peft_model(tiny_zero_shot_model(encoder, **kwargs), config).eval()
