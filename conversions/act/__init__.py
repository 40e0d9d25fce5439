"""Original ACT checkpoints under our names."""

from hf_any3d.conversions.act.student import convert_student, rename_student

__all__ = ["convert_student", "rename_student"]
