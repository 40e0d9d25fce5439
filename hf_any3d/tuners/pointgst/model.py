"""Tuner of PointGST."""

from torch import nn

from hf_any3d.tuners.pointgst.layer import PointGSTLayer
from hf_any3d.tuners.targets import layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner


class PointGSTModel(EncoderTuner):
    """Tuner that `get_peft_model(model, PointGSTConfig())` creates."""

    prefix = "pointgst_"
    tuner_layer_cls = PointGSTLayer
    mixes_tokens = True
    needs_positions = True
    # Graphs of all tokens of a cloud, of which there are thousands where patches of them attend.
    attention_axes = ("tokens", "batch")

    def wrap(self, target: nn.Module) -> PointGSTLayer:
        """Wrap a frozen layer in one with adapters."""
        stack = layer_stack(self.model)
        return PointGSTLayer(target, stack.stage_of(target).width, stack.is_open)
