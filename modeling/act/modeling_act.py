"""ACT's point transformer, its heads for classification and segmentation, and its pretraining (arXiv 2212.08320).

points (B, N, 3)
    │  sample centers, group their neighbors
    ▼
patches (B, G, M, 3) ─► patch encoder ─► tokens (B, G, H), class token first, + MLP of the centers
    │  point transformer
    ▼
features (B, 1 + G, H) ──────────┬─► class token and maximum ─► class scores
                                 ├─► propagation to the points ─► scores of each point
                                 └─► pretraining: features at masked patches, compared with those that the
                                     frozen autoencoder gives for the same patches

Shapes: B clouds, N points of each, G tokens, M points of a patch, H width of a token.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, initialization as init
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils import ModelOutput

from hf_any3d.modeling.act.codebook import gumbel_noise
from hf_any3d.modeling.act.configuration_act import ActConfig
from hf_any3d.modeling.act.distillation_losses import DISTILLATION_LOSSES
from hf_any3d.modeling.act.masking import MASKS, split_by_mask
from hf_any3d.modeling.act.modeling_act_autoencoder import ActAutoencoder
from hf_any3d.modeling.config_checks import check_built, check_layers
from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.layers.forward_contract import OUTPUT_KEYWORDS, PointTokensMixin, strict_forward
from hf_any3d.modeling.layers.heads import (
    PROMPT_POOLING,
    ClassificationHead,
    ClassToken,
    HeadNorm,
    in_precision_of,
    pool,
)
from hf_any3d.modeling.layers.losses import classification_loss, point_loss
from hf_any3d.modeling.layers.tasks import check_categories, checked_category, refuse_problem_type, restrict_to_parts
from hf_any3d.modeling.layers.unknown_score import PointCloudClassifierOutput, UnknownScore, UnknownScoreMixin
from hf_any3d.modeling.point_encoders.aligned_encoders.modeling_aligned_encoders import AlignedEncoderOutput
from hf_any3d.modeling.point_encoders.patches import PatchEncoder, Patches, cut_patches, group_patches, patches_around
from hf_any3d.modeling.point_encoders.point_transformer import PointBlock, PointBlocks, PointHead, TokenPropagation
from hf_any3d.modeling.point_encoders.pretrained_base import (
    Encoded,
    PointTransformerMixin,
    PointTransformerOutput,
    PretrainedBaseMixin,
)
from hf_any3d.modeling.point_ops import gather_points, in_full_precision
from hf_any3d.modeling.pretrained_parts.frozen_statistics import hold_statistics

# Settings by which students share the patches of their teacher, and those of the transformer's weights.
_PATCH_FIELDS = ("num_groups", "group_size", "in_channels", "sampling_min_squared_norm")
_SIZES = (
    *("patch_widths", "patch_pooled_width", "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio"),
    *("qkv_bias", "layer_norm_eps", "use_class_token", "side_network"),
)


@dataclass
class ActOutput(PointTransformerOutput):
    """Token features of point clouds.

    Args:
        added_tokens: The tokens `(batch, some, hidden)` that adapters leave behind the output of each requested block,
            before any norm; None if there are none.
    """

    added_tokens: tuple[torch.Tensor, ...] | None = None


class ActPreTrainedModel(PretrainedBaseMixin, PointTokensMixin, PreTrainedModel):
    """Base class of all models with ACT's point transformer: config, initialization, and loading under adapters.

    The config stored with an adapter names the repository or directory that the pretrained transformer, the part
    "base", was loaded from. Its checkpoint may hold more: a head, a decoder, the teacher.
    """

    config_class = ActConfig
    config: ActConfig
    base_model_prefix = "act"
    # Pretraining has no use for the class token, so fine-tuning protocols train it with the head.
    _trained_with_head = ("class_token",)
    _no_split_modules = ["PointBlock"]
    # Weights of pretraining only: the other models load just the student from its checkpoints.
    _keys_to_ignore_on_load_unexpected = [
        r"^(autoencoder|decoder|decoder_norm|decoder_position_embed|prediction_head|feature_head|average)\.",
        r"^(mask_token|decoder_class_position|code_head\..*|queue|queue_place)$",
    ]
    _settings_without_effect_on_adapters = ("parts", "autoencoder_config")

    @classmethod
    def base_class(cls) -> type[ActModel]:
        """Return the point transformer's class."""
        return ActModel

    @classmethod
    def config_of_base(cls, config: ActConfig) -> ActConfig:
        """Return a copy of a config without the autoencoder."""
        config = super().config_of_base(config)
        if hasattr(config, "autoencoder_config"):
            config.autoencoder_config = None
        return config

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Use truncated normal weights, as the released pretraining and segmentation do."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, ClassToken):
            init.trunc_normal_(module.token, std=std)
            init.trunc_normal_(module.position, std=std)
        elif isinstance(module, ActModel) and module.side_alpha is not None:
            init.zeros_(module.side_alpha)

    def config_to_store(self) -> ActConfig:
        """Return a copy of the config without the autoencoder, which only pretraining uses."""
        config = super().config_to_store()
        if hasattr(config, "autoencoder_config"):
            config.autoencoder_config = None
        return config


