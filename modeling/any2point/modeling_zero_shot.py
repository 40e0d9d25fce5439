"""Any2Point beside a text tower: clouds and texts in one space, so that a class needs no more than a name."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig
from hf_any3d.modeling.any2point.modeling_any2point import Any2PointModel, Any2PointPreTrainedModel
from hf_any3d.modeling.card_info import CardInfo
from hf_any3d.modeling.layers.forward_contract import honours_contract
from hf_any3d.modeling.text_towers import (
    TextTower,
    embed_labels,
    open_text_tower,
    own_projection,
    text_tower_settings,
)


def right_pairs(cloud_labels: torch.Tensor, text_labels: torch.Tensor) -> torch.Tensor:
    """Which texts mean what a cloud shows, `(clouds, texts)` of 0 and 1.

    Args:
        cloud_labels: `(clouds,)` what each cloud shows.
        text_labels: `(texts,)` what each text means.

    Raises:
        ValueError: If no cloud has a text of its own.
    """
    right = (cloud_labels.unsqueeze(1) == text_labels.unsqueeze(0)).float()
    if not right.any():
        raise ValueError(
            f"no text means what a cloud shows: labels {cloud_labels.unique().tolist()} of the clouds and "
            f"{text_labels.unique().tolist()} of the texts; expected some in common"
        )
    return right


def contrastive_loss(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """InfoNCE in both directions, in which every pair of equal labels is a right one.

    A batch of few classes holds clouds whose texts would be false negatives of each other; here the right answers of a
    row share its target in equal parts (SupCon, arXiv 2004.11362, with the sum inside the target). With labels that
    are all different this is CLIP's loss. Rows without any right answer do not count.

    Args:
        logits: `(clouds, texts)`.
        right: `(clouds, texts)`, see `right_pairs`.
    """
    return (_one_way(logits.float(), right) + _one_way(logits.float().T, right.T)) / 2


def _one_way(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    answered = right.any(dim=1)
    targets = right[answered] / right[answered].sum(dim=1, keepdim=True)
    return nn.functional.cross_entropy(logits[answered], targets)


# Colder than this a batch's hardest pair is all that counts (CLIP, Sec. 2.5).
_MOST_SCALE = 100.0


@dataclass
class Any2PointZeroShotOutput(ModelOutput):
    """How well clouds and texts fit.

    Args:
        loss: Mean contrastive loss of both directions.
        logits_per_point_cloud: `(clouds, texts)`, cosines times the learned scale.
        logits_per_text: `(texts, clouds)`, the same turned round.
        point_embeds: `(clouds, text_width)`, unit vectors.
        text_embeds: `(texts, text_width)`, unit vectors.
        hidden_states: On request, those of `Any2PointOutput`.
        attentions: On request, those of `Any2PointOutput`.
    """

    loss: torch.Tensor | None = None
    logits_per_point_cloud: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    point_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class PointTextAlignment(nn.Module):
    """Leads the features of clouds into the space of the texts, and keeps the temperature of the comparison."""

    def __init__(self, config: Any2PointConfig):
        super().__init__()
        features = len(config.pooling) * config.encoder_config.hidden_size
        self.projection = nn.Linear(features, config.text_width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors `(clouds, text_width)` of pooled features, and the factor of their cosines."""
        projected = self.projection(pooled.to(self.projection.weight.dtype)).float()
        scale = self.logit_scale.float().exp().clamp(max=_MOST_SCALE)
        return nn.functional.normalize(projected, dim=-1), scale

    @torch.no_grad()
    def start_from(self, weight: torch.Tensor) -> None:
        """Start as a map `(text_width, hidden)` of the mean of all poolings."""
        pools = self.projection.in_features // weight.shape[1]
        self.projection.weight.copy_(weight.repeat(1, pools) / pools)
        self.projection.bias.zero_()


