"""Configuration of PPT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_any3d.tuners.tuners_utils import EncoderTunerConfig, extend_peft_type

PPT = extend_peft_type("PPT")
_PUBLISHED = [
    "class_token",
    "position_embed",
    "patch_encoder.lift",
    "patch_encoder.lift_norm",
    "patch_encoder.widen",
    "classifier",
]


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

    num_groups: int = field(default=64, metadata={"help": "Number of further patches."})
    group_size: int = field(default=32, metadata={"help": "Points of each of them."})
    r: int = field(default=256, metadata={"help": "Hidden width of the MLPs."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PPT

    @classmethod
    def published(cls, **settings: Any) -> PPTConfig:
        """Return the config of the released program, for an ACT classifier."""
        return cls(**{"modules_to_save": list(_PUBLISHED), **settings})
