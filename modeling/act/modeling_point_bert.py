"""Point-BERT's pretraining of ACT's point transformer, and its part segmentation (arXiv 2111.14819).

Shapes: B clouds, N points of each, G tokens, H width of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils import ModelOutput

from hf_any3d.modeling.act.configuration_act import ActConfig
from hf_any3d.modeling.act.masking import block_mask
from hf_any3d.modeling.act.modeling_act import ActModel, ActPreTrainedModel, FrozenAutoencoderMixin
from hf_any3d.modeling.act.modeling_act_autoencoder import ActAutoencoder, EdgeLayer
from hf_any3d.modeling.config_checks import check_built, check_layers
from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.layers.forward_contract import strict_forward
from hf_any3d.modeling.layers.heads import ClassificationHead, in_precision_of
from hf_any3d.modeling.layers.losses import point_loss
from hf_any3d.modeling.layers.tasks import check_categories, checked_category, refuse_problem_type, restrict_to_parts
from hf_any3d.modeling.point_encoders.patches import Patches
from hf_any3d.modeling.point_encoders.point_transformer import TokenPropagation
from hf_any3d.modeling.point_encoders.pretrained_base import Encoded
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points, in_full_precision, knn
from hf_any3d.modeling.pretrained_parts.frozen_statistics import has_adapters

# Of the head for points, as released: neighbors of a graph, and hidden widths of a graph and of the head.
_NEIGHBORS = 4
_GRAPH_WIDTH = 512
_HEAD_WIDTH = 128
_NOT_COUNTED = -100


@dataclass
class PointBERTForPreTrainingOutput(ModelOutput):
    """Outputs of masked point modeling: code scores, and features for contrastive learning.

    Args:
        loss: Sum of the losses below; None if not requested.
        code_loss: Cross-entropy of the codes of hidden patches, of the clouds and of the mixed ones.
        mix_loss: Cross-entropy of telling from which two clouds a mixed one is.
        contrast_loss: The same of clouds that are not mixed; None without `contrast_whole_clouds`.
        code_scores: `(batch, groups, codes)`, for each patch.
        codes: `(batch, groups)`, those of the frozen autoencoder.
        class_features: `(batch, features)`, of the class token, not normalized.
        mask: `(batch, groups)`, True where hidden.
        centers: `(batch, groups, 3)`, positions of the patches in the units of the input.
        hidden_states: On request, the input of the first block and the output of each, `(batch, 1 + groups, hidden)`.
        attentions: On request, the attention weights of the blocks.
    """

    loss: torch.Tensor | None = None
    code_loss: torch.Tensor | None = None
    mix_loss: torch.Tensor | None = None
    contrast_loss: torch.Tensor | None = None
    code_scores: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    class_features: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class _MaskedTokens:
    """For a transformer that sees a learned token in place of hidden patches, and its moving average."""

    def add_student(self, config: ActConfig) -> None:
        """Add the transformer, the mask token, and layers to codes and to features that tell clouds apart."""
        width = config.hidden_size
        features = config.feature_head_width or width
        self.act = ActModel(config)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.feature_head = nn.Sequential(nn.Linear(width, features), nn.GELU(), nn.Linear(features, features))
        self.code_head = nn.Linear(width, config.autoencoder_config.num_codes)

    def read(self, patches: Patches, mask: torch.Tensor, *requested: bool | None) -> tuple[Encoded, torch.Tensor]:
        """Run the transformer; also return features of the class token, `(batch, features)`."""
        tokens = self.act.patch_encoder(patches.neighborhoods)
        tokens = torch.where(mask.unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens)
        encoded = self.act.encode(tokens, patches.centers, (), *requested)
        return encoded, self.feature_head(encoded.last_hidden_state[:, 0])


class MovingAverage(_MaskedTokens, nn.Module):
    """Moving average of a student's weights, with which clouds are encoded that it is compared with."""

    def __init__(self, config: ActConfig):
        super().__init__()
        self.add_student(config)

    def forward(self, patches: Patches, mask: torch.Tensor) -> torch.Tensor:
        """Return features of the class token, `(batch, features)`."""
        return self.read(patches, mask)[1]


