"""Configuration of OpenShape's point encoders (arXiv 2305.10764)."""

from hf_any3d.modeling.point_encoders.aligned_encoders import AlignedEncoderConfig


class OpenShapeConfig(AlignedEncoderConfig):
    r"""Configuration of an OpenShape point encoder and its heads (arXiv 2305.10764).

    The defaults are the sizes of OpenShape/openshape-pointbert-vitg14-rgb. `AlignedEncoderConfig` has the fields of
    texts and heads.

    Args:
        in_channels: Channels of a point: 6 for xyz and colors.
        num_groups: Patches, and therefore tokens, per cloud.
        group_size: Points per patch, including the center.
        group_radius: Radius of a patch; of more points inside, the first ones of the cloud are kept.
        patch_widths: Output channels of the layers of the patch encoder.
        hidden_size: Channels of a token.
        intermediate_size: Hidden channels of a block's MLP.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Attention heads per block.
        qkv_bias: Whether queries, keys and values have a bias.
        layer_norm_eps: Epsilon of the layer norms.
        drop_path_rate: Stochastic depth rate of the last block; it grows linearly from 0.
        projection_dim: Channels of the feature in the space of texts and images; None for the class token itself.
    """

    model_type = "openshape"

    in_channels: int = 6
    num_groups: int = 384
    group_size: int = 64
    group_radius: float = 0.2
    patch_widths: list[int] | tuple[int, ...] = (64, 64, 256)
    hidden_size: int = 512
    intermediate_size: int = 1536
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    qkv_bias: bool = False
    layer_norm_eps: float = 1e-5
    drop_path_rate: float = 0.0
    projection_dim: int | None = 1280

    @property
    def min_points(self) -> int:
        """Minimum number of points per cloud; smaller patches are filled up."""
        return self.num_groups
