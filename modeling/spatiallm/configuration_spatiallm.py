"""Configuration of SpatialLM."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_any3d.modeling.config_checks import Ranges, check_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin
from hf_any3d.modeling.layers.forward_contract import CACHE
from hf_any3d.modeling.layers.layouts import EXTENT
from hf_any3d.modeling.pretrained_parts.record import PartsConfigMixin

PROJECTORS = ("mlp", "linear")
_RANGES: Ranges = {"num_bins": (1, 2**20)}


class SpatialLMConfig(LibrarySettingsMixin, PartsConfigMixin, PreTrainedConfig):
    r"""Configuration of a SpatialLM (arXiv 2506.07491), version 1.1: a scan of a room in, its layout as text out.

    The defaults are the sizes of SpatialLM1.1-Qwen-0.5B with sound behavior; the released program draws the curves of
    the point encoder at random at inference too, which is `shuffle_curves="always"` in `point_config`.

    Args:
        point_config: Configuration of the point encoder, of the type point_transformer_v3 without a decoder. Its
            points have xyz in meters and colors in [-1, 1].
        text_config: Configuration of the language model, any that `AutoModelForCausalLM` supports.
        num_bins: Cells along each axis of a cube of 32 m, and the numbers that the language has for a coordinate.
        projector: Layers from the point encoder to the language model: "mlp" are two with GELU, "linear" is one.
        point_start_token_id: Id of the token before a cloud.
        point_end_token_id: Id of the token after it.
        point_token_id: Placeholder id of a cloud's tokens in `input_ids`.
        initializer_range: Standard deviation of initial weights of the layers between the two models.
        parts: Always None, since all weights are stored with the model.
    """

    model_type = "spatiallm"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        # Sizes of the released 0.5B model; cells of 2.5 cm are 32 m divided by 1280.
        "point_config": SubConfigSpec(
            AutoConfig, model_type="point_transformer_v3", init_kwargs={"in_channels": 6, "grid_size": 0.025}
        ),
        "text_config": SubConfigSpec(
            AutoConfig,
            model_type="qwen2",
            init_kwargs={
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "tie_word_embeddings": True,
            },
        ),
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = [CACHE, "point_features"]

    point_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_bins: int = 1280
    projector: str = "mlp"
    # In the vocabulary of Qwen2.5, three of its tokens for vision.
    point_start_token_id: int = 151652
    point_end_token_id: int = 151653
    point_token_id: int = 151654
    initializer_range: float = 0.02
    parts: dict | None = None

    def __post_init__(self, **kwargs: Any):
        check_settings(self, {"projector": PROJECTORS}, _RANGES)
        super().__post_init__(**kwargs)
        self.check_parts(())
        if self.fourier_resolution < 2:  # positions would be divided by zero
            stages = len(self.point_config.depths)
            raise ValueError(f"num_bins={self.num_bins} with {stages} stages; expected at least {2**stages}")

    @property
    def grid_size(self) -> float:
        """Edge of a cell in meters."""
        return EXTENT / self.num_bins

    @property
    def fourier_resolution(self) -> int:
        """Cells along each axis in the last stage of the point encoder; Fourier features encode their positions."""
        # The number of stages counts, whatever their strides are, as in the released program.
        return self.num_bins // 2 ** (len(self.point_config.depths) - 1)

    @property
    def in_channels(self) -> int:
        """Number of channels of a point."""
        return self.point_config.in_channels

    @property
    def batch_dependent_flags(self) -> list[str]:
        """Enabled flags of the point encoder that make tokens of a cloud depend on the others of a batch."""
        return list(self.point_config.batch_dependent_flags)
