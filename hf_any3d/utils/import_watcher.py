"""Call a function as soon as a module of another library is imported, which may never happen."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(name: str, call: Callable[[], None]) -> None:
    """Call a function as soon as a module is imported: now if it is, otherwise right after its code has run.

    The packages that hold the module may still be incomplete at that time.
    """
    if name in sys.modules:
        call()
    elif (name, call) not in [(some.name, some.call) for some in sys.meta_path if isinstance(some, _ImportWatcher)]:
        # Before all other finders, which would find the module without the call.
        sys.meta_path.insert(0, _ImportWatcher(name, call))


class _ImportWatcher(MetaPathFinder):
    """Find one module as the other finders do, and add a call to the end of its loading."""

    def __init__(self, name: str, call: Callable[[], None]):
        self.name = name
        self.call = call
        self.is_searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self.is_searching:
            return None
        # `find_spec` asks all finders again, this one included.
        self.is_searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.is_searching = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_call(module: ModuleType) -> None:
            load(module)
            if self in sys.meta_path:  # once, even when the module is loaded again
                sys.meta_path.remove(self)
                self.call()

        spec.loader.exec_module = load_and_call
        return spec
