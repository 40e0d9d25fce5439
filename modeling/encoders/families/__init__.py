"""The supported encoders, one file per tower, registered on import, and encoders that cannot read point tokens."""

from hf_any3d.modeling.encoders.families import audio, text, vision  # noqa: F401  each registers its families
from hf_any3d.modeling.encoders.registry import refuse_encoders

refuse_encoders(
    ("swin", "swinv2", "donut-swin", "clap_audio_model", "hiera", "segformer", "pvt", "pvt_v2", "cvt", "levit"),
    "its stages merge neighboring tokens of a grid, and tokens of a cloud form no grid",
)
refuse_encoders(
    ("resnet", "convnext", "convnextv2", "regnet", "efficientnet", "dinov3_convnext"),
    "it convolves a grid of pixels and has no attention between tokens",
)
refuse_encoders(("fnet",), "it mixes tokens by a Fourier transform along their order, and a cloud has none")
refuse_encoders(
    ("longformer", "led", "reformer"),
    "its attention is sparse along the order of the tokens, and a cloud has none",
)
refuse_encoders(("bloom", "mpt"), "its biases are defined for preceding tokens only")
refuse_encoders(("roformer",), "its rotations are a table among its weights, and are known at whole places alone")
refuse_encoders(
    ("mra", "yoso"), "its attention is an approximation along the order of the tokens, and a cloud has none"
)
refuse_encoders(("xmod",), "its layers have a branch for each language, and a cloud has none")
refuse_encoders(("t5gemma2",), "it reads words and images by one encoder, which is not one of words alone")
