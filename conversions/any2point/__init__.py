"""Any2Point's original checkpoints: the settings of each released program, and its tensors under our names."""

from hf_any3d.conversions.any2point.variants import VARIANTS, Variant, convert_state_dict, names_of

__all__ = ["VARIANTS", "Variant", "convert_state_dict", "names_of"]
