"""Configuration of BitFit."""

from dataclasses import dataclass

from hf_any3d.tuners.tuners_utils import EncoderTunerConfig


@dataclass
class BitFitConfig(EncoderTunerConfig):
    """Train the biases of linear layers and norms in the layers of a frozen encoder (arXiv 2106.10199).

    Trained are changes of the pretrained biases, starting from zero. They have the same gradients as the biases, and
    several adapters can share an encoder; weight decay therefore pulls towards the pretrained biases, not towards
    zero. By default tokenizer, class token, output norm and head are trained and saved with it.
    """

    method = "BITFIT"
