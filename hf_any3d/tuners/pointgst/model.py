"""Tuner of PointGST."""

from hf_any3d.tuners.pointgst.layer import PointGSTLayer
from hf_any3d.tuners.tuners_utils import EncoderTuner


class PointGSTModel(EncoderTuner):
    """Tuner that `get_peft_model(model, PointGSTConfig())` creates."""

    prefix = "pointgst_"
    tuner_layer_cls = PointGSTLayer
    needs_positions = True
    # Graphs of all tokens of a cloud, of which there are thousands where patches of them attend.
    attention_axes = ("tokens", "batch")
