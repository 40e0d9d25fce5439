"""Configuration of DAPT."""

from dataclasses import dataclass, field

from hf_any3d.tuners.tuners_utils import EncoderLayersConfig


@dataclass
class DAPTConfig(EncoderLayersConfig):
    """Adapt each token by a bottleneck with a scale of its own, and add a prompt in each layer (DAPT).

    A bottleneck beside the MLP is multiplied, token by token, by a scale that it reads from the token, so that some
    tokens are adapted and others are not; its mean over the tokens becomes a prompt, which goes on to the later
    layers. The outputs of all norms and linear layers are scaled and shifted by channel. A head can read the prompts:
    `pooling=["cls", "prompt_mean", "max"]` in the config of an ACT classifier. Other layers than those of a point
    transformer are followed by the bottleneck.

    By default a model starts as the frozen one, apart from prompts of zeros, and positions are added where the
    encoder was pretrained to add them; `published()` returns the settings of the released program.
    """

    method = "DAPT"
    # The base was pretrained with positions before every block, and the program starts from random scales.
    released = {"positions": "once", "scales": "random"}  # noqa: RUF012
    choices = {"positions": ("every_layer", "once"), "scales": ("identity", "random")}  # noqa: RUF012

    r: int = field(default=64, metadata={"help": "Width of the bottlenecks."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout inside them."})
    positions: str = field(
        default="every_layer",
        metadata={
            "help": "Where a point transformer adds the positions of its tokens: before 'every_layer', as in "
            "pretraining, or 'once', before the first."
        },
    )
    scales: str = field(
        default="identity",
        metadata={"help": "Start of scales and shifts: 'identity', or 'random' with a standard deviation of 0.02."},
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Initialize the last layer of bottlenecks to zero; False for random values."}
    )