class PointBERTForPreTraining(FrozenAutoencoderMixin, _MaskedTokens, ActPreTrainedModel):
    """Masked point modeling: predict the codes of hidden patches, and tell clouds apart, also two mixed into one.

    The codes are those of a frozen `ActAutoencoder` without a teacher, Point-BERT's dVAE. Clouds are compared with
    features of a moving average of the student, of this batch and of a queue of earlier ones; both change in training
    steps alone.

    Args:
        config: The configuration, with an `autoencoder_config`.
        autoencoder: A trained autoencoder; by default a randomly initialized one is built from the config.

    Source: Point-BERT (arXiv 2111.14819), Sec. 3.

    Example:
        ```python
        import torch
        from hf_any3d import ActAutoencoderConfig, ActConfig, PointBERTForPreTraining

        codes = ActAutoencoderConfig(num_codes=64, num_groups=16, group_size=8)
        config = ActConfig(autoencoder_config=codes, num_groups=16, group_size=8, num_hidden_layers=2)
        points = torch.rand(2, 256, 3)  # xyz
        PointBERTForPreTraining(config)(points=points).code_scores.shape  # (2, 16, 64)
        ```
    """

    hides_patches = True
    takes_adapters = False
    queue: torch.Tensor
    queue_place: torch.Tensor

    def __init__(self, config: ActConfig, autoencoder: ActAutoencoder | None = None):
        super().__init__(config)
        check_built(config, "autoencoder_config", "PointBERTForPreTraining(ActConfig(autoencoder_config=…))")
        teacher = config.autoencoder_config
        # A code for each patch of the student.
        for name in ("num_groups", "group_size", "in_channels"):
            if getattr(config, name) != getattr(teacher, name):
                raise ValueError(
                    f"{name}={getattr(config, name)}; expected {getattr(teacher, name)}, the autoencoder's value"
                )
        if not config.use_class_token:
            raise ValueError("use_class_token=False; expected True: clouds are told apart by that token")
        self.add_student(config)
        self.average = MovingAverage(config)
        self.adopt_autoencoder(autoencoder)
        features = config.feature_head_width or config.hidden_size
        # Features of earlier clouds, one a column, and the column that the next one replaces.
        self.register_buffer("queue", torch.zeros(features, config.contrast_queue_size))
        self.register_buffer("queue_place", torch.zeros(1, dtype=torch.long))
        self.post_init()
        self._freeze_teacher()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        mask: torch.Tensor | None = None,
        mixed_mask: torch.Tensor | None = None,
        average_mask: torch.Tensor | None = None,
        mix_ratio: torch.Tensor | None = None,
        kept: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> PointBERTForPreTrainingOutput:
        """Hide patches, predict their codes, and tell clouds apart.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            mask: `(batch, groups)` booleans, True where hidden; a block of neighbors is drawn by default.
            mixed_mask: The same of the mixed clouds.
            average_mask: The same of the clouds that the moving average reads.
            mix_ratio: `(batch,)`, the expected share of a cloud's own patches in the mixed cloud; drawn by default.
            kept: `(batch, groups)` booleans, True for a cloud's own patches in the mixed cloud, the others are of the
                cloud at the same place from the end of the batch; drawn by default.
            return_loss: Whether to compute the losses.
            output_hidden_states: Whether to return the student's hidden states; None for the config's choice.
            output_attentions: The same for its attention weights, which only eager attention returns.
        """
        patches = self.act.cut(points)
        if mask is None:
            mask = self.draw_mask(patches.centers)
        with torch.no_grad():
            codes = self.autoencoder.score_codes(patches).argmax(dim=-1)  # (B, G)
        encoded, class_features = self.read(patches, mask, output_hidden_states, output_attentions)
        code_scores = self.code_head(encoded.last_hidden_state[:, 1:])  # (B, G, codes)
        output = PointBERTForPreTrainingOutput(
            code_scores=code_scores,
            codes=codes,
            class_features=class_features,
            mask=mask,
            centers=patches.centers,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        if return_loss:
            self._add_losses(output, patches, mixed_mask, average_mask, mix_ratio, kept)
        return output

    def draw_mask(self, centers: torch.Tensor) -> torch.Tensor:
        """Hide a block of each cloud, of a share within `config.mask_ratio_range`: `(batch, groups)` booleans."""
        low, high = self.config.mask_ratio_range
        share = torch.empty(len(centers), device=centers.device).uniform_(low, high)
        return block_mask(centers, (share * centers.shape[1]).long())

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average by a step towards the student's parameters; running statistics follow their own batches."""
        own = dict(self.named_parameters())
        for name, parameter in self.average.named_parameters():
            parameter.lerp_(own[name].to(parameter.dtype), 1 - self.config.contrast_momentum)

    @torch.no_grad()
    def enqueue(self, features: torch.Tensor) -> None:
        """Replace the oldest features of the queue by those of a batch, `(batch, features)`, normalized."""
        size = self.queue.shape[1]
        features = features[:size]
        place = (self.queue_place + torch.arange(len(features), device=features.device)) % size
        self.queue.index_copy_(1, place, features.T.to(self.queue.dtype))
        self.queue_place.add_(len(features)).remainder_(size)

    @torch.no_grad()
    def probe_features(self, points: torch.Tensor) -> torch.Tensor:
        """Compute features of full clouds `(batch, features)` for a linear probe, as the released program does."""
        output = self.act(points, return_dict=True)
        return self.feature_head(output.last_hidden_state[:, 0])

    def _add_losses(
        self,
        output: PointBERTForPreTrainingOutput,
        patches: Patches,
        mixed_mask: torch.Tensor | None,
        average_mask: torch.Tensor | None,
        mix_ratio: torch.Tensor | None,
        kept: torch.Tensor | None,
    ) -> None:
        """Set the losses of an output; in a training step, move average and queue on."""
        batch, groups = output.codes.shape
        device = patches.centers.device
        if mix_ratio is None:
            mix_ratio = torch.rand(batch, device=device)
        if kept is None:
            kept = torch.rand(batch, groups, device=device) < mix_ratio.unsqueeze(1)
        mixed = Patches(
            torch.where(kept[..., None, None], patches.neighborhoods, patches.neighborhoods.flip(0)),
            torch.where(kept[..., None], patches.centers, patches.centers.flip(0)),
            patches.center_index,
        )
        if mixed_mask is None:
            mixed_mask = self.draw_mask(mixed.centers)
        mixed_encoded, mixed_features = self.read(mixed, mixed_mask)
        mixed_scores = self.code_head(mixed_encoded.last_hidden_state[:, 1:])
        mixed_codes = torch.where(kept, output.codes, output.codes.flip(0))
        # An adapter is stored without them, as without statistics of norms.
        learns = self.training and torch.is_grad_enabled() and not has_adapters(self)
        with torch.no_grad():
            # Before the average reads the clouds, as released.
            if learns:
                self.update_average()
            if average_mask is None:
                average_mask = self.draw_mask(patches.centers)
            keys = nn.functional.normalize(self.average(patches, average_mask).float(), dim=-1)
        # In full precision even if the student is not.
        with autocast_disabled(device):
            output.code_loss = _hidden_cross_entropy(output.code_scores, output.codes, output.mask)
            output.code_loss = output.code_loss + _hidden_cross_entropy(mixed_scores, mixed_codes, mixed_mask)
            own = torch.arange(batch, device=device)
            scores = self._compare(mixed_features, keys, own)
            to_own = nn.functional.cross_entropy(scores, own, reduction="none")
            to_other = nn.functional.cross_entropy(scores, own.flip(0), reduction="none")
            output.mix_loss = (mix_ratio * to_own + (1 - mix_ratio) * to_other).mean()
            output.loss = output.code_loss + output.mix_loss
            if self.config.contrast_whole_clouds:
                # Each cloud with its own feature and the queue.
                scores = self._compare(output.class_features, keys, None)
                output.contrast_loss = nn.functional.cross_entropy(scores, torch.zeros_like(own))
                output.loss = output.loss + output.contrast_loss
        if learns:
            self.enqueue(keys)

    def _compare(self, features: torch.Tensor, keys: torch.Tensor, clouds: torch.Tensor | None) -> torch.Tensor:
        """Return similarities with all clouds of the batch, or without `clouds` each with its own, then the queue."""
        features = nn.functional.normalize(features.float(), dim=-1)
        # A copy, as the queue changes before the backward pass.
        earlier = features @ self.queue.detach().float().clone()
        near = (features * keys).sum(dim=-1, keepdim=True) if clouds is None else features @ keys.T
        return torch.cat([near, earlier], dim=1) / self.config.contrast_temperature

    def _freeze_teacher(self) -> None:
        super()._freeze_teacher()
        self.average.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, _MaskedTokens):
            init.trunc_normal_(module.mask_token, std=self.config.initializer_range)
        if isinstance(module, PointBERTForPreTraining):
            columns = torch.randn_like(module.queue)
            init.copy_(module.queue, nn.functional.normalize(columns, dim=0))
            init.zeros_(module.queue_place)


