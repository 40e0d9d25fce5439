"""Side-tuning, a PEFT method that trains a small network beside a frozen encoder."""

from hf_any3d.tuners.side_tuning.config import SideTuningConfig
from hf_any3d.tuners.side_tuning.layer import SideTuningLayer
from hf_any3d.tuners.side_tuning.model import SideTuningModel
from hf_any3d.tuners.tuners_utils import register_method

__all__ = ["SideTuningConfig", "SideTuningLayer", "SideTuningModel"]

register_method(SideTuningConfig, SideTuningModel)
