"""Public names of packages that import them when they are first used.

A package lists them by module, once. For type checkers, which run nothing, `python -m docs.tools.stubs` writes them
into its `__init__.pyi`.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def names_on_use(
    package: str, modules: Mapping[str, Iterable[str]], elsewhere: Mapping[str, Iterable[str]] | None = None
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` of a package with public names of the modules below it.

    `elsewhere` has modules of other packages by their full names.
    """
    module_of = {name: f"{package}.{module}" for module, names in modules.items() for name in names}
    for module, names in (elsewhere or {}).items():
        module_of |= dict.fromkeys(names, module)
    public = sorted(module_of)

    def getattr_(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module_of[name]), name)

    return public, getattr_, lambda: public
