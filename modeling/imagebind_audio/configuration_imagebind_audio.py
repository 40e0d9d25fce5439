"""Configuration of ImageBind's audio encoder."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin


class ImageBindAudioConfig(LibrarySettingsMixin, PreTrainedConfig):
    r"""Configuration of ImageBind's audio encoder (arXiv 2305.05665); the defaults are those of `imagebind_huge`.

    Args:
        patch_norm_eps: Epsilon of the norm after the patch embedding.
        patch_size: Edge of a patch, in mel bins and frames.
        stride: Distance between patches, which overlap if it is smaller than `patch_size`.
        num_mel_bins: Mel bins of a spectrogram.
        num_frames: Frames of a spectrogram.
        add_bias_kv: Whether attention has an additional learned key and value.
    """

    model_type = "imagebind_audio"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    patch_norm_eps: float = 1e-5
    patch_size: int = 16
    # Patches of 16 overlap by 6 bins and frames.
    stride: int = 10
    num_mel_bins: int = 128
    num_frames: int = 204
    add_bias_kv: bool = True
    attention_dropout: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any):
        check_settings(self)
        super().__post_init__(**kwargs)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows (mel) and columns (time) of patches."""
        # As many as a convolution without padding gives.
        rows, columns = (
            (length - self.patch_size) // self.stride + 1 for length in (self.num_mel_bins, self.num_frames)
        )
        return rows, columns
