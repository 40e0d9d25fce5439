"""Configuration of prompt tokens."""

from dataclasses import dataclass, field

from hf_any3d.tuners.tuners_utils import EncoderLayersConfig


@dataclass
class PromptTokensConfig(EncoderLayersConfig):
    """Add learned tokens to the point tokens in each layer of a frozen encoder (arXiv 2203.12119, "deep").

    Every layer has its own prompts, which are removed after it, so the point tokens and their positions are unchanged.
    Prompts have no position in space: for encoders with positions in their attention they are in the center of every
    view, like the class token. Where voxels attend within patches (Point Transformer V3), prompts are further keys and
    values of every patch, which are neither rotated nor convolved. By default tokenizer, class token, output norm and
    head are also trained and saved.
    """

    method = "PROMPT_TOKENS"

    num_prompts: int = field(default=10, metadata={"help": "Number of prompts per layer."})
    positions: bool = field(
        default=False,
        metadata={
            "help": "Whether prompts have learned positions, which are added to them, and start from a normal "
            "distribution, as in VPT-deep of IDPT's program."
        },
    )