def _hidden_cross_entropy(scores: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over hidden patches, of scores `(batch, groups, codes)`."""
    labels = codes.masked_fill(~mask, _NOT_COUNTED)
    return nn.functional.cross_entropy(scores.float().flatten(0, 1), labels.flatten(), ignore_index=_NOT_COUNTED)


class GraphStep(nn.Module):
    """Pass features from points of one level to those of another: two edge convolutions over four neighbors."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.ModuleList([EdgeLayer(width, _GRAPH_WIDTH), EdgeLayer(_GRAPH_WIDTH, width)])

    def forward(
        self, xyz: torch.Tensor, features: torch.Tensor, from_xyz: torch.Tensor, from_features: torch.Tensor
    ) -> torch.Tensor:
        """Return new features `(batch, points, width)` of the points `xyz (batch, points, 3)`."""
        features = self.layers[0](features, knn(xyz, from_xyz, _NEIGHBORS), from_features)
        return self.layers[1](features, knn(xyz, xyz, _NEIGHBORS))


class PointBERTForPartSegmentation(ActPreTrainedModel):
    """Point-BERT's part segmentation: features of three blocks, passed through two levels of points to all points.

    Each level gets the features of a block by interpolation, and those of the coarser level by a graph.

    Source: the released program of Point-BERT; the paper does not describe it.

    Example:
        ```python
        import torch
        from hf_any3d import ActConfig, PointBERTForPartSegmentation

        config = ActConfig(
            category_parts=[[0, 1], [2]], num_labels=3, num_hidden_layers=3, segmentation_layers=[0, 1, 2]
        )
        points = torch.rand(2, 1024, 3)  # xyz
        model = PointBERTForPartSegmentation(config)
        model(points=points, category=torch.tensor([0, 1])).logits.shape  # (2, 1024, 3)
        ```
    """

    def __init__(self, config: ActConfig):
        super().__init__(config)
        refuse_problem_type(config)
        check_categories(config)
        check_layers("segmentation_layers", config.segmentation_layers, config.num_hidden_layers)
        if len(config.segmentation_layers) != 3 or not config.use_class_token:
            raise ValueError(
                f"segmentation_layers={list(config.segmentation_layers)} with use_class_token="
                f"{config.use_class_token}; expected three blocks and a class token"
            )
        width = config.hidden_size
        widths = (4 * width, width)
        self.act = ActModel(config)
        self.fine_propagation = TokenPropagation(width, widths)
        self.coarse_propagation = TokenPropagation(width, widths)
        self.fine_graph = GraphStep(width)
        self.coarse_graph = GraphStep(width)
        self.propagation = TokenPropagation(width, widths, config.num_categories + 3)
        self.segmenter = ClassificationHead(width, config.num_labels, [_HEAD_WIDTH], dropout=0.5)
        self.post_init()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        category: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> TokenClassifierOutput:
        """Return `logits (batch, points, parts)`, over the parts of all categories.

        With `restrict_to_category_parts` those of other categories have the lowest value of their dtype.
        """
        config = self.config
        category = checked_category(category, points, config.num_categories)
        requested = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        output = self.act(points, output_layers=config.segmentation_layers, **requested, return_dict=True)
        # All blocks share the final norm; the class token has no place in the cloud.
        shallow, middle, deep = (self.act.norm(layer)[:, 1:] for layer in output.layer_outputs)
        centers = output.centers
        xyz = in_full_precision(points[..., :3], centers.dtype)
        fine, coarse = (self._level(xyz, count) for count in config.segmentation_levels)
        coarse_features = self.coarse_propagation(coarse, centers, middle)
        coarse_features = self.coarse_graph(coarse, coarse_features, centers, deep)
        fine_features = self.fine_propagation(fine, centers, shallow)
        fine_features = self.fine_graph(fine, fine_features, coarse, coarse_features)
        one_hot = nn.functional.one_hot(category, config.num_categories).to(xyz.dtype)
        own = torch.cat([one_hot.unsqueeze(1).expand(-1, xyz.shape[1], -1), xyz], dim=-1)
        features = self.propagation(xyz, fine, fine_features, own)  # (B, N, H)
        logits = self.segmenter(in_precision_of(self.segmenter, features).flatten(0, 1)).unflatten(0, xyz.shape[:2])
        if config.restrict_to_category_parts:
            logits = restrict_to_parts(logits, config.category_parts, category)
        return TokenClassifierOutput(point_loss(logits, labels), logits, output.hidden_states, output.attentions)

    def _level(self, xyz: torch.Tensor, count: int) -> torch.Tensor:
        """Return `count` points spread over each cloud, `(batch, count, 3)`."""
        index = farthest_point_sample(xyz, count, min_squared_norm=self.config.sampling_min_squared_norm)
        return gather_points(xyz, index)