class Any2PointForZeroShotPointCloudClassification(Any2PointPreTrainedModel):
    """`Any2PointModel` whose clouds are compared with texts, as `CLIPModel` compares images with them.

    The texts pass the frozen text tower of the very checkpoint that the encoder comes from. It is opened when it is
    first needed, by the recorded name, revision and checksum, and is no part of the model: neither stored nor counted
    nor adapted. Before training on pairs of clouds and texts the answers mean nothing.

    Args:
        config: The configuration, with `text_width`; `from_encoder_pretrained` fills it in.
        encoder: A loaded encoder to use.

    Raises:
        ValueError: If the config does not know the text tower.
    """

    card_info = CardInfo("zero_shot")

    input_modalities = ("point_cloud", "text")

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        if config.text_width is None:
            raise ValueError("text_width is missing; build the model with from_encoder_pretrained(name_or_path)")
        self.any2point = Any2PointModel(config, encoder)
        self.alignment = PointTextAlignment(config)
        self._text_tower: TextTower | None = None
        self.post_init()

    @classmethod
    def from_encoder_pretrained(
        cls,
        encoder_name_or_path: str | os.PathLike | None = None,
        *,
        config: Any2PointConfig | None = None,
        revision: str | None = None,
        text_pooling: str | None = None,
        **kwargs: Any,
    ) -> Any2PointForZeroShotPointCloudClassification:
        """Wrap an encoder that has an aligned text tower, as `Any2PointModel.from_encoder_pretrained` wraps any.

        The projection starts as the checkpoint's own where it has a linear one (CLIP, the texts of SigLIP), for
        sentence encoders as the identity, else at random.

        Args:
            encoder_name_or_path: Hub name or local directory of a transformers checkpoint.
            config: A whole configuration instead.
            revision: Branch, tag or commit of the encoder's repository.
            text_pooling: "mean", "cls" or "max" for a sentence encoder whose files do not say.
            **kwargs: `tower`, `num_layers`, `dtype`, … and anything of `Any2PointConfig`.

        Raises:
            UnsupportedEncoder: If the encoder is not supported or has no aligned text tower.
            ValueError: If both or neither of name and config are given.
        """
        if encoder_name_or_path is not None and config is None:
            kwargs |= text_tower_settings(encoder_name_or_path, revision, text_pooling)
        model = super().from_encoder_pretrained(encoder_name_or_path, config=config, revision=revision, **kwargs)
        if config is None and (weight := own_projection(model.config)) is not None:
            model.alignment.start_from(weight)
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PointTextAlignment):
            init.constant_(module.logit_scale, math.log(1 / self.config.temperature))

    @property
    def text_tower(self) -> TextTower:
        """The frozen text encoder and its tokenizer, opened when first asked for."""
        if self._text_tower is None:
            self._text_tower = open_text_tower(self.config)
        return self._text_tower

    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Unit vectors `(texts, text_width)` of texts that `text_tower.tokenize` or its tokenizer made numbers of.

        Args:
            input_ids: `(texts, words)`.
            attention_mask: `(texts, words)`, 0 where a text is filled up.
            position_ids: As in `CLIPModel.get_text_features`; None, as text towers number their words themselves.
            token_type_ids: What tokenizers of sentence encoders give beside; all 0, as a text is one sentence.

        Raises:
            ValueError: If positions are given, or a text is marked as two.
        """
        if position_ids is not None:
            raise ValueError("position_ids are given; expected None, as the text tower numbers the words itself")
        if token_type_ids is not None and token_type_ids.any():
            raise ValueError("token_type_ids has numbers other than 0; expected texts of one part")
        return self.text_tower.features(input_ids, attention_mask)

    def encode_labels(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> torch.Tensor:
        """Unit vectors `(labels, text_width)` of labels, for `text_embeds`.

        Args:
            labels: Names of classes.
            templates: Texts with `{}` for the label, whose vectors are averaged; the config's by default.
        """
        return embed_labels(self.text_tower, labels, templates or self.config.hypothesis_templates, self.device)

    def get_point_features(self, points: torch.Tensor) -> torch.Tensor:
        """Unit vectors `(clouds, text_width)` of clouds `(clouds, points, in_channels)`."""
        return self.alignment(self.any2point(points, return_dict=True).pooler_output)[0]

    @honours_contract
    def forward(
        self,
        points: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        text_labels: torch.Tensor | None = None,
        return_loss: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Any2PointZeroShotOutput:
        """Compare clouds with texts.

        Args:
            points: `(clouds, points, in_channels)`, xyz first.
            input_ids: `(texts, words)`, as `text_tower.tokenize` gives them.
            attention_mask: `(texts, words)`.
            text_embeds: `(texts, text_width)` instead of both, for texts that were embedded before.
            labels: `(clouds,)` what clouds show; with them, or with `return_loss`, the contrastive loss is returned.
                None takes each cloud and the text of the same place for a pair unlike all others.
            text_labels: `(texts,)` what texts mean; None for one text a cloud, which means what the cloud shows.
            return_loss: Whether to return the loss.
            output_hidden_states: Whether to return the hidden states of clouds; None for the config's choice.
            output_attentions: The same for attention weights, which eager attention alone makes.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If the texts are given twice, or texts and clouds make no pairs; attention weights of another
                attention.
        """
        if input_ids is not None and text_embeds is not None:
            raise ValueError("both input_ids and text_embeds are given; expected one of them")
        below = self.any2point(
            points, output_hidden_states=output_hidden_states, output_attentions=output_attentions, return_dict=True
        )
        asked = {"hidden_states": below.hidden_states, "attentions": below.attentions}
        point_embeds, scale = self.alignment(below.pooler_output)
        if input_ids is not None:
            text_embeds = self.get_text_features(input_ids, attention_mask)
        wants_loss = labels is not None if return_loss is None else return_loss
        if text_embeds is None:
            if wants_loss:
                raise ValueError("the loss compares clouds with texts; expected input_ids or text_embeds")
            return Any2PointZeroShotOutput(point_embeds=point_embeds, **asked)
        text_embeds = nn.functional.normalize(text_embeds.to(point_embeds), dim=-1)
        # Cosines times a hundred: autocast would round away what tells the best labels apart.
        with torch.autocast(point_embeds.device.type, enabled=False):
            logits, loss = scale * point_embeds @ text_embeds.T, None  # (clouds, texts)
        if wants_loss:
            loss = contrastive_loss(logits, right_pairs(*_pair_labels(logits, labels, text_labels)))
        return Any2PointZeroShotOutput(loss, logits, logits.T, point_embeds, text_embeds, **asked)


def _pair_labels(
    logits: torch.Tensor, labels: torch.Tensor | None, text_labels: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    clouds, texts = logits.shape
    if labels is None:
        labels = torch.arange(clouds, device=logits.device)
    if text_labels is None:
        if clouds != texts:
            raise ValueError(f"{clouds} clouds and {texts} texts; expected as many of both, or text_labels")
        text_labels = labels
    if labels.shape != (clouds,) or text_labels.shape != (texts,):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and text_labels {tuple(text_labels.shape)}; expected "
            f"({clouds},) and ({texts},)"
        )
    return labels, text_labels
