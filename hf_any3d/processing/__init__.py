"""Processors, one file each: from a file or an array to what a model takes."""

from hf_any3d.modeling.lazy_names import names_on_use
from hf_any3d.registry import MODEL_TYPES as _MODEL_TYPES

_MODULES: dict[str, list[str]] = {}
for _kind in _MODEL_TYPES.values():
    _package, _, _name = _kind.processor.rpartition(".")
    # Those of extensions are in packages of their own.
    if _package.startswith(f"{__name__}."):
        _MODULES[_package.removeprefix(f"{__name__}.")] = [_name]
__all__, __getattr__, __dir__ = names_on_use(__name__, _MODULES)
