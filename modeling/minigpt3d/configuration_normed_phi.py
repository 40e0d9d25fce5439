"""Configuration of the language model that MiniGPT-3D was released with."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PhiConfig

from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin


class NormedPhiConfig(LibrarySettingsMixin, PhiConfig):
    r"""Phi with normalized queries and keys, a norm after the attention, and one layer for queries, keys and values.

    Fields are those of `PhiConfig`; the defaults are the sizes of Phi-2, which MiniGPT-3D starts from.

    Args:
        post_norm_eps: Epsilon of the norm after the attention.

    Source: MiniGPT-3D, Sec. 3.1, after TinyGPT-V (arXiv 2312.16862), Sec. 3.1.
    """

    model_type = "normed_phi"
    # Rows of the joint layer are ordered by head, so that equal shards are complete heads.
    base_model_tp_plan: ClassVar[dict[str, str]] = {
        "layers.*.self_attn.query_key_value": "colwise",
        "layers.*.self_attn.dense": "rowwise",
        "layers.*.mlp.fc1": "colwise",
        "layers.*.mlp.fc2": "rowwise",
    }

    hidden_size: int = 2560
    intermediate_size: int = 10240
    num_hidden_layers: int = 32
    resid_pdrop: float | int = 0.1
    qk_layernorm: bool = True
    post_norm_eps: float = 1e-6
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256

    def __post_init__(self, **kwargs: Any):
        check_settings(self)
        # Phi-2 rotates 32 of the 80 channels of a head; the default of PhiConfig is another.
        kwargs.setdefault("partial_rotary_factor", 0.4)
        super().__post_init__(**kwargs)
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads}; expected num_attention_heads="
                f"{self.num_attention_heads}, since queries, keys and values share a layer"
            )
