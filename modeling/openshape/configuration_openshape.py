"""Configuration of OpenShape's point encoders (arXiv 2305.10764)."""

from hf_any3d.modeling.point_encoders.aligned_encoders.configuration_aligned_encoders import AlignedEncoderConfig


class OpenShapeConfig(AlignedEncoderConfig):
    r"""Configuration of an OpenShape point encoder and its heads (arXiv 2305.10764).

    The defaults are the sizes of OpenShape/openshape-pointbert-vitg14-rgb. Further fields are those of
    `AlignedEncoderConfig`.

    Args:
        group_radius: Radius of a patch; of more points inside, the first ones of the cloud are kept.
    """

    model_type = "openshape"

    in_channels: int = 6
    num_groups: int = 384
    group_size: int = 64
    group_radius: float = 0.2
    patch_widths: list[int] | tuple[int, ...] = (64, 64, 256)
    hidden_size: int = 512
    intermediate_size: int = 1536
    num_attention_heads: int = 8
    qkv_bias: bool = False
    projection_dim: int | None = 1280

    @property
    def min_points(self) -> int:
        """Minimum number of points per cloud; smaller patches are filled up."""
        return self.num_groups
