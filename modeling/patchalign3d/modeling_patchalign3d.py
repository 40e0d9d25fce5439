"""PatchAlign3D's point encoder, its heads, and its two training stages (arXiv 2601.02457).

Shapes: B clouds, N points of each, G tokens, M points of a patch, H width of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.layers.forward_contract import strict_forward
from hf_any3d.modeling.layers.heads import ClassToken, in_precision_of
from hf_any3d.modeling.patchalign3d.configuration_patchalign3d import ASSIGNMENTS, PatchAlign3DConfig
from hf_any3d.modeling.point_encoders.aligned_encoders.modeling_aligned_encoders import (
    AlignedClassifier,
    AlignedEncoder,
    AlignedEncoderOutput,
    AlignedPreTrainedModel,
    AlignedSegmenter,
    TextAlignment,
    Tokens,
)
from hf_any3d.modeling.point_encoders.part_texts import PartTextsMixin, text_targets
from hf_any3d.modeling.point_encoders.patches import PatchEncoder, Patches, cut_patches
from hf_any3d.modeling.point_encoders.zero_shot import LARGEST_SCALE, unit_texts
from hf_any3d.modeling.point_ops import gather_points, group, knn, scatter_mean
from hf_any3d.modeling.point_ops.grouping import check_channels

UNLABELED = -1
"""Majority of a patch without labeled points."""


@dataclass
class PartTextOutput(ModelOutput):
    """Similarity of patches and points with texts.

    Args:
        loss: Loss of stage 2, with labels.
        logits: `(batch, points, texts)`, scores of the points: those of patches, carried to them.
        patch_logits: `(batch, groups, texts)`, cosines divided by the config's temperature.
        patch_embeds: `(batch, groups, feature_size)`, unit vectors.
        text_embeds: `(texts, feature_size)` or `(batch, texts, feature_size)`, unit vectors.
        patch_accuracy: With labels, share of patches whose best label is that of most of their points.
        hidden_states: On request, those of the encoder.
        attentions: On request, those of the encoder.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    patch_logits: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    patch_accuracy: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class PatchDistillationOutput(ModelOutput):
    """Features of patches, compared with those of an image encoder.

    Args:
        loss: With targets, the mean of one minus the cosine.
        predictions: `(batch, groups, feature_size)`, features of patches, not normalized.
        center_distance: With targets, mean distance between a patch and its target.
        hidden_states: On request, those of the encoder.
        attentions: On request, those of the encoder.
    """

    loss: torch.Tensor | None = None
    predictions: torch.Tensor | None = None
    center_distance: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class PatchAlign3DPreTrainedModel(AlignedPreTrainedModel):
    """Base class of all PatchAlign3D models."""

    config_class = PatchAlign3DConfig
    config: PatchAlign3DConfig
    base_model_prefix = "patchalign3d"

    @classmethod
    def base_class(cls) -> type[PatchAlign3DModel]:
        """Class of the encoder."""
        return PatchAlign3DModel

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ClassToken):
            # As published; other aligned encoders draw both with the config's deviation.
            init.zeros_(module.token)
            init.normal_(module.position)

    def freeze_untrained(self) -> None:
        """Freeze everything but what `config.trained` names, and what is not part of the encoder.

        Batch norms of frozen layers still collect statistics in training, as in the released program.
        """
        if self.config.trained == "all":
            return
        encoder = self.base_model
        # As published: the first stage trains the encoder, the second its end alone.
        trained: list[nn.Module] = [encoder.projection]
        if self.config.trained == "last_block":
            trained += [encoder.blocks.layers[-1], encoder.norm, encoder.patch_encoder.project, encoder.class_token]
        # Heads stay trainable: they are not part of the encoder.
        encoder.requires_grad_(False)
        for module in trained:
            module.requires_grad_(True)


