"""The registry of text towers: which checkpoints put texts and what else they read into one space, and how."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders import UnsupportedEncoder


@dataclass(frozen=True)
class TextTowerFamily:
    """How the checkpoints of one family embed texts.

    Args:
        name: What people call the family, for tables and messages.
        model_types: The `model_type` values of whole checkpoints that belong to it.
        model_class: Name of the transformers class that reads texts, or None for the one that `AutoModel` takes.
        text_config: The text encoder's config, out of that of the whole checkpoint.
        width: Width of the space that texts are put into.
        features: From the model, its inputs and the kind of pooling to `(texts, width)`.
        max_length: The most words that a text may have; longer ones are cut.
        fixed_length: Whether texts were always padded to that length, and the padding read along.
        pools_words: Whether the checkpoint's own files must say how words become a sentence.
        projections: For a tower, the transformers class and the path of the linear layer that leads it into the space.
    """

    name: str
    model_types: tuple[str, ...]
    model_class: str | None
    text_config: Callable[[PreTrainedConfig], PreTrainedConfig]
    width: Callable[[PreTrainedConfig], int]
    features: Callable[[PreTrainedModel, Mapping[str, torch.Tensor], str | None], torch.Tensor]
    max_length: Callable[[PreTrainedConfig], int]
    fixed_length: bool = False
    pools_words: bool = False
    projections: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __reduce__(self) -> tuple:
        # By name, as what embeds may be a lambda, which pickle refuses.
        return _registered, (self.model_types[0],)


_FAMILIES: dict[str, TextTowerFamily] = {}


def _registered(model_type: str) -> TextTowerFamily:
    return _FAMILIES[model_type]


def register_text_tower(family: TextTowerFamily) -> TextTowerFamily:
    """Add a family; every `model_type` may belong to one family only."""
    for model_type in family.model_types:
        if model_type in _FAMILIES:
            raise ValueError(f"model_type '{model_type}' already belongs to '{_FAMILIES[model_type].name}'")
        _FAMILIES[model_type] = family
    return family


def text_tower_families() -> dict[str, TextTowerFamily]:
    """All `model_type` values of checkpoints with a text tower, in the order of registration."""
    return dict(_FAMILIES)


def find_text_tower(config: PreTrainedConfig) -> TextTowerFamily:
    """The family of a whole checkpoint's config.

    Raises:
        UnsupportedEncoder: If no text tower is known that is aligned with such an encoder.
    """
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedEncoder(
            f"an encoder of model_type '{config.model_type}' has no text tower that is aligned with it, so there is "
            f"nothing to compare clouds with; checkpoints of {', '.join(sorted(_FAMILIES))} have one"
        )
    return family


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
