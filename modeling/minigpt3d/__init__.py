"""MiniGPT-3D (arXiv 2405.01413): a language model that reads a point cloud as a few tokens."""

from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import MiniGPT3DConfig
from hf_any3d.modeling.minigpt3d.configuration_normed_phi import NormedPhiConfig
from hf_any3d.modeling.minigpt3d.lora import merge_lora, names_in
from hf_any3d.modeling.minigpt3d.modeling_minigpt3d import (
    MiniGPT3DForConditionalGeneration,
    MiniGPT3DModel,
    MiniGPT3DModelOutput,
    MiniGPT3DOutput,
    MiniGPT3DPreTrainedModel,
    build_from_parts,
)
from hf_any3d.modeling.minigpt3d.modeling_normed_phi import NormedPhiForCausalLM, NormedPhiModel
from hf_any3d.modeling.minigpt3d.qformer import Bridge
from hf_any3d.modeling.minigpt3d.stages import STAGES, set_stage, stage_names, trained_names

__all__ = [
    "STAGES",
    "Bridge",
    "MiniGPT3DConfig",
    "MiniGPT3DForConditionalGeneration",
    "MiniGPT3DModel",
    "MiniGPT3DModelOutput",
    "MiniGPT3DOutput",
    "MiniGPT3DPreTrainedModel",
    "NormedPhiConfig",
    "NormedPhiForCausalLM",
    "NormedPhiModel",
    "build_from_parts",
    "merge_lora",
    "names_in",
    "set_stage",
    "stage_names",
    "trained_names",
]
