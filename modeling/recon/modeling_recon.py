"""ReCon: a point transformer whose patches learn to reconstruct, and queries to predict images and texts.

points (B, N, 3)
    │  sample centers, group their neighbors, encode the patches
    ▼
queries (B, 3, H), of class, image and text, and patches (B, G, H)
    │  blocks: patches attend to each other, queries to the patches
    ▼
features (B, 3 + G, H) ──────────┬─► queries and maximum ─► class scores
                                 ├─► propagation to the points, and the queries ─► scores of each point
                                 ├─► image and text query ─► feature in the space of texts
                                 └─► pretraining: points of masked patches; features of an image and a text

Source: ReCon (arXiv 2302.02318).

Shapes: B clouds, N points of each, G tokens, H width of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward
from transformers.utils import ModelOutput

from hf_any3d.modeling.act.modeling_act import (
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForSemanticSegmentation,
    ActModel,
    ActPreTrainedModel,
    MaskedPatchesModel,
)
from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.layers.forward_contract import strict_forward
from hf_any3d.modeling.layers.heads import ClassToken, HeadNorm, in_precision_of, pool
from hf_any3d.modeling.point_encoders.aligned_encoders.modeling_aligned_encoders import AlignedTextsMixin
from hf_any3d.modeling.point_encoders.point_transformer import PointBlock, PointMlp
from hf_any3d.modeling.point_encoders.zero_shot import CloudsAndTextsMixin
from hf_any3d.modeling.point_ops import chamfer_distance, gather_points
from hf_any3d.modeling.recon.configuration_recon import ReconConfig

# Of class, image and text, before the patches.
_QUERIES = 3


class QueryAttention(nn.Module):
    """Multi-head attention of queries `(batch, queries, hidden)` to patches `(batch, groups, hidden)`."""

    def __init__(self, config: PreTrainedConfig, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.is_causal = False
        width = config.hidden_size
        self.scaling = (width // num_heads) ** -0.5
        self.q = nn.Linear(width, width, bias=config.qkv_bias)
        self.kv = nn.Linear(width, 2 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        # Whether the patches get no gradient from the queries, as in pretraining.
        self.stops_gradient = False

    def forward(self, queries: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Attend; the output has the shape of the queries."""
        if self.stops_gradient:
            patches = patches.detach()
        batch, count, width = queries.shape
        query = self.q(queries).view(batch, count, self.num_heads, -1).transpose(1, 2)
        # Key and value are stacked in one layer, in this order.
        key, value = self.kv(patches).view(batch, patches.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, _ = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0, is_causal=False)
        return self.proj(mixed.reshape(batch, count, width))


class ReconBlock(PointBlock):
    """Attention and MLP of the patches, and of the queries, which attend to the patches.

    Each half adds its output to the normed tokens, not to those before the norm. The queries read the patches before
    these attend to each other; no patch reads a query, and no query another one.
    """

    def __init__(self, config: PreTrainedConfig, num_heads: int, drop_path_rate: float = 0.0):
        super().__init__(config, num_heads, drop_path_rate)
        width = config.hidden_size
        self.norm1_contrast = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention_contrast = QueryAttention(config, num_heads)
        self.norm2_contrast = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp_contrast = PointMlp(width, int(width * config.mlp_ratio))

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor | None = None,
        beside_mlp: Callable[[torch.Tensor], torch.Tensor] | None = None,
        second_half: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Run on `(batch, 3 + tokens, hidden)`, the queries first; further arguments are those of `PointBlock`."""
        if positions is not None:
            hidden_states = hidden_states + positions
        queries = self.norm1_contrast(hidden_states[:, :_QUERIES])
        patches = self.norm1(hidden_states[:, _QUERIES:])
        # Both read the same patches.
        from_patches = self.attention_contrast(queries, patches)
        queries = queries + self.drop_path(from_patches)
        patches = patches + self.drop_path(self.attention(patches)[0])
        # Only adapters read what is between attention and MLP.
        beside = None if beside_mlp is None else beside_mlp(torch.cat([queries, patches], dim=1))
        queries = self.norm2_contrast(queries)
        patches = self.norm2(patches)
        normed = torch.cat([queries, patches], dim=1)
        branches = [self.mlp_contrast(queries), self.mlp(patches)]
        if second_half is not None:
            return second_half(normed, normed, torch.cat(branches, dim=1))
        # Drawn for queries and patches separately
        output = normed + torch.cat([self.drop_path(branch) for branch in branches], dim=1)
        return output if beside is None else output + beside


class ReconPreTrainedModel(ActPreTrainedModel):
    """Base class of all models with ReCon's point transformer."""

    config_class = ReconConfig
    config: ReconConfig
    base_model_prefix = "recon"
    _no_split_modules = ["PointBlock", "ReconBlock"]
    _keys_to_ignore_on_load_unexpected = [
        r"^(decoder|decoder_norm|decoder_position_embed|prediction_head|contrast_head)\.",
        r"^(mask_token$|image_projection\.|text_projection\.)",
    ]
    _settings_without_effect_on_adapters = ("parts",)

    @classmethod
    def base_class(cls) -> type[ReconModel]:
        """Return the point transformer's class."""
        return ReconModel


