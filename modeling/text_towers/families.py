"""The text towers that are known: of checkpoints with several encoders, and sentence encoders, which are their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.text_towers.registry import TextTowerFamily, register_text_tower

# What most sentence encoders were trained on; captions are far shorter.
_SENTENCE_LENGTH = 256


def _text_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """The text encoder's config; where the two disagree about the space's width, that of the whole one is right."""
    text = copy.deepcopy(config.text_config)
    if getattr(config, "projection_dim", None) is not None:
        text.projection_dim = config.projection_dim
    return text


def _embeds(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], pooling: str | None) -> torch.Tensor:
    return model(**inputs).text_embeds


def _head(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], pooling: str | None) -> torch.Tensor:
    # Trained with its padding read along, so without a mask.
    return model(input_ids=inputs["input_ids"]).pooler_output


def _pooled_words(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], pooling: str | None) -> torch.Tensor:
    words = model(**inputs).last_hidden_state  # (texts, words, hidden)
    mask = inputs["attention_mask"].unsqueeze(-1).to(words.dtype)
    if pooling == "cls":
        return words[:, 0]
    if pooling == "max":
        return words.masked_fill(mask == 0, -torch.inf).amax(dim=1)
    return (words * mask).sum(dim=1) / mask.sum(dim=1)


def _places(config: PreTrainedConfig) -> int:
    return config.max_position_embeddings


def _places_behind_padding(config: PreTrainedConfig) -> int:
    # RoBERTa's real positions start behind the row of its padding.
    return config.max_position_embeddings - config.pad_token_id - 1


register_text_tower(
    TextTowerFamily(
        name="CLIP",
        model_types=("clip",),
        model_class="CLIPTextModelWithProjection",
        text_config=_text_part,
        width=lambda config: config.projection_dim,
        features=_embeds,
        max_length=_places,
        projections={
            "text": ("CLIPTextModelWithProjection", "text_projection"),
            "vision": ("CLIPVisionModelWithProjection", "visual_projection"),
        },
    )
)
for name, model_type, model_class in (
    ("SigLIP", "siglip", "SiglipTextModel"),
    ("SigLIP 2", "siglip2", "Siglip2TextModel"),
):
    register_text_tower(
        TextTowerFamily(
            name=name,
            model_types=(model_type,),
            model_class=model_class,
            text_config=_text_part,
            width=lambda config: config.projection_size,
            features=_head,
            max_length=_places,
            fixed_length=True,
            projections={"text": (model_class, "head")},
        )
    )
register_text_tower(
    TextTowerFamily(
        name="CLAP",
        model_types=("clap",),
        model_class="ClapTextModelWithProjection",
        text_config=_text_part,
        width=lambda config: config.projection_dim,
        features=_embeds,
        max_length=_places_behind_padding,
    )
)
for name, model_types, max_length in (
    ("sentence encoders", ("bert", "ernie", "mpnet", "distilbert", "electra", "modernbert", "nomic_bert"), _places),
    ("sentence encoders", ("roberta", "xlm-roberta", "camembert"), _places_behind_padding),
):
    register_text_tower(
        TextTowerFamily(
            name=name,
            model_types=model_types,
            model_class=None,
            text_config=lambda config: config,
            width=lambda config: config.hidden_size,
            features=_pooled_words,
            max_length=lambda config, places=max_length: min(places(config), _SENTENCE_LENGTH),
            pools_words=True,
        )
    )
