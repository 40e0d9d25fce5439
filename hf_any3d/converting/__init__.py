"""Original checkpoints into directories that `from_pretrained` opens."""

from hf_any3d.converting.act import convert_act
from hf_any3d.converting.any2point import convert_any2point
from hf_any3d.converting.imagebind_audio import convert_imagebind_audio
from hf_any3d.converting.minigpt3d import convert_minigpt3d, convert_minigpt3d_parts

__all__ = [
    "convert_act",
    "convert_any2point",
    "convert_imagebind_audio",
    "convert_minigpt3d",
    "convert_minigpt3d_parts",
]
