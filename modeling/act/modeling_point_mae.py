"""Point-MAE's pretraining of ACT's point transformer: predict the points of hidden patches (arXiv 2203.06604).

Shapes: B clouds, M points of a patch.
"""

from __future__ import annotations

import torch

from hf_any3d.modeling.act.configuration_act import ActConfig
from hf_any3d.modeling.act.modeling_act import ActForPreTrainingOutput, ActModel, MaskedPatchesModel
from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.layers.forward_contract import strict_forward
from hf_any3d.modeling.layers.heads import in_precision_of, pool
from hf_any3d.modeling.point_encoders.patches import Patches
from hf_any3d.modeling.point_encoders.pretrained_base import Encoded
from hf_any3d.modeling.point_ops import chamfer_distance, gather_points


class PointMAEForPreTraining(MaskedPatchesModel):
    """Masked autoencoder: the transformer sees some patches, and a decoder predicts the points of the others.

    The class token has no part in it, and stays as it was drawn until the model is fine-tuned.

    Source: Point-MAE (arXiv 2203.06604), Sec. 3.

    Example:
        ```python
        import torch
        from hf_any3d import ActConfig, PointMAEForPreTraining

        model = PointMAEForPreTraining(ActConfig(num_hidden_layers=2, decoder_num_hidden_layers=1, mask_ratio=0.6))
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points).predictions.shape  # (2, 38, 32, 3)
        ```
    """

    takes_adapters = False

    def __init__(self, config: ActConfig):
        super().__init__(config)
        self.act = ActModel(config)
        self.add_decoder(3 * config.group_size)
        self.post_init()
        self._freeze_class_token()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        mask: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ActForPreTrainingOutput:
        """Hide patches and predict their points.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            mask: `(batch, groups)` booleans, True where hidden, equally many in every cloud; drawn by default.
            return_loss: Whether to compute the loss.
            output_hidden_states: Whether to return the transformer's hidden states; None for the config's choice.
            output_attentions: The same for its attention weights, which only eager attention returns.

        Returns:
            `predictions` and `targets` are `(batch, masked, group_size, 3)`, relative to the centers of the patches.
        """
        patches = self.act.cut(points)
        mask, visible, hidden = self.choose_hidden(patches.centers, mask)
        encoded = self._encode(patches, visible, output_hidden_states, output_attentions)
        targets = patches.neighborhoods[..., :3]
        if hidden.shape[1]:
            sequence, positions, _ = self.masked_sequence(encoded.last_hidden_state, patches.centers, visible, hidden)
            predictions = self.decode(sequence, positions, hidden.shape[1])
            targets = patches.select(hidden).neighborhoods[..., :3]
        else:
            # Nothing is hidden, so there is nothing to decode.
            predictions = self.prediction_head(encoded.last_hidden_state)
        predictions = predictions.unflatten(-1, (-1, 3))  # (B, masked, M, 3)
        loss = None
        if return_loss:
            norm = self.config.reconstruction_loss.removeprefix("chamfer_")
            # In full precision even if the transformer is not: half precision rounds small distances.
            with autocast_disabled(targets.device):
                loss = chamfer_distance(predictions.flatten(0, 1), targets.flatten(0, 1), norm)
        return ActForPreTrainingOutput(
            loss, predictions, targets, None, mask, patches.centers, encoded.hidden_states, encoded.attentions
        )

    @torch.no_grad()
    def probe_features(self, points: torch.Tensor) -> torch.Tensor:
        """Compute features `(batch, 2 * hidden)` of full clouds for a linear probe: maximum and mean of patches."""
        patches = self.act.cut(points)
        everything = torch.arange(patches.centers.shape[1], device=points.device).expand(len(points), -1)
        return pool(self._encode(patches, everything).last_hidden_state, ["max", "mean"], class_tokens=0)

    def _encode(self, patches: Patches, visible: torch.Tensor, *requested: bool | None) -> Encoded:
        """Run the transformer on visible patches, without a class token."""
        centers = gather_points(patches.centers, visible)
        positions = self.act.position_embed(in_precision_of(self.act.position_embed, centers))
        return self.act.run_blocks(self.embed_visible(patches, visible), positions, centers, (), *requested)

    def _freeze_class_token(self) -> None:
        if self.act.class_token is not None:
            self.act.class_token.requires_grad_(False)

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        super()._initialize_missing_keys(is_quantized)
        # Loading replaces parameters with new ones, which would be trained.
        self._freeze_class_token()
