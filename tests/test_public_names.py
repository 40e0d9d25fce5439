"""Packages that import their public names when these are first used list the same names for type checkers."""

import ast
import importlib
from pathlib import Path

import pytest

PACKAGES = ("hf_any3d", "hf_any3d.conversions", "hf_any3d.data")


def names_for_type_checkers(package) -> dict[str, str]:
    """Name -> module below the package, of the imports under `if TYPE_CHECKING`."""
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    found = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname == alias.name, "type checkers take `x as x` for a public name"
            found[alias.name] = statement.module.removeprefix(f"{package.__name__}.")
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_see_the_names_that_are_there_at_run_time(name):
    package = importlib.import_module(name)
    assert names_for_type_checkers(package) == package._PUBLIC
    for public in package.__all__:
        assert getattr(package, public) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing
