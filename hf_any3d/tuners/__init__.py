"""PEFT methods for point clouds: one folder each, as in PEFT, registered at import."""

import peft as _peft  # noqa: F401  first: what waits for it imports modules of this folder in an order of its own

from hf_any3d.tuners.appt import APPTConfig
from hf_any3d.tuners.bitfit import BitFitConfig
from hf_any3d.tuners.dapt import DAPTConfig
from hf_any3d.tuners.guided_adapter import GuidedAdapterConfig
from hf_any3d.tuners.idpt import IDPTConfig
from hf_any3d.tuners.pointgst import PointGSTConfig
from hf_any3d.tuners.ppt import PPTConfig
from hf_any3d.tuners.prompt_tokens import PromptTokensConfig
from hf_any3d.tuners.side_tuning import SideTuningConfig
from hf_any3d.tuners.targets import encoder_linear_pattern, trainable_module_names

__all__ = [
    "APPTConfig",
    "BitFitConfig",
    "DAPTConfig",
    "GuidedAdapterConfig",
    "IDPTConfig",
    "PPTConfig",
    "PointGSTConfig",
    "PromptTokensConfig",
    "SideTuningConfig",
    "encoder_linear_pattern",
    "trainable_module_names",
]
