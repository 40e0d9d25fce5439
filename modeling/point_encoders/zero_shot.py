"""Comparison of clouds with texts: scores of any labels, and the contrastive loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from hf_any3d.modeling.deferred_errors import refuse_later
from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.kernels.joined_batches import gather_rows, is_joined, rows_of_processes
from hf_any3d.modeling.layers.forward_contract import strict_forward
from hf_any3d.modeling.point_encoders.text_templates import fill_templates
from hf_any3d.modeling.point_encoders.text_towers import TextTower, embed_prompts

# A scale beyond this lets only the hardest pair of a batch count (CLIP, Sec. 2.5).
LARGEST_SCALE = 100.0


@dataclass
class ZeroShotOutput(ModelOutput):
    """Similarity of clouds and texts.

    Args:
        loss: Mean contrastive loss of both directions.
        logits_per_point_cloud: `(clouds, texts)`, cosines times the learned scale.
        logits_per_text: `(texts, clouds)`, the transpose.
        point_embeds: `(clouds, text_width)`, unit vectors.
        text_embeds: `(texts, text_width)`, unit vectors.
        hidden_states: On request, those of the base model.
        attentions: On request, those of the base model.
    """

    loss: torch.Tensor | None = None
    logits_per_point_cloud: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    point_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class TextFeaturesMixin:
    """For models that compare something with texts. A subclass has a `text_tower`."""

    config: PreTrainedConfig
    device: torch.device
    text_tower: TextTower

    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return unit vectors `(texts, text_width)` of texts `(texts, words)`, from `text_tower.tokenize`.

        The mask is 0 for padding. `position_ids`, for the signature of `CLIPModel.get_text_features`, must be None,
        `token_type_ids`, which tokenizers of sentence encoders return, all 0.
        """
        # Their text tower numbers the words itself; anything else would be passed over in silence.
        if position_ids is not None or (token_type_ids is not None and token_type_ids.any()):
            raise ValueError("expected position_ids=None and token_type_ids of 0: texts of one sentence")
        return self.text_tower.features(input_ids, attention_mask)

    def embed_texts(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        text_embeds: torch.Tensor | None,
        with_loss: bool,
    ) -> torch.Tensor | None:
        """Return the vectors of texts, which a call of `forward` has tokenized or embedded; None without any."""
        if (input_ids is None) == (text_embeds is None) and (with_loss or input_ids is not None):
            given = "text_embeds is given beside input_ids" if input_ids is not None else "input_ids is missing"
            raise ValueError(f"{given}; pass one of them, whose texts the clouds are compared with")
        return text_embeds if input_ids is None else self.get_text_features(input_ids, attention_mask)

    def encode_labels(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> torch.Tensor:
        """Return unit vectors `(labels, text_width)` of class names, for `text_embeds`.

        Raises:
            ValueError: There is no label, or a template without `{}`.
            EncoderUnavailableError: The text tower's files are neither on the hub nor in the cache.
        """
        prompts = fill_templates(labels, templates or self.config.hypothesis_templates)
        return embed_prompts(self.text_tower, prompts, self.device)


class CloudsAndTextsMixin(TextFeaturesMixin):
    """For models with an `alignment`, which turns pooled features into unit vectors and has the scale of cosines.

    Others define `align`.
    """

    input_modalities = ("point_cloud", "text")

    def get_point_features(self, points: torch.Tensor) -> torch.Tensor:
        """Return unit vectors `(clouds, text_width)` of clouds `(clouds, points, in_channels)`."""
        return self.align(self.base_model(points, return_dict=True))[0]

    def align(self, output: ModelOutput) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unit vectors `(clouds, text_width)` of the base model's output, and the scale of cosines."""
        return self.alignment(output.pooler_output)

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        text_labels: torch.Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Any,
    ) -> ZeroShotOutput:
        """Compare clouds with texts."""
        # As in CLIPModel, the loss is asked for; labels ask for it too.
        with_loss = labels is not None if return_loss is None else return_loss
        text_embeds = self.embed_texts(input_ids, attention_mask, text_embeds, with_loss)
        output = self.base_model(points, **kwargs, return_dict=True)
        point_embeds, scale = self.align(output)  # (clouds, text_width)
        logits = loss = None
        if text_embeds is not None:
            # Given features may have any length, so they are normalized like those that are computed here.
            text_embeds = unit_vectors_like(point_embeds, text_embeds)  # (texts, text_width)
            logits = scaled_cosines(scale, point_embeds, text_embeds)  # (clouds, texts)
        if with_loss:
            loss = pair_loss(scale, point_embeds, text_embeds, labels, text_labels)
        texts = None if logits is None else logits.T
        states = (output.hidden_states, output.attentions)
        return ZeroShotOutput(loss, logits, texts, point_embeds, text_embeds, *states)


