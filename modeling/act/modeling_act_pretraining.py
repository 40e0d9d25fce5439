"""ACT's second training stage: a student predicts a frozen teacher's features of masked patches."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from hf_any3d.modeling.act.codebook import gumbel_noise
from hf_any3d.modeling.act.configuration_act import ActConfig
from hf_any3d.modeling.act.distillation_losses import DISTILLATION_LOSSES
from hf_any3d.modeling.act.masking import MASKS, split_by_mask
from hf_any3d.modeling.act.modeling_act import ActModel, ActPreTrainedModel, Encoded
from hf_any3d.modeling.act.modeling_act_autoencoder import ActAutoencoder
from hf_any3d.modeling.card_info import CardInfo
from hf_any3d.modeling.layers.forward_contract import honours_contract
from hf_any3d.modeling.point_ops import gather_points
from hf_any3d.modeling.point_transformer import Patches, PointBlocks


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
            visible, hidden)`, before any norm.
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


class ActForPreTraining(ActPreTrainedModel):
    """Masked point modelling: `ActModel` sees some patches and predicts the teacher's features of the others.

    The teacher is an `ActAutoencoder`, frozen, in eval mode and without noise; `config.teacher_in_training_mode` and
    `config.noisy_targets` restore the behaviour of the released program. Checkpoints hold the student, the decoder and
    the autoencoder's own weights, so that training can resume from them; the autoencoder's frozen encoder is loaded
    from the repository that its config names, and its checksum verified.

    Args:
        config: The configuration, with an `autoencoder_config`.
        autoencoder: A trained autoencoder; by default a randomly initialised one is built from the config.

    Raises:
        ValueError: If the config has no `autoencoder_config`, or one with other patches.

    Source: ACT (arXiv 2212.08320), Sec. 3.3.
    """

    card_info = CardInfo("features", opens="ActModel")

    def __init__(self, config: ActConfig, autoencoder: ActAutoencoder | None = None):
        super().__init__(config)
        teacher = config.autoencoder_config
        if teacher is None:
            raise ValueError("autoencoder_config is missing; build the model with from_autoencoder_pretrained(…)")
        for name in ("num_groups", "group_size", "in_channels"):
            ours, theirs = getattr(config, name), getattr(teacher, name)
            if ours != theirs:
                raise ValueError(
                    f"{name}={ours}; expected {theirs}, the autoencoder's value: both use the same patches"
                )
        width, feature_width = config.hidden_size, config.feature_head_width
        self.act = ActModel(config)
        self.autoencoder = ActAutoencoder(teacher) if autoencoder is None else autoencoder
        self.config.autoencoder_config = self.autoencoder.config
        if self.autoencoder.encoder is not None and self.autoencoder.encoder.config._attn_implementation is None:
            # Nesting a config in another one resets the attention implementation that its model was built with.
            self.autoencoder.encoder.config._attn_implementation = config._attn_implementation
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.decoder = PointBlocks(
            config,
            config.decoder_num_hidden_layers,
            config.decoder_num_attention_heads,
            config.decoder_drop_path_rate,
        )
        self.decoder_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder_position_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.decoder_class_position = nn.Parameter(torch.zeros(width)) if config.class_token_loss else None
        self.prediction_head = nn.Linear(width, teacher.hidden_size)
        self.feature_head = None
        if feature_width is not None:
            self.feature_head = nn.Sequential(
                nn.Linear(width, feature_width), nn.GELU(), nn.Linear(feature_width, feature_width)
            )
        self.post_init()
        self._freeze_teacher()

    @classmethod
    def from_autoencoder_pretrained(
        cls, autoencoder: str | os.PathLike | ActAutoencoder, **config: Any
    ) -> ActForPreTraining:
        """Build an untrained student around a trained autoencoder.

        Args:
            autoencoder: Directory or hub name of an `ActAutoencoder`, or the model itself.
            **config: Any field of `ActConfig`; patches are by default those of the autoencoder.
        """
        if not isinstance(autoencoder, ActAutoencoder):
            autoencoder = ActAutoencoder.from_pretrained(autoencoder)
        teacher = autoencoder.config
        patch_fields = ("num_groups", "group_size", "in_channels", "sampling_min_squared_norm")
        settings = {name: getattr(teacher, name) for name in patch_fields} | config
        return cls(ActConfig(autoencoder_config=teacher, **settings), autoencoder).eval()

    @honours_contract
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

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If the points have the wrong shape, or the mask hides all patches or unequal numbers.
        """
        patches = self.act.cut(points)
        mask = self._draw_mask(patches.centers) if mask is None else mask
        visible, hidden = split_by_mask(mask)
        if not visible.shape[1]:
            raise ValueError(f"mask: hides all {mask.shape[1]} patches; expected some that the student sees")
        targets = self.teacher_features(patches, noise)  # (batch, groups, target width)
        encoded = self._encode(patches, visible, output_hidden_states, output_attentions)
        predictions, class_token_predictions = self._predict(encoded, patches, visible, hidden)
        if hidden.shape[1]:
            targets = gather_points(targets, hidden)
        loss = None
        if return_loss:
            compute_loss = DISTILLATION_LOSSES[self.config.distillation_loss]
            outputs = (predictions, class_token_predictions)
            # In full precision even if the student is not: half precision cannot resolve cosines near 1.
            with torch.autocast(targets.device.type, enabled=False):
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

    def teacher_features(self, patches: Patches, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the frozen autoencoder's features of all patches.

        Args:
            patches: Patches of the clouds.
            noise: As in `forward`.

        Returns:
            `(batch, groups, target width)`, without a gradient.
        """
        config, teacher = self.config, self.autoencoder
        if noise is None and config.noisy_targets:
            shape = (*patches.centers.shape[:2], teacher.config.num_codes)
            noise = gumbel_noise(patches.centers.new_empty(shape))
        elif noise is None and (teacher.training or teacher.config.noise_in_eval):
            # Otherwise the teacher would draw its own noise.
            noise = patches.centers.new_zeros(())
        return teacher.teacher_features(
            patches=patches, noise=noise, through_graph=config.target_layer == "graph_decoder"
        )

    @torch.no_grad()
    def probe_features(self, points: torch.Tensor) -> torch.Tensor:
        """Compute features of full clouds for a linear probe, to evaluate the student during pretraining.

        Args:
            points: `(batch, points, in_channels)`, xyz first.

        Returns:
            `(batch, features)`: the input of a classification head, or, with `config.feature_head_width`, the output
            of the released program's untrained layers on the class token.
        """
        output = self.act(points)
        if self.feature_head is None:
            return output.pooler_output
        return self.feature_head(output.last_hidden_state[:, 0])

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode of the student; the teacher stays in eval mode unless the config enables training mode."""
        super().train(mode)
        self.autoencoder.train(mode and self.config.teacher_in_training_mode)
        return self

    def _draw_mask(self, centers: torch.Tensor) -> torch.Tensor:
        num_masked = int(self.config.mask_ratio * centers.shape[1])
        return MASKS[self.config.mask_type](centers, num_masked)

    def _encode(
        self,
        patches: Patches,
        visible: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Encoded:
        """Run the student on the visible patches."""
        shallow = [self.config.class_token_layer] if self.config.class_token_loss else []
        seen = gather_points(patches.centers, visible)
        tokens = self._visible_tokens(patches, visible)
        return self.act.encode(tokens, seen, shallow, output_hidden_states, output_attentions)

    def _predict(
        self, student: Encoded, patches: Patches, visible: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Predict features of the hidden patches, `(batch, masked, target width)`, also through the class token."""
        config = self.config
        seen, encoded = gather_points(patches.centers, visible), student.last_hidden_state
        leading = encoded.shape[1] - seen.shape[1]
        if not hidden.shape[1]:
            return self.prediction_head(encoded[:, leading:]), None
        centers = torch.cat([seen, gather_points(patches.centers, hidden)], dim=1)
        positions = self.decoder_position_embed(centers.to(encoded.dtype))
        masks = self.mask_token.to(encoded.dtype).expand(*hidden.shape, -1)
        predictions = self._decode(torch.cat([encoded[:, leading:], masks], dim=1), positions, hidden.shape[1])
        if not config.class_token_loss:
            return predictions, None
        # Information about the full cloud that the inner layer lacks has to come from the class token.
        sequence = torch.cat([encoded[:, :1], student.layer_outputs[0][:, 1:], masks], dim=1)
        first = self.decoder_class_position.to(positions.dtype).expand(len(positions), 1, -1)
        return predictions, self._decode(sequence, torch.cat([first, positions], dim=1), hidden.shape[1])

    def _decode(self, tokens: torch.Tensor, positions: torch.Tensor, num_masked: int) -> torch.Tensor:
        """Predict features `(batch, num_masked, target width)` of the hidden patches, the last in the sequence."""
        hidden_states, _ = self.decoder(tokens, positions)
        return self.prediction_head(self.decoder_norm(hidden_states[:, -num_masked:]))

    def _visible_tokens(self, patches: Patches, visible: torch.Tensor) -> torch.Tensor:
        if not self.config.encode_visible_only:
            return gather_points(self.act.patch_encoder(patches.neighborhoods), visible)
        rows = gather_points(patches.neighborhoods.flatten(2), visible)
        return self.act.patch_encoder(rows.view(*visible.shape, *patches.neighborhoods.shape[2:]))

    def _freeze_teacher(self) -> None:
        self.autoencoder.requires_grad_(False)
        if self.config.teacher_dtype is not None and self.autoencoder.encoder is not None:
            self.autoencoder.encoder.to(getattr(torch, self.config.teacher_dtype))
        self.autoencoder.train(self.training and self.config.teacher_in_training_mode)

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        # First, as it loads the frozen encoder, which is in no checkpoint.
        self.autoencoder._initialize_missing_keys(is_quantized)
        super()._initialize_missing_keys(is_quantized)
        # Loading replaces parameters with new ones, which would be trained.
        self._freeze_teacher()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ActForPreTraining):
            init.trunc_normal_(module.mask_token, std=self.config.initializer_range)
            if module.decoder_class_position is not None:
                init.trunc_normal_(module.decoder_class_position, std=self.config.initializer_range)
            # As in the released program; this overrides the initialisation of the decoder's layers.
            for linear in module.decoder.modules():
                if isinstance(linear, nn.Linear):
                    init.xavier_uniform_(linear.weight)