class ActModel(PointTransformerMixin, ActPreTrainedModel):
    """Point transformer: patches, mini-PointNet, transformer blocks, final norm."""

    _block: type[nn.Module] = PointBlock

    def __init__(self, config: ActConfig):
        super().__init__(config)
        width = config.hidden_size
        self.patch_encoder = PatchEncoder(
            config.in_channels, width, config.patch_widths, pooled_width=config.patch_pooled_width
        )
        self.class_token = ClassToken(width) if config.use_class_token else None
        # All tokens pass this module before the first block; `get_input_embeddings` returns it.
        self.input_tokens = nn.Identity()
        self.position_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.blocks = PointBlocks(config, block=self._block)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        # A small network beside the transformer, for training without a gradient through it; at first both count
        # alike.
        self.side = PatchEncoder(config.in_channels, width, config.patch_widths) if config.side_network else None
        self.side_projection = nn.Linear(width, width, bias=False) if config.side_network else None
        self.side_alpha = nn.Parameter(torch.zeros(1)) if config.side_network else None
        self.post_init()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        output_layers: Sequence[int] = (),
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ActOutput:
        """Encode point clouds."""
        patches = self.cut(points)
        # Patches are relative to their centers, so where they are is for the positions to say.
        tokens = self.patch_encoder(patches.neighborhoods)  # (B, G, H)
        returned = (output_layers, output_hidden_states, output_attentions)
        embed = partial(self.embed_patches, points)
        encoded = self.encode(tokens, patches.centers, *returned, embed_patches=embed)
        hidden_states = encoded.last_hidden_state
        added = encoded.added
        if self.side is not None:
            # The side network has no class token to mix with.
            leading = hidden_states.shape[1] - patches.centers.shape[1]
            side = self.side_projection(self.side(patches.neighborhoods))  # (B, G, H)
            weight = self.side_alpha.sigmoid()
            mixed = weight * hidden_states[:, leading:] + (1 - weight) * side
            hidden_states = torch.cat([hidden_states[:, :leading], mixed], dim=1)
        return ActOutput(
            hidden_states,
            self._pool(hidden_states, added.get(len(self.blocks.layers) - 1)),
            patches.centers,
            patches.center_index,
            encoded.layer_outputs if output_layers else None,
            encoded.hidden_states,
            encoded.attentions,
            tuple(added[number] for number in output_layers if number in added) or None,
        )

    def embed_patches(
        self, points: torch.Tensor, num_groups: int, group_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and positions `(batch, num_groups, hidden)` of other patches of the same clouds."""
        points = in_full_precision(points, self.norm.weight.dtype)
        patches = group_patches(points, num_groups, group_size, self.config.sampling_min_squared_norm)
        positions = self.position_embed(in_precision_of(self.position_embed, patches.centers))
        return self.patch_encoder(patches.neighborhoods), positions

    def cut(self, points: torch.Tensor) -> Patches:
        """Group clouds `(batch, points, in_channels)` into the patches that the config describes."""
        return cut_patches(points, self.config, self.norm.weight.dtype)

    def encode(self, tokens: torch.Tensor, centers: torch.Tensor, *requested: Any, **kwargs: Any) -> Encoded:
        """Run the transformer on all or some tokens `(batch, tokens, hidden)` of a cloud; see `run_blocks`."""
        positions = self.position_embed(in_precision_of(self.position_embed, centers))
        for token in self.leading_tokens:
            tokens, positions = token(tokens, positions)
        return self.run_blocks(tokens, positions, centers, *requested, **kwargs)

    @property
    def leading_tokens(self) -> Sequence[ClassToken]:
        """Learned tokens before those of the patches, the last first."""
        return [] if self.class_token is None else [self.class_token]

    def _pool(self, hidden_states: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        how = list(self.config.pooling)
        leading = len(self.leading_tokens)
        if not leading:
            # A segmentation model has no class token, but its config may be a classifier's.
            how = [name for name in how if name in ("max", "mean")]
            return pool(hidden_states, how or ["max"], class_tokens=0)
        if added is None and not set(how) & PROMPT_POOLING:
            return pool(hidden_states, how, leading)
        if added is None:
            raise ValueError(
                f"pooling={how}: there are no prompts, as no adapter leaves tokens behind the last block; expected an "
                "adapter such as IDPTConfig(), or some of 'cls', 'max', 'mean'"
            )
        return pool(hidden_states, how, leading, prompts=self.normed(added))


class ActForPointCloudClassification(UnknownScoreMixin, ActPreTrainedModel):
    """`ActModel` with a classification head.

    Example:
        ```python
        import torch
        from hf_any3d import ActConfig, ActForPointCloudClassification

        model = ActForPointCloudClassification(ActConfig(num_labels=3, num_hidden_layers=2))
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points).logits.shape  # (2, 3)
        ```
    """

    def __init__(self, config: ActConfig):
        super().__init__(config)
        # Under the name of the base model, which is another one in subclasses.
        setattr(self, self.base_model_prefix, self.base_class()(config))
        features = len(config.pooling) * config.hidden_size
        self.classifier = ClassificationHead(
            features,
            config.num_labels,
            config.head_widths,
            bias=config.head_bias,
            dropout=config.head_dropout,
            activation=config.head_activation,
            norm=config.head_norm,
        )
        self.unknown_score = UnknownScore.of_config(config, features)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # The released programs keep torch's default initialization of this head.
        if isinstance(module, nn.Linear) and module in self.classifier.modules():
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)

    @strict_forward
    def forward(
        self, points: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> PointCloudClassifierOutput:
        """Return `logits (batch, labels)`, and `unknown (batch,)` if `config.unknown` has rows."""
        output = self.base_model(points, **kwargs, return_dict=True)
        logits = self.classifier(output.pooler_output)  # (B, labels)
        loss = classification_loss(logits, labels, self.config)
        unknown = self.score_unknown(output.pooler_output, logits)
        return PointCloudClassifierOutput(loss, logits, output.hidden_states, output.attentions, unknown)


class ActSegmenter(ActPreTrainedModel):
    """Base class of the segmentation models: the model without class token, propagation, and a head for each point."""

    # Whether the model has learned tokens before the patches, whose maximum after the last block the head reads too.
    _reads_leading_tokens = False

    def __init__(self, config: ActConfig, condition_width: int = 0):
        # Do not change the caller's config, which may be a classifier's or a pretrained model's.
        config = copy.deepcopy(config)
        config.use_class_token = self._reads_leading_tokens
        super().__init__(config)
        refuse_problem_type(config)
        layers = config.segmentation_layers
        check_layers("segmentation_layers", layers, config.num_hidden_layers)
        token_width = len(layers) * config.hidden_size
        if self._reads_leading_tokens:
            condition_width += config.hidden_size
            last = config.num_hidden_layers - 1
            if last not in layers:
                raise ValueError(
                    f"segmentation_layers={list(layers)}; expected the last block, {last}, among them: the head reads "
                    "its queries"
                )
        setattr(self, self.base_model_prefix, self.base_class()(config))
        self.propagation = TokenPropagation(token_width, config.propagation_widths)
        self.segmenter = PointHead(config.propagation_widths[-1], 2 * token_width + condition_width, config)

    def point_logits(
        self, points: torch.Tensor, condition: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, ActOutput]:
        """Compute logits `(batch, points, labels)`, and return the base model's output too.

        `condition` `(batch, condition_width)` are additional features of each cloud; the others are as in `forward`.
        """
        base = self.base_model
        layers = list(self.config.segmentation_layers)
        output = base(points, output_layers=layers, **kwargs, return_dict=True)
        leading = len(base.leading_tokens)
        # All layers share the final norm.
        # (B, G, layers * H)
        tokens = torch.cat([base.normed(layer)[:, leading:] for layer in output.layer_outputs], dim=-1)
        xyz = points[..., :3].to(output.centers.dtype)
        # Each point takes from the nearest centers, as in PointNet++ (arXiv 1706.02413, Sec. 3.4).
        features = self.propagation(xyz, output.centers, tokens)  # (B, N, width)
        if self.config.segmentation_pooling == "tokens":
            cloud_features = [tokens.amax(dim=1), tokens.mean(dim=1)]
        else:  # the prompts before and after the blocks
            added = output.added_tokens or ()
            if len(added) != len(layers) or any(prompts.shape[1] != 2 for prompts in added):
                raise ValueError(
                    "segmentation_pooling='prompts': the adapters do not leave one prompt, before and after the "
                    f"block, at each of the blocks {layers}; expected IDPTConfig(prompt_layers={layers}, "
                    "keep_prompts=False), or 'tokens'"
                )
            cloud_features = [
                torch.cat([base.normed(prompts[:, place]) for prompts in added], dim=-1) for place in (1, 0)
            ]
        if self._reads_leading_tokens:
            last = output.layer_outputs[layers.index(self.config.num_hidden_layers - 1)]
            # Before the norm, as released.
            cloud_features.append(last[:, :leading].amax(dim=1))
        if condition is not None:
            cloud_features.append(condition)
        return self.segmenter(features, torch.cat(cloud_features, dim=-1)), output


class ActForSemanticSegmentation(ActSegmenter):
    """ACT model that predicts an object class for every point of a scene or of a block of it.

    Example:
        ```python
        import torch
        from hf_any3d import ActConfig, ActForSemanticSegmentation

        model = ActForSemanticSegmentation(ActConfig(num_labels=3, num_hidden_layers=2, segmentation_layers=[0, 1]))
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points).logits.shape  # (2, 1024, 3)
        ```
    """

    def __init__(self, config: ActConfig):
        super().__init__(config)
        self.post_init()

    @strict_forward
    def forward(
        self, points: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> TokenClassifierOutput:
        """Segment scenes; returns `logits (batch, points, labels)`."""
        logits, output = self.point_logits(points, **kwargs)
        return TokenClassifierOutput(point_loss(logits, labels), logits, output.hidden_states, output.attentions)


class ActForPartSegmentation(ActSegmenter):
    """ACT model that predicts a part for every point of an object, given the object's category.

    Example:
        ```python
        import torch
        from hf_any3d import ActConfig, ActForPartSegmentation

        config = ActConfig(category_parts=[[0, 1], [2]], num_labels=3, num_hidden_layers=2, segmentation_layers=[0, 1])
        model = ActForPartSegmentation(config)
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points, category=torch.tensor([0, 1])).logits.shape  # (2, 1024, 3)
        ```
    """

    def __init__(self, config: ActConfig):
        super().__init__(config, condition_width=config.category_width)
        check_categories(config)
        self.category_embedding = nn.Embedding(config.num_categories, config.category_width)
        self.category_norm = HeadNorm(config.category_width)
        self.post_init()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        category: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Return `logits (batch, points, parts)`, over the parts of all categories.

        With `restrict_to_category_parts` those of other categories have the lowest value of their dtype.
        """
        category = checked_category(category, points, self.config.num_categories)
        embedded = self.category_norm(self.category_embedding(category))
        # As released: an embedding with norm and activation
        condition = nn.functional.leaky_relu(embedded, 0.2)  # (B, category_width)
        # Which parts there can be depends on the category, which a cloud's shape need not show.
        logits, output = self.point_logits(points, condition, **kwargs)
        # The loss of the released program is over the parts of all categories; its evaluation compares those of the
        # category.
        if self.config.restrict_to_category_parts:
            logits = restrict_to_parts(logits, self.config.category_parts, category)
        return TokenClassifierOutput(point_loss(logits, labels), logits, output.hidden_states, output.attentions)


@dataclass
class ActForPreTrainingOutput(ModelOutput):
    """Predictions of a student and their targets.

    Args:
        loss: Distillation loss; None if not requested.
        predictions: `(batch, masked, target width)`, for the hidden patches in ascending order, or for all patches if
            none is hidden.
        targets: The same shape, the teacher's features of these patches.
        class_token_predictions: The same shape, predictions from an inner layer and the class token; None without
            `class_token_loss`.
        mask: `(batch, groups)`, True where hidden.
        centers: `(batch, groups, 3)`, positions of the patches in the units of the input.
        hidden_states: On request, the input of the student's first block and the output of each block, `(batch, 1 +
            visible, hidden)`, before any norm; of an encoder of voxels `(voxels, channels)`.
        attentions: On request, the attention weights of the student's blocks.
    """

    loss: torch.Tensor | None = None
    predictions: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    class_token_predictions: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class MaskedPatchesModel(ActPreTrainedModel):
    """Base class of models that see some patches of a cloud, and predict the others by a decoder.

    A subclass has the student, its base model, and calls `add_decoder`.
    """

    # By which methods know that it gives its encoder some patches, not clouds.
    hides_patches = True

    def add_decoder(self, predicted_width: int) -> None:
        """Add a decoder with positions of its own, and a layer from its tokens to predictions of this width."""
        config = self.config
        width = config.hidden_size
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.decoder = PointBlocks(
            config, config.decoder_num_hidden_layers, config.decoder_num_attention_heads, config.decoder_drop_path_rate
        )
        self.decoder_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder_position_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.prediction_head = nn.Linear(width, predicted_width)

    def choose_hidden(
        self, centers: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the mask, drawn by default, and the indices of visible and of hidden patches; see `split_by_mask`."""
        num_masked = None
        if mask is None:
            # Known here, so that no accelerator has to count the mask.
            num_masked = int(self.config.mask_ratio * centers.shape[1])
            mask = MASKS[self.config.mask_type](centers, num_masked)
        # By indices, not by the mask itself, whose number of rows an accelerator would have to wait for.
        visible, hidden = split_by_mask(mask, num_masked)
        if not visible.shape[1]:
            raise ValueError(f"mask: hides all {mask.shape[1]} patches; expected some that the student sees")
        return mask, visible, hidden

    def embed_visible(self, patches: Patches, visible: torch.Tensor) -> torch.Tensor:
        """Return the tokens of visible patches, `(batch, visible, hidden)`."""
        if self.config.encode_visible_only:
            # Patches are flattened to rows, which `gather_points` selects.
            rows = gather_points(patches.neighborhoods.flatten(2), visible)
            return self.base_model.patch_encoder(rows.view(*visible.shape, *patches.neighborhoods.shape[2:]))
        return gather_points(self.base_model.patch_encoder(patches.neighborhoods), visible)

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, num_masked: int) -> torch.Tensor:
        """Predict `(batch, num_masked, width)` for the hidden patches, the last in the sequence."""
        # Only the predictions are normed, which as a norm of each token equals slicing afterwards.
        hidden_states, _ = self.decoder(tokens, positions)
        return self.prediction_head(self.decoder_norm(hidden_states[:, -num_masked:]))

    def masked_sequence(
        self, encoded: torch.Tensor, centers: torch.Tensor, visible: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return tokens of visible patches followed by mask tokens, their positions, and the mask tokens alone."""
        # Visible patches first: `decode` returns the last of the sequence.
        places = torch.cat([gather_points(centers, visible), gather_points(centers, hidden)], dim=1)
        # The decoder has positions of its own, of visible and hidden centers.
        positions = self.decoder_position_embed(places.to(encoded.dtype))
        masks = self.mask_token.to(encoded.dtype).expand(*hidden.shape, -1)
        return torch.cat([encoded, masks], dim=1), positions, masks

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MaskedPatchesModel):
            init.trunc_normal_(module.mask_token, std=self.config.initializer_range)
            # As in the released programs; this overrides the initialization of the decoder's layers.
            for linear in module.decoder.modules():
                if isinstance(linear, nn.Linear):
                    init.xavier_uniform_(linear.weight)


class FrozenAutoencoderMixin:
    """For models of pretraining that learn from a frozen `autoencoder`."""

    autoencoder: ActAutoencoder
    config: ActConfig

    def adopt_autoencoder(self, autoencoder: ActAutoencoder | None) -> None:
        """Take an autoencoder, or build one by the config, which then describes it."""
        self.autoencoder = ActAutoencoder(self.config.autoencoder_config) if autoencoder is None else autoencoder
        # So that what is saved describes the teacher that is used.
        self.config.autoencoder_config = self.autoencoder.config

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode of the student; the teacher stays in eval mode unless the config enables training mode."""
        super().train(mode)  # pyright: ignore[reportAttributeAccessIssue] a method of the model
        # Batch statistics would make a cloud's targets depend on the others, and change the frozen model's norms.
        self.autoencoder.train(mode and self.config.teacher_in_training_mode)
        # Again: the mode of the teacher is set after that of the model.
        hold_statistics(self)  # pyright: ignore[reportArgumentType] the model
        return self  # pyright: ignore[reportReturnType]

    def _freeze_teacher(self) -> None:
        self.autoencoder.requires_grad_(False)
        if self.config.teacher_dtype is not None and self.autoencoder.encoder is not None:
            self.autoencoder.encoder.to(getattr(torch, self.config.teacher_dtype))
        self.autoencoder.train(self.training and self.config.teacher_in_training_mode)  # pyright: ignore[reportAttributeAccessIssue]

    _load_pretrained_model = staticmethod(ActAutoencoder._load_pretrained_model)

    def _move_missing_keys_from_meta_to_device(self, missing_keys: Any, *args: Any, **kwargs: Any) -> None:
        # The autoencoder asks for them below: offloaded weights have no memory either, but a file.
        names = {key.removeprefix("autoencoder.") for key in missing_keys if key.startswith("autoencoder.")}
        vars(self.autoencoder)["_keys_without_file"] = names
        super()._move_missing_keys_from_meta_to_device(missing_keys, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        # First, as it loads the frozen encoder, which is in no checkpoint.
        self.autoencoder._initialize_missing_keys(is_quantized)
        super()._initialize_missing_keys(is_quantized)  # pyright: ignore[reportAttributeAccessIssue]
        # Loading replaces parameters with new ones, which would be trained.
        self._freeze_teacher()


class ActForPreTraining(FrozenAutoencoderMixin, MaskedPatchesModel):
    """Masked point modeling: `ActModel` sees some patches and predicts the teacher's features of the others.

    The teacher is an `ActAutoencoder`, frozen, in eval mode and without noise; `config.teacher_in_training_mode` and
    `config.noisy_targets` restore the behavior of the released program. Checkpoints hold the student, the decoder and
    the autoencoder's own weights, so that training can resume from them; the autoencoder's frozen encoder is loaded
    from the repository that its config names, and its checksum verified.

    Args:
        config: The configuration, with an `autoencoder_config`.
        autoencoder: A trained autoencoder; by default a randomly initialized one is built from the config.
        student: An encoder of `config.student_config`; by default a randomly initialized one is built from it.

    Source: ACT (arXiv 2212.08320), Sec. 3.3.

    Example:
        ```python
        import torch
        from hf_any3d import ActAutoencoder, ActAutoencoderConfig, ActForPreTraining

        autoencoder = ActAutoencoder(ActAutoencoderConfig(num_groups=16, group_size=8))  # untrained, without a teacher
        model = ActForPreTraining.from_autoencoder_pretrained(autoencoder, num_hidden_layers=2)
        points = torch.rand(2, 256, 3)  # xyz
        model(points=points).mask.shape  # (2, 16)
        ```
    """

    def __init__(
        self, config: ActConfig, autoencoder: ActAutoencoder | None = None, student: PreTrainedModel | None = None
    ):
        super().__init__(config)
        check_built(config, "autoencoder_config", "from_autoencoder_pretrained(…)")
        teacher = config.autoencoder_config
        # A student of another kind has patches of its own around the same centers.
        for name in ("num_groups", "group_size", "in_channels") if config.student_config is None else ("num_groups",):
            ours = getattr(config, name)
            theirs = getattr(teacher, name)
            if ours != theirs:
                raise ValueError(f"{name}={ours}; expected {theirs}, the autoencoder's value")
        width = config.hidden_size
        feature_width = config.feature_head_width
        if config.student_config is None:
            self.act = ActModel(config)
        else:
            if not config.encode_visible_only:
                raise ValueError("encode_visible_only=False with student_config; expected True")
            self.act = AutoModel.from_config(config.student_config) if student is None else student
            # Nesting a config in another one resets the attention implementation that its model was built with.
            attention = self.act.config._attn_implementation or config._attn_implementation
            config.student_config = self.act.config
            self.act.config._attn_implementation = attention
            if config.class_token_loss and getattr(type(self.act), "is_causal", False):
                raise ValueError("class_token_loss=True: the class token of this student stands before all patches")
        self._reads_voxels = getattr(config.student_config, "flat_tokens", False)
        self.adopt_autoencoder(autoencoder)
        if self.autoencoder.encoder is not None and self.autoencoder.encoder.config._attn_implementation is None:
            # Nesting a config in another one resets the attention implementation that its model was built with.
            self.autoencoder.encoder.config._attn_implementation = config._attn_implementation
        through_graph = config.target_layer == "graph_decoder"
        self.add_decoder((through_graph and teacher.decoder_width) or teacher.hidden_size)
        self.decoder_class_position = nn.Parameter(torch.zeros(width)) if config.class_token_loss else None
        self.feature_head = None
        if feature_width is not None:
            self.feature_head = nn.Sequential(
                nn.Linear(width, feature_width), nn.GELU(), nn.Linear(feature_width, feature_width)
            )
        self.post_init()
        self._freeze_teacher()

    @classmethod
    def _from_full_repository(
        cls, name: str | os.PathLike | None, *args: Any, quantization_config: Any = None, **kwargs: Any
    ) -> Any:
        if quantization_config is not None:
            raise ValueError(f"quantization_config: {cls.__name__} trains weights, which must be full; expected none")
        return super()._from_full_repository(name, *args, **kwargs)

    @classmethod
    def from_autoencoder_pretrained(
        cls,
        autoencoder: str | os.PathLike | ActAutoencoder,
        student: str | os.PathLike | PreTrainedModel | None = None,
        **config: Any,
    ) -> ActForPreTraining:
        """Build a student around a trained autoencoder.

        Args:
            autoencoder: Directory or hub name of an `ActAutoencoder`, or the model itself.
            student: Directory or hub name of an encoder from which training starts, or the model itself: an
                `ActModel`, such as a start of Point-MAE, one of ReCon or PointGPT, an encoder that is aligned with
                texts, or of voxels; it gets as many patches as the autoencoder has. None for an untrained `ActModel`.
            **config: Any field of `ActConfig`; patches are by default those of the autoencoder.

        Raises:
            EncoderMismatchError: The teacher's weights differ from those that the autoencoder was trained with.
            OSError: There is no such directory or repository, or the hub cannot be reached.
        """
        if not isinstance(autoencoder, ActAutoencoder):
            autoencoder = ActAutoencoder.from_pretrained(autoencoder)
        teacher = autoencoder.config
        if student is not None:
            # Patches have to be those of the teacher, one target for each; no weight depends on their number.
            if not isinstance(student, PreTrainedModel):
                settings = AutoConfig.from_pretrained(student)
                if hasattr(settings, "num_groups"):
                    settings.num_groups = teacher.num_groups
                student = AutoModel.from_pretrained(student, config=settings)
            other = student.config
            # A model on its classes may have other blocks.
            if type(student) is ActModel:
                sizes = {name: getattr(other, name) for name in _SIZES}
                sizes |= {name: getattr(teacher, name) for name in _PATCH_FIELDS}
                model = cls(ActConfig(autoencoder_config=teacher, **sizes | config), autoencoder)
                model.act.load_state_dict(student.state_dict())
                return model.eval()
            names = ("in_channels", "num_groups", "hidden_size", "num_hidden_layers", "num_attention_heads")
            sizes: dict[str, Any] = {name: getattr(other, name) for name in names if hasattr(other, name)}
            if getattr(other, "flat_tokens", False):  # an encoder of voxels: patches only say what is hidden
                sizes |= {"num_groups": teacher.num_groups, "group_size": teacher.group_size}
                heads = other.decoder_num_attention_heads[:1] if other.use_decoder else other.num_attention_heads
                sizes["num_attention_heads"] = heads[-1]  # those of the last stage
            config = {"student_config": other, **sizes, **config}
            return cls(ActConfig(autoencoder_config=teacher, **config), autoencoder, student).eval()
        # The student's patches are the teacher's, point by point.
        settings = {name: getattr(teacher, name) for name in _PATCH_FIELDS} | config
        return cls(ActConfig(autoencoder_config=teacher, **settings), autoencoder).eval()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ActForPreTrainingOutput:
        """Hide patches and predict the teacher's features of them.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            mask: `(batch, groups)` booleans, True where hidden, equally many in every cloud; drawn by default.
            noise: `(batch, groups, codes)`, added to the scores of the teacher's codes; None draws it if
                `config.noisy_targets` is set.
            return_loss: Whether to compute the loss.
            output_hidden_states: Whether to return the student's hidden states; None for the config's choice.
            output_attentions: The same for the student's attention weights, which only eager attention returns.
        """
        patches = self.cut(points)
        mask, visible, hidden = self.choose_hidden(patches.centers, mask)
        targets = self.teacher_features(self._teacher_patches(points, patches), noise)  # (B, G, target width)
        requested = (output_hidden_states, output_attentions)
        if self._reads_voxels:
            encoded = self._encode_voxels(points, patches.select(visible), *requested)
        else:
            encoded = self._encode(patches, visible, *requested)
        predictions, class_token_predictions = self._predict(encoded, patches, visible, hidden)
        if hidden.shape[1]:
            targets = gather_points(targets, hidden)
        loss = None
        if return_loss:
            compute_loss = DISTILLATION_LOSSES[self.config.distillation_loss]
            outputs = (predictions, class_token_predictions)
            # In full precision even if the student is not: half precision cannot resolve cosines near 1.
            with autocast_disabled(targets.device):
                loss = sum(compute_loss(output.float(), targets.float()) for output in outputs if output is not None)
        return ActForPreTrainingOutput(
            loss,
            predictions,
            targets,
            class_token_predictions,
            mask,
            patches.centers,
            encoded.hidden_states,
            encoded.attentions,
        )

    def cut(self, points: torch.Tensor) -> Patches:
        """Group clouds `(batch, points, in_channels)` into the patches that are hidden from the student, or not."""
        if self._reads_voxels:
            return cut_patches(points, self.config, self.decoder_norm.weight.dtype)
        return self.act.cut(points)

    def teacher_features(self, patches: Patches, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the frozen autoencoder's features of all patches, `(batch, groups, target width)`."""
        config = self.config
        teacher = self.autoencoder
        if noise is None and config.noisy_targets:
            # As released: the codes of the targets are drawn anew at each step.
            shape = (*patches.centers.shape[:2], teacher.config.num_codes)
            noise = gumbel_noise(patches.centers.new_empty(shape))
        elif noise is None and (teacher.training or teacher.config.released.noise_in_eval):
            # Otherwise the teacher would draw its own noise.
            noise = patches.centers.new_zeros(())
        return teacher.teacher_features(
            patches=patches, noise=noise, through_graph=config.target_layer == "graph_decoder"
        )

    @torch.no_grad()
    def probe_features(self, points: torch.Tensor) -> torch.Tensor:
        """Compute features of full clouds `(batch, features)` for a linear probe during pretraining.

        They are the input of a classification head, or with `config.feature_head_width` the output of the released
        program's untrained layers on the class token.
        """
        output = self.act(points, return_dict=True)
        if self.feature_head is None:
            return output.pooler_output
        return self.feature_head(output.last_hidden_state[:, 0])

    def _teacher_patches(self, points: torch.Tensor, patches: Patches) -> Patches:
        """Return the patches that the teacher reads: the student's own, or others around the same centers."""
        if self.config.student_config is None:
            return patches
        teacher = self.autoencoder.config
        points = in_full_precision(points[..., : teacher.in_channels], self.autoencoder.codebook.weight.dtype)
        return patches_around(points, patches.center_index, teacher.group_size)

    def _encode(
        self, patches: Patches, visible: torch.Tensor, *requested: bool | None
    ) -> Encoded | AlignedEncoderOutput:
        """Run the student on the visible patches; `requested` are the last arguments of `ActModel.encode`."""
        # One inner block's output more
        shallow = [self.config.class_token_layer] if self.config.class_token_loss else []
        if not isinstance(self.act, ActModel):
            return self.act(None, shallow, *requested, patches=patches.select(visible), return_dict=True)
        tokens = self.embed_visible(patches, visible)
        return self.act.encode(tokens, gather_points(patches.centers, visible), shallow, *requested)

    def _encode_voxels(self, points: torch.Tensor, patches: Patches, *requested: bool | None) -> Encoded:
        """Run an encoder of voxels on the points of visible patches; a patch gets the mean of its points' features.

        Points of no visible patch are taken away before they are sampled on the grid.
        """
        assert patches.neighbor_index is not None
        index = patches.neighbor_index.flatten(1)  # (B, visible * neighbors)
        # Patches overlap: a point of a visible patch stays, even if a hidden one has it too.
        is_seen = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device).scatter_(1, index, True)
        outputs = dict(zip(OUTPUT_KEYWORDS, requested, strict=True))
        # Features of the last stage.
        output = self.act(points, point_mask=is_seen, output_point_features=1, **outputs, return_dict=True)
        features = gather_points(output.point_features, index).unflatten(1, patches.neighbor_index.shape[1:])
        return Encoded(features.mean(dim=2), hidden_states=output.hidden_states, attentions=output.attentions)

    def _predict(
        self, student: Encoded | AlignedEncoderOutput, patches: Patches, visible: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Predict features of the hidden patches, `(batch, masked, target width)`, also through the class token."""
        config = self.config
        encoded = student.last_hidden_state
        # Some students have a class token before the patches, others none.
        leading = encoded.shape[1] - visible.shape[1]
        # Where nothing is hidden, there is nothing to decode.
        if not hidden.shape[1]:
            return self.prediction_head(encoded[:, leading:]), None
        sequence, positions, masks = self.masked_sequence(encoded[:, leading:], patches.centers, visible, hidden)
        predictions = self.decode(sequence, positions, hidden.shape[1])
        if not config.class_token_loss:
            return predictions, None
        # Information about the full cloud that the inner layer lacks has to come from the class token.
        sequence = torch.cat([encoded[:, :1], student.layer_outputs[0][:, leading:], masks], dim=1)
        first = self.decoder_class_position.to(positions.dtype).expand(len(positions), 1, -1)
        return predictions, self.decode(sequence, torch.cat([first, positions], dim=1), hidden.shape[1])

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ActForPreTraining) and module.decoder_class_position is not None:
            init.trunc_normal_(module.decoder_class_position, std=self.config.initializer_range)
