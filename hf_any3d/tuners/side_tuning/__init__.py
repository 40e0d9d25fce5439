"""Side-tuning, a PEFT method that trains a small network beside a frozen encoder."""

from peft.utils import register_peft_method

from hf_any3d.tuners.side_tuning.config import SideTuningConfig
from hf_any3d.tuners.side_tuning.layer import SideTuningLayer
from hf_any3d.tuners.side_tuning.model import SideTuningModel

__all__ = ["SideTuningConfig", "SideTuningLayer", "SideTuningModel"]

register_peft_method(name="side_tuning", config_cls=SideTuningConfig, model_cls=SideTuningModel)
