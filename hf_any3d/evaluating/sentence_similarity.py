"""How near two texts are for a sentence encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.encoders.sources import EncoderSource, resolve_encoder
from hf_any3d.modeling.pretrained_parts import PretrainedPart
from hf_any3d.modeling.text_towers import TextTower, TextTowerFamily, open_text_tower, text_tower_settings
from hf_any3d.training.captions import embed_texts

SENTENCE_BERT = "sentence-transformers/all-mpnet-base-v2"
SIMCSE = "princeton-nlp/sup-simcse-roberta-large"

Similarity = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def open_sentence_encoder(name: str = SENTENCE_BERT, revision: str | None = None) -> tuple[Similarity, str]:
    """Cosines by a sentence encoder, whose own files say how words become a sentence.

    Args:
        name: Directory or hub name; published figures are made with the default.
        revision: Branch, tag or commit.

    Returns:
        From texts and as many references to their cosines, -1 to 1; and which weights these are.

    Raises:
        OSError: It cannot be had.
        ValueError: It is no sentence encoder.
    """
    source = resolve_encoder(name, revision)
    place = str(source.path if source.revision is None else source.name)
    encoder = PretrainedPart(place, source.revision, source.checksum)
    pooling = text_tower_settings(name, source.revision)["text_pooling"]
    config = Any2PointConfig(parts={"encoder": encoder.to_dict()}, text_pooling=pooling)
    return _cosines(open_text_tower(config)), _told(source)


def open_simcse(name: str = SIMCSE, revision: str | None = None) -> tuple[Similarity, str]:
    """Cosines of the pooler's outputs, as SimCSE was trained; see `open_sentence_encoder`.

    Raises:
        OSError: It cannot be had.
        ValueError: It has no trained pooler or no tokenizer.
    """
    source = resolve_encoder(name, revision)
    config = AutoConfig.from_pretrained(source.path)
    model, report = AutoModel.from_pretrained(source.path, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(key for key in report["missing_keys"]):
        raise ValueError(f"{source.name}: lacks {', '.join(missing[:8])}; expected a trained encoder with its pooler")
    # With its commit, since only the weights were brought here so far.
    place = source.path if source.revision is None else source.name
    tokenizer = AutoTokenizer.from_pretrained(place, revision=source.revision or "main")
    behind_padding = config.model_type in ("roberta", "xlm-roberta", "camembert")
    places = config.max_position_embeddings - (config.pad_token_id + 1 if behind_padding else 0)
    family = TextTowerFamily(
        name="SimCSE",
        model_types=(config.model_type,),
        model_class=None,
        text_config=lambda config: config,
        width=lambda config: config.hidden_size,
        features=_pooler_output,
        max_length=lambda config: places,
    )
    return _cosines(TextTower(model, tokenizer, family)), _told(source)


def _pooler_output(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], pooling: str | None) -> torch.Tensor:
    return model(**inputs).pooler_output


def _cosines(tower: TextTower) -> Similarity:
    def cosines(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
        return (embed_texts(tower, texts) * embed_texts(tower, references)).sum(axis=1)

    return cosines


def _told(source: EncoderSource) -> str:
    return f"{source.name} at {source.revision or source.file_checksum}"
