"""Write the public names of packages for type checkers: `python -m docs.tools.stubs`.

Packages that import their names when they are first used list them in a table, and names of models come from the
records of their folders. Type checkers run neither, and read `__init__.pyi`. The files are committed; a test compares
them with the tables.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

PACKAGES = (
    "hf_any3d",
    "hf_any3d.conversions",
    "hf_any3d.data",
    "hf_any3d.evaluation",
    "hf_any3d.many_files",
    "hf_any3d.modeling.act",
    "hf_any3d.processing",
    *(["hf_any3d_survey.local_features"] if importlib.util.find_spec("hf_any3d_survey") else []),
)
_WIDTH = 119


def modules_of(package: str) -> dict[str, str]:
    """Return the public names of a package with the modules that they are imported from."""
    imported = importlib.import_module(package)
    if package == "hf_any3d":
        return imported._PUBLIC
    return {name: f"{package}.{module}" for module, names in imported._MODULES.items() for name in names}


def stub(package: str) -> str:
    """Return the text of a package's `__init__.pyi`."""
    names_in: dict[str, list[str]] = {}
    for name, module in modules_of(package).items():
        names_in.setdefault(module, []).append(name)
    if package == "hf_any3d":
        names_in["hf_any3d.version"] = ["__version__"]
    lines = ['"""Public names for type checkers, written by `python -m docs.tools.stubs`."""', ""]
    # As parts of a name: `hf_any3d.version` is before `hf_any3d_survey`.
    for module in sorted(names_in, key=lambda name: name.split(".")):
        imported = [f"{name} as {name}" for name in sorted(names_in[module], key=_order)]
        line = f"from {module} import {', '.join(imported)}"
        if len(line) <= _WIDTH:
            lines.append(line)
        else:
            lines += [f"from {module} import (", *(f"    {name}," for name in imported), ")"]
    return "\n".join(lines) + "\n"


def path_of(package: str) -> Path:
    """Return the file of a package's stub."""
    return Path(importlib.import_module(package).__path__[0]) / "__init__.pyi"


def _order(name: str) -> tuple[int, str]:
    """Sort constants before classes before functions, as the import sorter does."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name.lower()


def main() -> None:
    """Write the stubs of all packages."""
    for package in PACKAGES:
        path_of(package).write_text(stub(package), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
