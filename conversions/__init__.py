"""Convert the checkpoints of the original programs into directories that `from_pretrained` opens.

Each system has a folder or file: tables that rename its tensors, the sizes that they imply, and `convert_…`, which
writes the directory. `checkpoints.py` reads untrusted files, `renaming.py` applies tables, `saving.py` writes.
"""

from __future__ import annotations

import importlib
from typing import Any

if __name__ == "conversions":
    raise ImportError("this package is installed as hf_any3d.conversions; import it by that name")

_PUBLIC = {
    "convert_act": "act.convert",
    "convert_any2point": "any2point.convert",
    "convert_imagebind_audio": "imagebind_audio",
    "convert_minigpt3d": "minigpt3d.convert",
    "convert_minigpt3d_parts": "minigpt3d.convert",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used: the tables alone need no model."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