class PatchAlign3DModel(PatchAlign3DPreTrainedModel, AlignedEncoder):
    """PatchAlign3D's point encoder: patches, mini-PointNet, blocks, norm, and a projection of each patch.

    Positions are added before every block. The features of patches lie in the space of texts; that of a cloud,
    `pooler_output`, is their mean before they are normalized, for which the published encoder was not trained.

    Source: PatchAlign3D, Sec. 3.
    """

    def __init__(self, config: PatchAlign3DConfig):
        super().__init__(config, final_norm=True)
        width = config.hidden_size
        self.patch_encoder = PatchEncoder(
            config.in_channels, width, config.patch_widths, pooled_width=config.patch_pooled_width
        )
        self.class_token = ClassToken(width)
        self.position_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.post_init()

    def cut(self, points: torch.Tensor) -> Patches:
        """Group clouds `(batch, points, in_channels)` into patches in the model's axes."""
        check_channels(points, self.config.in_channels)
        # Exchanged before anything else: centers, offsets and positions are all in the model's axes.
        return cut_patches(self._exchange(points), self.config, self.norm.weight.dtype)

    def embed(self, patches: Patches) -> Tokens:
        """Turn patches, all or some of each cloud, into the input of the first block."""
        tokens = self.patch_encoder(patches.neighborhoods)  # (B, G, H)
        positions = self.position_embed(in_precision_of(self.position_embed, patches.centers))
        tokens, positions = self.class_token(tokens, positions)  # (B, 1 + G, H) each
        # Back to the axes of the input, in which points look for their nearest centers.
        centers = self._exchange(patches.centers)
        return Tokens(tokens, centers, patches.center_index, positions, patches.neighbor_index)

    def pool(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Turn tokens after the norm into features of clouds `(batch, feature_size)`, the mean over patches."""
        return self.projection(hidden_states[:, 1:].mean(dim=1))

    def get_patch_features(self, points: torch.Tensor) -> torch.Tensor:
        """Return features of patches as unit vectors `(batch, groups, feature_size)`, in the space of texts."""
        # Patches come after the class token.
        hidden_states = self(points, return_dict=True).last_hidden_state[:, 1:]
        return nn.functional.normalize(self.projection(hidden_states).float(), dim=-1)

    def _exchange(self, points: torch.Tensor) -> torch.Tensor:
        if not self.config.exchange_axes:
            return points
        # Coordinates alone are exchanged; further channels stay.
        return torch.cat([points[..., :1], points[..., 2:3], points[..., 1:2], points[..., 3:]], dim=-1)


class PatchAlign3DForPointCloudClassification(PatchAlign3DPreTrainedModel, AlignedClassifier):
    """`PatchAlign3DModel` with a classification head on the mean of the patches' features.

    Example:
        ```python
        import torch
        from hf_any3d import PatchAlign3DConfig, PatchAlign3DForPointCloudClassification

        config = PatchAlign3DConfig(num_labels=3, num_hidden_layers=2)
        model = PatchAlign3DForPointCloudClassification(config)
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points).logits.shape  # (2, 3)
        ```
    """

    def __init__(self, config: PatchAlign3DConfig):
        super().__init__(config)
        self.freeze_untrained()


class PatchAlign3DForPointCloudSegmentation(PatchAlign3DPreTrainedModel, AlignedSegmenter):
    """`PatchAlign3DModel` with a head that predicts a class for every point of a scene or an object.

    Example:
        ```python
        import torch
        from hf_any3d import PatchAlign3DConfig, PatchAlign3DForPointCloudSegmentation

        config = PatchAlign3DConfig(num_labels=3, num_hidden_layers=2, segmentation_layers=[0, 1])
        model = PatchAlign3DForPointCloudSegmentation(config)
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points).logits.shape  # (2, 1024, 3)
        ```
    """

    def __init__(self, config: PatchAlign3DConfig):
        super().__init__(config)
        self.freeze_untrained()


class PatchAlign3DForPreTraining(PatchAlign3DPreTrainedModel):
    """First training stage: patches learn the features that an image encoder has of their points.

    Source: PatchAlign3D, Sec. 3, first stage.

    Example:
        ```python
        import torch
        from hf_any3d import PatchAlign3DConfig, PatchAlign3DForPreTraining

        model = PatchAlign3DForPreTraining(PatchAlign3DConfig(num_hidden_layers=2, projection_dim=16))
        points = torch.rand(2, 1024, 3)  # xyz
        features, centers = torch.rand(2, 9, 16), points[:, :9]  # of an image encoder
        model(points=points, target_features=features, target_centers=centers).predictions.shape  # (2, 128, 16)
        ```
    """

    def __init__(self, config: PatchAlign3DConfig):
        super().__init__(config)
        self.patchalign3d = PatchAlign3DModel(config)
        self.post_init()
        self.freeze_untrained()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        target_features: torch.Tensor | None = None,
        target_centers: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs: Any,
    ) -> PatchDistillationOutput:
        """Predict features of patches, and compare them with targets.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            target_features: `(batch, targets, feature_size)`, features of the image encoder, of any length. A patch
                is compared with the target whose center is nearest to its own.
            target_centers: `(batch, targets, 3)`, in the units and axes of the points; with `exchange_axes`, files of
                the released program hold them with y and z exchanged.
            return_loss: Whether to compute the loss, if there are targets; the Trainer looks for this argument.
            **kwargs: `output_hidden_states` and `output_attentions`.
        """
        if (target_features is None) != (target_centers is None):
            missing = "target_features" if target_features is None else "target_centers"
            raise ValueError(f"{missing} is missing; the other targets mean nothing without")
        output = self.base_model(points, **kwargs, return_dict=True)
        # Of each patch, without the class token.
        predictions = self.base_model.projection(output.last_hidden_state[:, 1:])
        loss = distance = None
        if return_loss and target_features is not None and target_centers is not None:
            # Image features belong to centers that were sampled elsewhere, so each patch takes the nearest one.
            targets, distances = nearest_targets(output.centers, target_centers, target_features.float())
            loss = (1 - nn.functional.cosine_similarity(predictions.float(), targets, dim=-1)).mean()
            distance = distances.mean()
        return PatchDistillationOutput(loss, predictions, distance, output.hidden_states, output.attentions)


class PatchAlign3DForZeroShotPointCloudSegmentation(PartTextsMixin, PatchAlign3DPreTrainedModel):
    """`PatchAlign3DModel` that compares patches with texts and labels points; published encoders open as this class.

    It is also the model of the second training stage, in which patches learn which words name them.

    Source: PatchAlign3D, Sec. 3.

    Example:
        ```python
        import torch
        from hf_any3d import PatchAlign3DConfig, PatchAlign3DForZeroShotPointCloudSegmentation

        model = PatchAlign3DForZeroShotPointCloudSegmentation(PatchAlign3DConfig(num_hidden_layers=2))
        points = torch.rand(2, 1024, 3)  # xyz
        texts = torch.rand(5, 1280)  # or model.encode_labels([…]) of a published model
        model(points=points, text_embeds=texts).logits.shape  # (2, 1024, 5)
        ```
    """

    input_modalities = ("point_cloud", "text")

    def __init__(self, config: PatchAlign3DConfig):
        super().__init__(config)
        self.patchalign3d = PatchAlign3DModel(config)
        self.alignment = TextAlignment(config.temperature, LARGEST_SCALE)
        self.post_init()
        self.freeze_untrained()

    def get_patch_features(self, points: torch.Tensor) -> torch.Tensor:
        """Return unit vectors `(batch, groups, feature_size)` of patches; see `PatchAlign3DModel`."""
        return self.base_model.get_patch_features(points)

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        patch_to_point: str | None = None,
        **kwargs: Any,
    ) -> PartTextOutput:
        """Compare the patches of clouds with texts; `patch_to_point` replaces the config's.

        `text_embeds` may have an axis of clouds first, for texts of their own. `labels` number the texts, or are
        `(batch, texts, points)`, True for the points that a text names, if these overlap.
        """
        how = self.config.patch_to_point if patch_to_point is None else patch_to_point
        if how not in ASSIGNMENTS:
            raise ValueError(f"patch_to_point={how!r}; expected one of {ASSIGNMENTS}")
        text_embeds = self.embed_texts(input_ids, attention_mask, text_embeds, labels is not None)
        output: AlignedEncoderOutput = self.base_model(points, **kwargs, return_dict=True)
        requested = {"hidden_states": output.hidden_states, "attentions": output.attentions}
        patch_embeds, scale = self.alignment(self.base_model.projection(output.last_hidden_state[:, 1:]))
        if text_embeds is None:
            return PartTextOutput(patch_embeds=patch_embeds, **requested)
        # Given features may come from another program, which does not normalize them.
        text_embeds = unit_texts(text_embeds, patch_embeds)
        with autocast_disabled(patch_embeds.device):
            cosines = patch_embeds @ text_embeds.mT  # (B, G, texts)
            # A fixed temperature, as in the released evaluation; the learned scale is part of the loss alone.
            patch_logits = cosines / self.config.temperature
            logits = carry_to_points(patch_logits, points, output.centers, output.patch_index, how)
        loss = accuracy = None
        if labels is not None:
            masks, counted = text_targets(labels, text_mask, points.shape[:2], text_embeds.shape[-2])
            # A text that names no point of a cloud says nothing about its patches.
            counted = masks.any(dim=-1) if counted is None else counted
            # A patch at a border belongs to several parts, to each by its share of points.
            shares = patch_shares(masks, output.patch_index).to(cosines)
            with autocast_disabled(patch_embeds.device):
                loss = part_loss(scale * cosines, shares, counted)
            accuracy = patch_accuracy(cosines.detach(), patch_majorities(masks, output.patch_index), counted)
        return PartTextOutput(loss, logits, patch_logits, patch_embeds, text_embeds, accuracy, **requested)


def carry_to_points(
    scores: torch.Tensor, points: torch.Tensor, centers: torch.Tensor, patch_index: torch.Tensor, how: str
) -> torch.Tensor:
    """Carry scores of patches `(batch, groups, channels)` to points, xyz first: `(batch, points, channels)`.

    With "nearest" a point gets those of the patch with the nearest of `centers (batch, groups, 3)`, of equally near
    ones the first; with "membership" the mean over all patches of `patch_index (batch, groups, group_size)` that it is
    in, 0 if in none.
    """
    if how == "nearest":
        nearest = knn(points[..., :3], centers, 1).squeeze(-1)  # (B, N)
        return gather_points(scores, nearest)
    spread = scores.unsqueeze(2).expand(-1, -1, patch_index.shape[2], -1)  # (B, G, M, channels)
    return scatter_mean(spread.flatten(1, 2), patch_index.flatten(1), points.shape[1])


def patch_shares(masks: torch.Tensor, patch_index: torch.Tensor) -> torch.Tensor:
    """Return the share of each patch's points that each label has: `(batch, groups, labels)`, from 0 to 1.

    `masks` `(batch, labels, points)` are True for points with the label, which may overlap; `patch_index` is
    `(batch, groups, group_size)`.
    """
    # The mean over the points of a patch, of (B, G, M, labels).
    return group(masks.transpose(1, 2).float(), patch_index).mean(dim=2)


def patch_majorities(masks: torch.Tensor, patch_index: torch.Tensor) -> torch.Tensor:
    """Return the label that most points of each patch have: `(batch, groups)`, -1 if no point has one.

    A point with several labels counts for the last of them; of labels with as many points the first is returned.
    Arguments are those of `patch_shares`.
    """
    count = masks.shape[1]
    numbers = torch.arange(1, count + 1, device=masks.device).view(1, -1, 1)
    # Numbers from 1, so that 0 is a point without any label.
    last = (masks * numbers).amax(dim=1)  # (B, N), 0 without a label
    own = (last.unsqueeze(1) == numbers).transpose(1, 2).float()  # (B, N, labels)
    votes = group(own, patch_index).sum(dim=2)  # (B, G, labels)
    # argmax may return any of several maxima, on a GPU in particular.
    first = torch.where(votes == votes.amax(dim=-1, keepdim=True), numbers.view(1, 1, -1), count + 1).amin(dim=-1) - 1
    return torch.where(votes.amax(dim=-1) > 0, first, UNLABELED)


def part_loss(scores: torch.Tensor, shares: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of patches and labels, in which positives weigh as much as all other labels together.

    Scores `(batch, groups, labels)` are cosines times a scale, 0 for as likely as not; shares, of the same shape, are
    those of `patch_shares`. The mean is over patches and the labels that count for a cloud, `counted (batch, labels)`,
    then over clouds with such labels; 0 if there are none.

    Source: stage 2 of the released program; the paper describes a contrastive loss.
    """
    number = counted.sum(dim=1)  # (B,)
    # One positive weighs as much as all other labels, which outnumber it.
    weight = (number - 1).clamp(min=1).to(scores.dtype).view(-1, 1, 1)
    terms = -(
        weight * shares * nn.functional.logsigmoid(scores) + (1 - shares) * nn.functional.logsigmoid(-scores)
    )  # (B, G, labels)
    sums = terms.mean(dim=1).masked_fill(~counted, 0).sum(dim=1)  # (B,)
    return (sums / number.clamp(min=1)).sum() / (number > 0).sum().clamp(min=1)


def patch_accuracy(scores: torch.Tensor, majorities: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the share of patches whose best label by `scores (batch, groups, labels)` is that of most points.

    Patches without a label, or with one that does not count for the cloud (`counted` `(batch, labels)`), are left out
    of `majorities` `(batch, groups)`; NaN if no patch is left.
    """
    best = scores.masked_fill(~counted.unsqueeze(1), -torch.inf).argmax(dim=-1)  # (B, G)
    # Patches without a label have -1, which is no index; the first condition leaves them out.
    valid = (majorities >= 0) & counted.gather(1, majorities.clamp(min=0))
    return ((best == majorities) & valid).sum() / valid.sum()


def nearest_targets(
    centers: torch.Tensor, target_centers: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the target whose center is nearest to each patch: `(batch, groups, channels)`, and the distances.

    Targets `(batch, targets, channels)` have centers `(batch, targets, 3)` in the units and axes of those of patches.
    """
    if target_centers.shape[:2] != targets.shape[:2]:
        raise ValueError(
            f"target_centers: {tuple(target_centers.shape)}; expected one of each of {targets.shape[1]} targets"
        )
    index, distances = knn(centers, target_centers, 1, return_distances=True)
    # `knn` returns squares.
    return gather_points(targets, index.squeeze(-1)), distances.squeeze(-1).sqrt()
