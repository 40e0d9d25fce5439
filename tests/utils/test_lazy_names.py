"""Packages that import their public names when these are first used."""

import importlib

import pytest

from docs.tools import stubs
from hf_any3d import registry
from tests.errors import raises
from tests.extensions import HAS_SURVEY


@pytest.mark.parametrize("name", stubs.PACKAGES)
def test_names_for_type_checkers_are_there_at_run_time(name):
    package = importlib.import_module(name)
    assert len(package.__all__) > 3 and set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        defined = getattr(package, public)
        if isinstance(defined, dict):  # a table
            continue
        assert getattr(defined, "__name__", public) == public
        assert getattr(importlib.import_module(defined.__module__), public, defined) is defined
    with raises(AttributeError, naming="no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("name", stubs.PACKAGES)
def test_type_checkers_read_the_same_names(name):
    if name == "hf_any3d" and not HAS_SURVEY:
        pytest.skip("names of survey/ are among them")
    assert stubs.path_of(name).read_text(encoding="utf-8") == stubs.stub(name), "run `python -m docs.tools.stubs`"


def test_folders_of_models_have_the_classes_of_their_records():
    for kind in registry.MODEL_TYPES.values():
        module = importlib.import_module(kind.package)
        assert {kind.config, *kind.models()} <= set(module.__all__)
