"""Processors, one file each: from a file or an array to what a model takes."""

from hf_any3d.modeling.lazy_names import names_on_use
from hf_any3d.registry import MODEL_TYPES as _MODEL_TYPES

_MODULES: dict[str, list[str]] = {}
for _kind in _MODEL_TYPES.values():
    _, _module, _name = _kind.processor.split(".")
    _MODULES[_module] = [_name]
__all__, __getattr__, __dir__ = names_on_use(__name__, _MODULES)
