"""Original checkpoints into directories that `from_pretrained` opens."""

from hf_any3d.converting.act import convert_act
from hf_any3d.converting.any2point import convert_any2point
from hf_any3d.converting.imagebind_audio import convert_imagebind_audio

__all__ = ["convert_act", "convert_any2point", "convert_imagebind_audio"]
