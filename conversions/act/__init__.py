"""ACT's original checkpoints: their kinds, tensors under our names, and the sizes that shapes imply."""

from hf_any3d.conversions.act.names import KINDS, Kind, convert_act_state_dict, teacher_of

__all__ = ["KINDS", "Kind", "convert_act_state_dict", "teacher_of"]
