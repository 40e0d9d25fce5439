"""Public names of packages that import them when they are first used."""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def imported_on_use(package: str, file: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` of a package whose names are imported when they are first used."""
    modules = names_for_type_checkers(package, file)

    def getattr_(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    names = sorted(modules)
    return names, getattr_, lambda: names


def names_for_type_checkers(package: str, file: str) -> dict[str, str]:
    """Return the names that a package imports for type checkers, with their modules, so that they need no second list.

    Its block `if TYPE_CHECKING` has lines such as `from package.module import name as name`; lines with `import *` are
    left out.
    """
    # From the source, since imports for type checkers never run.
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    lines = [line for block in blocks for line in block.body if isinstance(line, ast.ImportFrom) and line.module]
    return {
        alias.asname: str(line.module).removeprefix(f"{package}.")
        for line in lines
        for alias in line.names
        if alias.asname is not None
    }
