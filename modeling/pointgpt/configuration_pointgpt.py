"""Configuration of PointGPT and its heads."""

from __future__ import annotations

from typing import Any

from hf_any3d.modeling.act.configuration_act import PointTransformerConfig
from hf_any3d.modeling.config_checks import check_settings

_CHOICES = {"patch_order": ("chain", "sampled")}
_RANGES = {"position_temperature": (1, 1e9), "generation_loss_weight": (0, 1e6), "num_seen_columns": (0, 10**6)}


class PointGPTConfig(PointTransformerConfig):
    r"""Configuration of PointGPT (arXiv 2305.11487); see also `PointTransformerConfig`.

    The defaults are the published ones of the smallest size, PointGPT-S, with what its weights were trained with.

    Args: Patches and transformer
        patch_widths: Output channels of the first three layers of the patch encoder, or of the first four, as in
            PointGPT-B and -L: (256, 512, 1024, 2048).
        use_class_token: Whether heads read the class token; the transformer has one in any case.
        patch_order: Patches follow each other as a "chain", each being the nearest to the one before of those that
            are left, or in the order in which they were "sampled".
        position_temperature: Base of the frequencies of the sines and cosines of positions. With 1, as released, all
            frequencies are 1, so that positions repeat after one unit; 10000 is usual.
        crossed_positions: Exchange the positions of start and class token when the class token is there, as released.

    Args: Generation
        decoder_num_hidden_layers: Number of blocks of the generator, which predicts each patch from those before.
        mask_ratio: Pretraining: share of the positions after the first `num_seen_columns` that no other one sees.
        num_seen_columns: Pretraining: number of first positions that are always seen.
        generation_loss_weight: Classification: weight of the loss of generated patches beside that of the labels.
        absolute_targets: Classification: generated patches are compared with points of the cloud, as released, and not
            with points relative to the center of their patch, as in pretraining.
    """

    model_type = "pointgpt"

    patch_widths: list[int] | tuple[int, ...] = (128, 256, 512)
    qkv_bias: bool = True
    drop_path_rate: float = 0.0

    patch_order: str = "chain"
    position_temperature: float = 1.0
    crossed_positions: bool = True

    decoder_num_hidden_layers: int = 4
    mask_ratio: float = 0.7
    num_seen_columns: int = 10
    generation_loss_weight: float = 3.0
    absolute_targets: bool = True

    def __post_init__(self, **kwargs: Any):
        check_settings(self, _CHOICES, _RANGES)
        if len(self.patch_widths) not in (3, 4):
            raise ValueError(f"patch_widths={self.patch_widths}; expected 3 or 4 widths")
        # One number has no room for a sine and a cosine of each axis.
        if self.hidden_size < 6:
            raise ValueError(f"hidden_size={self.hidden_size}; expected 6 or more")
        if self.side_network:
            raise ValueError("side_network=True: PointGPT has none; expected False")
        super().__post_init__(**kwargs)
