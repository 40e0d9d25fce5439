"""Tuner of PointGST."""

from torch import nn

from hf_any3d.tuners.pointgst.config import PointGSTConfig
from hf_any3d.tuners.pointgst.layer import PointGSTLayer
from hf_any3d.tuners.targets import check_token_graphs, layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner


class PointGSTModel(EncoderTuner):
    """Tuner that `get_peft_model(model, PointGSTConfig())` creates."""

    prefix = "pointgst_"
    tuner_layer_cls = PointGSTLayer

    def default_targets(self, peft_config: PointGSTConfig) -> str:
        """Return a regular expression of the layers."""
        check_token_graphs(self.model, "PointGST")
        return super().default_targets(peft_config)

    def wrap(self, target: nn.Module) -> PointGSTLayer:
        """Wrap a frozen layer in one with adapters."""
        check_token_graphs(self.model, "PointGST")
        stack = layer_stack(self.model)
        return PointGSTLayer(target, stack.stage_of(target).width, stack.is_open)