class ReconModel(ReconPreTrainedModel, ActModel):
    """Point transformer with three queries: patches, mini-PointNet, blocks, final norm."""

    _block = ReconBlock

    def __init__(self, config: ReconConfig):
        super().__init__(config)
        self.image_token = ClassToken(config.hidden_size)
        self.text_token = ClassToken(config.hidden_size)
        self.post_init()

    @property
    def leading_tokens(self) -> Sequence[ClassToken]:
        """Learned queries before the tokens of the patches, the last first."""
        return self.text_token, self.image_token, self.class_token


class ReconForPointCloudClassification(ReconPreTrainedModel, ActForPointCloudClassification):
    """`ReconModel` with a classification head.

    Example:
        ```python
        import torch
        from hf_any3d import ReconConfig, ReconForPointCloudClassification

        model = ReconForPointCloudClassification(ReconConfig(num_labels=3, num_hidden_layers=2))
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points).logits.shape  # (2, 3)
        ```
    """


class ReconForSemanticSegmentation(ReconPreTrainedModel, ActForSemanticSegmentation):
    """`ReconModel` that predicts an object class for every point of a scene or of a block of it.

    Example:
        ```python
        import torch
        from hf_any3d import ReconConfig, ReconForSemanticSegmentation

        config = ReconConfig(num_labels=3, num_hidden_layers=2, segmentation_layers=[0, 1])
        points = torch.rand(2, 1024, 3)  # xyz
        ReconForSemanticSegmentation(config)(points=points).logits.shape  # (2, 1024, 3)
        ```
    """

    _reads_leading_tokens = True


class ReconForPartSegmentation(ReconPreTrainedModel, ActForPartSegmentation):
    """`ReconModel` that predicts a part for every point of an object, given the object's category.

    Example:
        ```python
        import torch
        from hf_any3d import ReconConfig, ReconForPartSegmentation

        parts = {"category_parts": [[0, 1], [2]], "num_labels": 3}
        config = ReconConfig(num_hidden_layers=2, segmentation_layers=[0, 1], **parts)
        points = torch.rand(2, 1024, 3)  # xyz
        output = ReconForPartSegmentation(config)(points=points, category=torch.tensor([0, 1]))
        output.logits.shape  # (2, 1024, 3)
        ```
    """

    _reads_leading_tokens = True


