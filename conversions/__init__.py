"""Convert the checkpoints of the original programs into directories that `from_pretrained` opens.

Each system has a folder or file of its own: tables that rename its tensors, the sizes that their shapes imply, and
`convert_…`, which writes the directory. `checkpoints.py` reads untrusted files, `renaming.py` applies tables,
and `saving.py` writes and describes the result. A new system is one such folder; the record of its model, `about.py`
in `modeling/`, names its functions and the marks by which `hf-any3d convert` recognizes its files.
"""

if __name__ == "conversions":
    raise ImportError("this package is installed as hf_any3d.conversions; import it by that name")

from hf_any3d.modeling.lazy_names import names_on_use
from hf_any3d.registry import RECORDS as _RECORDS, is_own as _is_own

_MODULES: dict[str, list[str]] = {}
_OF_EXTENSIONS: dict[str, list[str]] = {}
for _package, _record in _RECORDS.items():
    for _name, _converter in _record.converters.items():
        _table = _MODULES if _is_own(_package) else _OF_EXTENSIONS
        _table.setdefault(_converter.module, []).append(_name)
__all__, __getattr__, __dir__ = names_on_use(__name__, _MODULES, _OF_EXTENSIONS)
