"""Doing something about a module once somebody imports it, without importing it."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(name: str, then: Callable[[], None]) -> None:
    """Call `then` as soon as a module is imported: now if it is, else right after its code has run.

    Args:
        name: the full name of the module.
        then: what to do; at that time the packages that hold the module may not be complete.
    """
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Watcher(name, then))


class _Watcher(MetaPathFinder):
    """Finds one module as the other finders do, and adds a call to the end of its loading."""

    def __init__(self, name: str, then: Callable[[], None]):
        self.name, self.then, self.is_looking = name, then, False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self.is_looking:
            return None
        self.is_looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.is_looking = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_call(module: ModuleType) -> None:
            load(module)
            if self in sys.meta_path:  # once, even when the module is loaded again
                sys.meta_path.remove(self)
                self.then()

        spec.loader.exec_module = load_and_call
        return spec
