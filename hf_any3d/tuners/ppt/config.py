"""Configuration of PPT."""

from dataclasses import dataclass, field

from hf_any3d.tuners.tuners_utils import EncoderTunerConfig


@dataclass
class PPTConfig(EncoderTunerConfig):
    """Add the tokens of further patches of a cloud as prompts, and MLPs beside all blocks (positional prompts, PPT).

    The patch encoder of an ACT model reads a second set of patches of each cloud. Their tokens, with their positions,
    follow the others through all blocks. Before a block one MLP changes the tokens and another one the prompts; a
    third one runs beside the block's MLP. All blocks share the three. A head can read the prompts:
    `pooling=["cls", "mean", "prompt_mean"]` in the config of an ACT classifier.

    `published()` trains what the released program trains besides: class token, positions, the first half of the
    patch encoder, and the head.
    """

    method = "PPT"
    released = {  # noqa: RUF012
        "modules_to_save": [
            "class_token",
            "position_embed",
            "patch_encoder.lift",
            "patch_encoder.lift_norm",
            "patch_encoder.widen",
            "classifier",
        ]
    }

    num_groups: int = field(default=64, metadata={"help": "Number of further patches."})
    group_size: int = field(default=32, metadata={"help": "Points of each of them."})
    r: int = field(default=256, metadata={"help": "Hidden width of the MLPs."})
