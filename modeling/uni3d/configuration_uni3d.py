"""Configuration of Uni3D's point encoders (arXiv 2310.06773)."""

from hf_any3d.modeling.point_encoders.aligned_encoders.configuration_aligned_encoders import AlignedEncoderConfig


class Uni3DConfig(AlignedEncoderConfig):
    r"""Configuration of a Uni3D point encoder and its heads (arXiv 2310.06773).

    The defaults are the sizes of Uni3D-base with sound behavior; converted checkpoints switch on a deviation of their
    program. Further fields are those of `AlignedEncoderConfig`.

    Args:
        patch_pooled_width: Channels of a pooled patch before the linear layer that makes it a token.
        gated_mlp: Whether the MLP is SwiGLU rather than two layers with GELU.
        mlp_norm: Whether a gated MLP has a layer norm before its last layer.
        qkv_bias: Whether queries, keys and values have a bias. That of keys has no effect and is zero in converted
            checkpoints.
        sampling_min_squared_norm: Points this close to the origin are never sampled as centers (released programs:
            1e-3, from their CUDA kernel).
    """

    model_type = "uni3d"

    in_channels: int = 6
    num_groups: int = 512
    group_size: int = 64
    patch_widths: list[int] | tuple[int, int, int] = (128, 256, 512)
    patch_pooled_width: int = 512
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_attention_heads: int = 12
    # As EVA-02 base and large; tiny and small have no norm inside, giant no gate.
    gated_mlp: bool = True
    mlp_norm: bool = True
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    projection_dim: int | None = 1024
    sampling_min_squared_norm: float | None = None
