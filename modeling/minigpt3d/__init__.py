"""MiniGPT-3D (arXiv 2405.01413): a point cloud becomes a few tokens that a language model reads."""

from hf_any3d.modeling.minigpt3d.bridge import Bridge
from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import MiniGPT3DConfig
from hf_any3d.modeling.minigpt3d.configuration_normed_phi import NormedPhiConfig
from hf_any3d.modeling.minigpt3d.modeling_normed_phi import NormedPhiForCausalLM, NormedPhiModel

__all__ = ["Bridge", "MiniGPT3DConfig", "NormedPhiConfig", "NormedPhiForCausalLM", "NormedPhiModel"]
