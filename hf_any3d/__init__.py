"""3D point clouds in the Hugging Face ecosystem."""

from pathlib import Path as _Path

_root = _Path(__file__).resolve().parents[1]
if (_root / "setup.cfg").is_file() and (_root / "modeling" / "__init__.py").is_file():
    # A source checkout: modeling/ and conversions/ stand beside this folder, not inside it.
    __path__.append(str(_root))