class ReconForZeroShotPointCloudClassification(AlignedTextsMixin, CloudsAndTextsMixin, ReconPreTrainedModel):
    """`ReconModel` that compares clouds with texts, by the projections of its image and its text query.

    Example:
        ```python
        import torch
        from hf_any3d import ReconConfig, ReconForZeroShotPointCloudClassification

        model = ReconForZeroShotPointCloudClassification(ReconConfig(num_hidden_layers=2, image_width=512))
        points = torch.rand(2, 1024, 3)  # xyz
        texts = torch.rand(5, 512)  # or model.encode_labels([…]) of a published model
        model(points=points, text_embeds=texts).logits_per_point_cloud.shape  # (2, 5)
        ```
    """

    def __init__(self, config: ReconConfig):
        super().__init__(config)
        if config.image_width is None or config.image_width != config.text_width:
            raise ValueError(
                f"image_width={config.image_width} and text_width={config.text_width}; expected equal widths: images "
                "and texts of one space, such as CLIP's"
            )
        self.recon = ReconModel(config)
        self.image_projection = nn.Linear(config.hidden_size, config.image_width)
        self.text_projection = nn.Linear(config.hidden_size, config.text_width)
        self.post_init()

    def project(self, queries: torch.Tensor) -> torch.Tensor:
        """Return features `(clouds, text_width)` of any length of normed queries `(clouds, 3, hidden)`."""
        return self.config.text_weight * self.text_projection(queries[:, 2]) + self.image_projection(queries[:, 1])

    def align(self, output: ModelOutput) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unit vectors `(clouds, text_width)` of clouds, and the scale of cosines."""
        features = self.project(output.last_hidden_state).float()
        return nn.functional.normalize(features, dim=-1), features.new_full((), 1 / self.config.temperature)


@dataclass
class ReconForPreTrainingOutput(ModelOutput):
    """Predictions of points, images and texts.

    Args:
        loss: Sum of those below; None if not requested.
        predictions: `(batch, masked, group_size, 3)`, points of the hidden patches in ascending order, relative to
            their centers.
        mask: `(batch, groups)`, True where hidden.
        centers: `(batch, groups, 3)`, positions of the patches in the units of the input.
        image_predictions: `(batch, image_width)`, None without `image_width`.
        text_predictions: `(batch, text_width)`, None without `text_width`.
        class_token: `(batch, hidden)`, the feature of the class token.
        reconstruction_loss: Chamfer distance of hidden patches and their prediction.
        image_loss: Smooth L1 distance of `image_predictions` and the given features; None without these.
        text_loss: The same of texts.
        contrast_loss: Loss of clouds of one text among others; None without `labels` or `contrast_widths`.
        hidden_states: On request, the input of the first block and the output of each block, `(batch, 3 + visible,
            hidden)`, before any norm.
        attentions: On request, the attention weights of the patches.
    """

    loss: torch.Tensor | None = None
    predictions: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    image_predictions: torch.Tensor | None = None
    text_predictions: torch.Tensor | None = None
    class_token: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    image_loss: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    contrast_loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ReconForPreTraining(ReconPreTrainedModel, MaskedPatchesModel):
    """Masked point modeling with features of images and texts, which frozen encoders have made of the same objects.

    Patches that are seen reconstruct the others; image and text query predict the features. Each loss is left out
    where its features are: a run on clouds alone trains the patches.

    Source: ReCon, Sec. 3.

    Example:
        ```python
        import torch
        from hf_any3d import ReconConfig, ReconForPreTraining

        model = ReconForPreTraining(ReconConfig(num_hidden_layers=2))
        points = torch.rand(2, 1024, 3)  # xyz
        images, texts = torch.rand(2, 768), torch.rand(2, 512)  # features of a rendering, and of its class name
        model(points=points, image_embeds=images, text_embeds=texts).mask.shape  # (2, 64)
        ```
    """

    takes_adapters = False

    def __init__(self, config: ReconConfig):
        super().__init__(config)
        width = config.hidden_size
        self.recon = ReconModel(config)
        self.add_decoder(3 * config.group_size)
        self.image_projection = None if config.image_width is None else nn.Linear(width, config.image_width)
        self.text_projection = None if config.text_width is None else nn.Linear(width, config.text_width)
        self.contrast_head = None
        if config.contrast_widths is not None:
            hidden, out = config.contrast_widths
            self.contrast_head = nn.Sequential(
                *(nn.Linear(width, hidden), HeadNorm(hidden), nn.ReLU()),
                *(nn.Linear(hidden, out), HeadNorm(out)),
            )
        self.post_init()
        self._stop_gradients()

    @classmethod
    def build_around(cls, part: ReconModel, config: ReconConfig) -> ReconForPreTraining:
        """Build the model around a point transformer."""
        model = super().build_around(part, config)
        model._stop_gradients()
        return model

    def _stop_gradients(self) -> None:
        """Let queries read patches without a gradient, as in pretraining only."""
        for module in self.recon.modules():
            if isinstance(module, QueryAttention):
                module.stops_gradient = True

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        mask: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ReconForPreTrainingOutput:
        """Hide patches and predict their points, and features of an image and a text.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            mask: `(batch, groups)` booleans, True where hidden, equally many in every cloud; drawn by default.
            image_embeds: `(batch, image_width)`, features of an image of each object, not normalized.
            text_embeds: `(batch, text_width)`, features of a text on each object, not normalized.
            labels: `(batch,)`, numbers of the texts: clouds of equal ones have the same text. Only the loss of
                `contrast_widths` reads them.
            return_loss: Whether to compute the losses.
            output_hidden_states: Whether to return hidden states; None for the config's choice.
            output_attentions: The same for attention weights, which only eager attention returns.
        """
        patches = self.recon.cut(points)
        mask, visible, hidden = self.choose_hidden(patches.centers, mask)
        if not hidden.shape[1]:
            raise ValueError(f"mask: hides none of {mask.shape[1]} patches; expected some to predict")
        tokens = self.embed_visible(patches, visible)
        centers = gather_points(patches.centers, visible)
        encoded = self.recon.encode(tokens, centers, (), output_hidden_states, output_attentions)
        queries = encoded.last_hidden_state[:, :_QUERIES]
        # The decoder sees patches only.
        seen = encoded.last_hidden_state[:, _QUERIES:]
        sequence, positions, _ = self.masked_sequence(seen, patches.centers, visible, hidden)
        predictions = self.decode(sequence, positions, hidden.shape[1]).unflatten(-1, (-1, 3))
        output = ReconForPreTrainingOutput(
            predictions=predictions,
            mask=mask,
            centers=patches.centers,
            image_predictions=None if self.image_projection is None else self.image_projection(queries[:, 1]),
            text_predictions=None if self.text_projection is None else self.text_projection(queries[:, 2]),
            class_token=queries[:, 0],
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        if return_loss:
            targets = patches.select(hidden).neighborhoods[..., :3]
            # In full precision even if the model is not
            with autocast_disabled(points.device):
                self._add_losses(output, targets, image_embeds, text_embeds, labels)
        return output

    @torch.no_grad()
    def probe_features(self, points: torch.Tensor) -> torch.Tensor:
        """Compute features `(batch, 2 * hidden)` of full clouds for a linear probe, as the released program does."""
        hidden_states = self.recon(points, return_dict=True).last_hidden_state
        return pool(hidden_states, ["queries", "max+mean"], class_tokens=_QUERIES)

    def _add_losses(
        self,
        output: ReconForPreTrainingOutput,
        targets: torch.Tensor,
        image_embeds: torch.Tensor | None,
        text_embeds: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> None:
        norm = self.config.reconstruction_loss.removeprefix("chamfer_")
        # Each patch is a cloud of its own.
        output.reconstruction_loss = chamfer_distance(
            output.predictions.float().flatten(0, 1), targets.float().flatten(0, 1), norm
        )
        output.image_loss = _distance("image_embeds", output.image_predictions, image_embeds)
        output.text_loss = _distance("text_embeds", output.text_predictions, text_embeds)
        if self.contrast_head is not None and labels is not None:
            vectors = self.contrast_head(in_precision_of(self.contrast_head, output.class_token))
            output.contrast_loss = same_text_loss(vectors.float(), labels, self.config.contrast_temperature)
        losses = (output.reconstruction_loss, output.image_loss, output.text_loss, output.contrast_loss)
        output.loss = sum(loss for loss in losses if loss is not None)


def _distance(name: str, predictions: torch.Tensor | None, targets: torch.Tensor | None) -> torch.Tensor | None:
    """Return the smooth L1 distance of predicted features and those of a frozen encoder, where these are given."""
    if targets is None:
        return None
    if predictions is None or predictions.shape != targets.shape:
        expected = "none, as the config has no width for it" if predictions is None else str(tuple(predictions.shape))
        raise ValueError(f"{name} has shape {tuple(targets.shape)}; expected {expected}")
    return nn.functional.smooth_l1_loss(predictions.float(), targets.float())


def same_text_loss(vectors: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Tell clouds of the same text from all others of a batch.

    Of each cloud, the first of the logits is the mean cosine of its vector `(batch, width)` with those of clouds of
    equal `labels (batch,)`, itself among them; the others are the cosines with the rest.
    """
    vectors = nn.functional.normalize(vectors, dim=-1)
    cosines = vectors @ vectors.T  # (B, B)
    is_same = labels.unsqueeze(0) == labels.unsqueeze(1)
    positive = (cosines * is_same).sum(dim=1, keepdim=True) / is_same.sum(dim=1, keepdim=True)
    logits = torch.cat([positive, cosines.masked_fill(is_same, -torch.inf)], dim=1) / temperature
    return nn.functional.cross_entropy(logits, labels.new_zeros(len(labels), dtype=torch.long))