def unit_vectors_like(point_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Return texts `(texts, text_width)` of any length as unit vectors, in dtype and on the device of the clouds."""
    if text_embeds.ndim != 2 or text_embeds.shape[1] != point_embeds.shape[1]:
        raise ValueError(
            f"text_embeds has shape {tuple(text_embeds.shape)}; expected (texts, {point_embeds.shape[1]}), "
            "features of the text tower that the encoder is aligned with"
        )
    return unit_texts(text_embeds, point_embeds)


def unit_texts(text_embeds: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return features of texts `(…, text_width)` as unit vectors, in dtype and on the device of others.

    They may be of any length, also one whose square is beyond the range of the dtype: of such texts `normalize` makes
    zeros, which are equally like every cloud.
    """
    wide = text_embeds if text_embeds.dtype == torch.float64 else text_embeds.float()
    largest = wide.detach().abs().amax(dim=-1, keepdim=True)
    # A power of two, by which nothing is rounded.
    scale = torch.where(largest > 0, largest / (2 * torch.frexp(largest).mantissa), 1)
    return nn.functional.normalize((wide / scale).to(like), dim=-1)


def scaled_cosines(scale: torch.Tensor, point_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Return cosines of unit vectors of clouds and texts times the scale, `(clouds, texts)`."""
    # Cosines times a hundred: autocast would round away the difference between the best labels.
    with autocast_disabled(point_embeds.device):
        return scale * point_embeds @ text_embeds.T


def pair_loss(
    scale: torch.Tensor,
    point_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    labels: torch.Tensor | None = None,
    text_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the contrastive loss of clouds and texts, unit vectors `(clouds, text_width)` and `(texts, text_width)`.

    By default every cloud has a label of its own, and the n-th text that of the n-th cloud.
    """
    clouds = len(point_embeds)
    texts = len(text_embeds)
    if labels is None:
        # Each process has clouds of its own, which are compared with the texts of all: no label may occur twice.
        first = sum(rows_of_processes(point_embeds)[: distributed.get_rank()]) if is_joined() else 0
        labels = torch.arange(first, first + clouds, device=point_embeds.device)
    if text_labels is None:
        text_labels = labels
    if labels.shape != (clouds,) or text_labels.shape != (texts,):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and text_labels {tuple(text_labels.shape)}; expected "
            f"({clouds},) and ({texts},)"
        )
    # Every process compares the clouds and texts of all processes, so that the loss is that of one large batch.
    if is_joined():
        point_embeds = gather_rows(point_embeds)
        text_embeds = gather_rows(text_embeds)
        labels = gather_rows(labels)
        text_labels = gather_rows(text_labels)
    return contrastive_loss(scaled_cosines(scale, point_embeds, text_embeds), matching_pairs(labels, text_labels))


def matching_pairs(cloud_labels: torch.Tensor, text_labels: torch.Tensor) -> torch.Tensor:
    """Return which clouds and texts have equal labels `(clouds,)` and `(texts,)`: `(clouds, texts)` of 0 and 1."""
    matches = (cloud_labels.unsqueeze(1) == text_labels.unsqueeze(0)).float()
    has_any = matches.any()
    if has_any.device.type != "cpu":
        refuse_later(~has_any, "clouds and texts of an earlier batch have no labels in common; expected some")
    elif not has_any:
        raise ValueError("no cloud has the label of one of the texts")
    return matches


def contrastive_loss(logits: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
    """Compute InfoNCE in both directions, with all pairs of equal labels as positives.

    In a batch with few classes, clouds of the same class would be false negatives of each other; here the positives of
    a row share its target equally (SupCon, arXiv 2004.11362, with the sum inside the target). If all labels differ,
    this is CLIP's loss. Rows without positives are ignored. Logits and `matching_pairs` are `(clouds, texts)`.
    """
    directions = []
    for scores, positive in ((logits.float(), matches), (logits.float().T, matches.T)):
        # (rows, 1), the number of matches that share a row's target
        positives = positive.sum(dim=1, keepdim=True)
        # Rows without positives have a target, and so a loss, of zero: selecting rows would wait for an accelerator.
        losses = nn.functional.cross_entropy(scores, positive / positives.clamp(min=1), reduction="none")
        # A mean over the rows that have a match, whatever their number.
        directions.append(losses.sum() / (positives > 0).sum())
    return (directions[0] + directions[1]) / 2
