"""Configuration of APPT."""

from dataclasses import dataclass, field

from hf_any3d.tuners.tuners_utils import EncoderLayersConfig


@dataclass
class APPTConfig(EncoderLayersConfig):
    """Add prompts that the model's point embedding makes of larger patches (adaptive point-prompt tuning, APPT).

    Tokens and prompts get a learned location, relative to all tokens of the cloud. Around an encoder of another
    modality it takes the place of the encoder's positions: nothing is projected to a line or an image, but for
    encoders that have positions inside their attention. Point transformers keep their pretrained positions.

    Source: arXiv 2509.00374, as far as its abstract tells it. From there are: point embeddings by aggregation of local
    geometry and linear layers, a permutation-invariant feature of their relative positions that is part of the point
    tokens, a prompt generator that shares the weights of the point embedding and has none of its own, and prompts that
    are concatenated to the input of the frozen model. Not from there but chosen here are all sizes, and:

    - the point embedding: that of the model, an Any2Point tokenizer or the patch encoder of an ACT model;
    - the patches of the prompts: those of `group_size` points around the first `num_prompts` centers of the tokens,
      which farthest point sampling spreads over the cloud;
    - the feature of token i with center c_i: max over j of relu(W (c_j - c_i) + b) of width `r`, in radii of the
      cloud, and a linear layer, whose output is added once to the tokens and to the prompts;
    - prompts enter at the first layer and pass through all others, unless `insertion` says otherwise.

    Prompts are normed with the running statistics of the tokens. By default tokenizer, class token, output norm and
    head are trained and saved with it: the prompts share the trained tokenizer.
    """

    method = "APPT"
    choices = {"insertion": ("first_layer", "every_layer")}  # noqa: RUF012

    num_prompts: int = field(default=8, metadata={"help": "Number of prompts, at most that of the tokens."})
    group_size: int = field(
        default=128, metadata={"help": "Points of the patch of a prompt; more than those of a token show more shape."}
    )
    r: int = field(default=64, metadata={"help": "Width of the feature of relative positions."})
    insertion: str = field(
        default="first_layer",
        metadata={
            "help": "Where prompts are concatenated to the tokens: before the 'first_layer' that is adapted, "
            "from where they go on, or anew before 'every_layer'."
        },
    )
    keep_positions: bool = field(
        default=False,
        metadata={"help": "Whether the encoder's own positions at the places of the views are added to tokens too."},
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Initialize the location to zero; False for random values."}
    )
