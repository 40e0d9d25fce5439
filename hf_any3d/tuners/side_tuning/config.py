"""Configuration of side-tuning."""

from dataclasses import dataclass, field

from hf_any3d.tuners.tuners_utils import EncoderLayersConfig


@dataclass
class SideTuningConfig(EncoderLayersConfig):
    """Train a small network beside the layers of a frozen encoder (ladder side-tuning, arXiv 2206.06522).

    Each layer's output is projected down, mixed by a learned gate into the state of the side network, and processed by
    an MLP; the state after the last layer is projected up and added to the encoder's output. Nothing is propagated
    back through the encoder, whose activations are not saved, so that a training step costs about a forward pass of
    the encoder. Tokens exchange information only inside the encoder. An encoder of several stages has one side network
    along all of them, whose state is pooled where the encoder pools; the stages that a head reads get its part each.

    By default tokenizer, class token, output norm and head are also trained and saved; a tokenizer gets its gradients
    through the side network, which reads the input of the first layer too.
    """

    method = "SIDE_TUNING"

    r: int = field(default=64, metadata={"help": "Width of the side network."})
    mlp_ratio: float = field(default=2.0, metadata={"help": "Hidden width of its MLPs, in multiples of r."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout inside its MLPs."})
    init_weights: bool = field(
        default=True, metadata={"help": "Initialize the last projection to zero; False for random values."}
    )
