"""Opening the text tower that belongs to an encoder: from the same repository, revision and weights."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_any3d.modeling.encoders import UnsupportedEncoder
from hf_any3d.modeling.encoders.sources import EncoderSource, open_recorded, resolve_encoder
from hf_any3d.modeling.pretrained_parts import PretrainedPart
from hf_any3d.modeling.text_towers.registry import TextTowerFamily, find_text_tower
from hf_any3d.modeling.text_towers.sentence_files import POOLINGS, sentence_pooling
from hf_any3d.modeling.text_towers.tower import TextTower


def text_tower_settings(
    name_or_path: str | os.PathLike, revision: str | None = None, text_pooling: str | None = None
) -> dict[str, Any]:
    """What a model's config records of the text tower that belongs to an encoder.

    Args:
        name_or_path: Hub name or directory of the whole checkpoint.
        revision: Branch, tag or commit.
        text_pooling: "mean", "cls" or "max", how a sentence encoder pools; None takes what its files say.

    Returns:
        `text_width` and `text_pooling`.

    Raises:
        UnsupportedEncoder: If the encoder has no aligned text tower, or does not say how it embeds sentences.
        ValueError: If `text_pooling` is unknown, or given for an encoder that has a way of its own.
    """
    source = resolve_encoder(name_or_path, revision)
    config = AutoConfig.from_pretrained(source.path)
    family = find_text_tower(config)
    if text_pooling is not None and (text_pooling not in POOLINGS or not family.pools_words):
        allowed = f"one of {', '.join(map(repr, POOLINGS))}" if family.pools_words else f"None for {family.name}"
        raise ValueError(f"text_pooling={text_pooling!r}; expected {allowed}")
    if family.pools_words and text_pooling is None:
        text_pooling = sentence_pooling(source)
    return {"text_width": family.width(family.text_config(config)), "text_pooling": text_pooling}


def open_text_tower(config: PreTrainedConfig) -> TextTower:
    """Open the text tower that belongs to the encoder of a model, also of one that was changed and is stored with it.

    Args:
        config: Has a part "encoder", and `text_pooling`.

    Raises:
        ValueError: If nobody knows where the encoder came from, or the checkpoint lacks the tokenizer.
        EncoderMismatchError: If the weights are others than the recorded ones.
        UnsupportedEncoder: If the encoder has no aligned text tower.
    """
    source, whole, family = _whole_checkpoint(config.part("encoder"))
    model = _load(source, family.model_class, family.text_config(whole))
    # With its commit a file that was fetched once is found without the network.
    place = source.path if source.revision is None else source.name
    tokenizer = AutoTokenizer.from_pretrained(place, revision=source.revision or "main")
    # Where the files are missing transformers makes a tokenizer to which all words are unknown, and says nothing.
    if tokenizer("chair")["input_ids"] == tokenizer("lamp")["input_ids"]:
        raise ValueError(
            f"encoder {source.name!r}: its files have no tokenizer, or one that cannot tell 'chair' from 'lamp'; "
            "expected that of its text tower beside the weights"
        )
    return TextTower(model, tokenizer, family, config.text_pooling)


def own_projection(config: PreTrainedConfig) -> torch.Tensor | None:
    """The linear map `(text_width, hidden)` by which the checkpoint itself leads the wrapped tower into its space.

    A sentence encoder lives in that space already: its map is the identity. None where there is no such map, or one
    of another shape.

    Args:
        config: As `open_text_tower` takes it.
    """
    source, whole, family = _whole_checkpoint(config.part("encoder"))
    hidden = config.encoder_config.hidden_size
    if family.pools_words:
        return torch.eye(hidden)
    if config.encoder_tower not in family.projections:
        return None
    name, path = family.projections[config.encoder_tower]
    part = family.text_config(whole) if config.encoder_tower == "text" else whole.vision_config
    if getattr(whole, "projection_dim", None) is not None:
        part.projection_dim = whole.projection_dim
    weight = _load(source, name, part).get_submodule(path).weight.detach()
    return weight if weight.shape == (config.text_width, hidden) else None


def _whole_checkpoint(encoder: PretrainedPart) -> tuple[EncoderSource, PreTrainedConfig, TextTowerFamily]:
    if encoder.name_or_path is None:
        raise ValueError(
            "the config names no encoder, so the text tower that belongs to it cannot be found; give text_embeds, or "
            "build the model with from_encoder_pretrained(name_or_path)"
        )
    if encoder.stored:  # the checksum is that of the changed encoder
        encoder = dataclasses.replace(encoder, checksum=None)
    source = open_recorded(encoder)
    whole = AutoConfig.from_pretrained(source.path)
    return source, whole, find_text_tower(whole)


def _load(source: EncoderSource, model_class: str | None, config: PreTrainedConfig) -> PreTrainedModel:
    build = AutoModel if model_class is None else getattr(transformers, model_class)
    verbosity = logging.get_verbosity()
    # The other tower of the checkpoint is left out on purpose: no report of unexpected keys.
    logging.set_verbosity_error()
    try:
        model, report = build.from_pretrained(
            source.path, config=config, dtype=torch.float32, output_loading_info=True
        )
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        raise UnsupportedEncoder(f"{source.name}: the text tower lacks {', '.join(missing[:8])}")
    return model
