"""PEFT methods for point clouds, in PEFT's own shape: one folder each, registered at import."""

from hf_any3d.tuners.guided_adapter import GuidedAdapterConfig, encoder_linear_pattern, trainable_module_names

__all__ = ["GuidedAdapterConfig", "encoder_linear_pattern", "trainable_module_names"]
