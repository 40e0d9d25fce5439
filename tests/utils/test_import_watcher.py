import importlib
import importlib.util
import sys

import pytest

from hf_any3d.utils.import_watcher import when_imported


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that nobody has imported yet."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "late_example.py").write_text("VALUE = 3\n")
    before = list(sys.meta_path)
    yield "late_example"
    sys.modules.pop("late_example", None)
    sys.meta_path[:] = before


def test_the_call_comes_once_right_after_the_module_has_run(module):
    seen, finders = [], list(sys.meta_path)
    when_imported(module, lambda: seen.append(sys.modules[module].VALUE))
    assert seen == [] and module not in sys.modules
    importlib.import_module(module)
    assert seen == [3] and sys.meta_path == finders
    importlib.reload(sys.modules[module])
    assert seen == [3]


def test_a_module_that_is_there_already_is_not_waited_for(module):
    importlib.import_module(module)
    seen = []
    when_imported(module, lambda: seen.append(1))
    assert seen == [1]


def test_a_module_that_fails_is_waited_for_until_it_works(module, tmp_path):
    seen = []
    when_imported(module, lambda: seen.append(1))
    (tmp_path / "late_example.py").write_text("raise RuntimeError\n")
    importlib.invalidate_caches()
    with pytest.raises(RuntimeError):
        importlib.import_module(module)
    (tmp_path / "late_example.py").write_text("VALUE = 'repaired at last'\n")
    importlib.invalidate_caches()
    importlib.import_module(module)
    assert seen == [1]
