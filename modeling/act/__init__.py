"""ACT (arXiv 2212.08320): autoencoders as cross-modal teachers."""

from hf_any3d.modeling.act.configuration_act import ActConfig

__all__ = ["ActConfig"]
