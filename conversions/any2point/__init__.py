"""Original Any2Point checkpoints: what each released program was set to, and its tensors under our names."""

from hf_any3d.conversions.any2point.names import convert_state_dict, rename
from hf_any3d.conversions.any2point.variants import VARIANTS, Variant

__all__ = ["VARIANTS", "Variant", "convert_state_dict", "rename"]
