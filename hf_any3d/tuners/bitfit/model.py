"""Tuner of BitFit."""

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_any3d.tuners.bitfit.config import BitFitConfig
from hf_any3d.tuners.bitfit.layer import BitFitLayer
from hf_any3d.tuners.targets import encoder_module_pattern
from hf_any3d.tuners.tuners_utils import EncoderTuner


class BitFitModel(EncoderTuner):
    """Tuner that `get_peft_model(model, BitFitConfig())` creates."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer
    can_be_merged = True

    def default_targets(self, peft_config: BitFitConfig) -> str:
        """Return a regular expression of all linear layers and norms with a bias, which they add last."""
        return encoder_module_pattern(
            self.model,
            # Norms of transformers have classes of many names, which agree on a word alone.
            lambda module: (
                (isinstance(module, (nn.Linear, Conv1D)) or "norm" in type(module).__name__.lower())
                and isinstance(module._parameters.get("bias"), nn.Parameter)
            ),
        )
