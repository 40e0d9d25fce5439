"""Packages that import their public names when these are first used."""

import ast
import importlib
from pathlib import Path

import pytest

from hf_any3d import registry
from tests.errors import raises

PACKAGES = ("hf_any3d", "hf_any3d.conversions", "hf_any3d.data", "hf_any3d.many_files", "hf_any3d.processing")


@pytest.mark.parametrize("name", PACKAGES)
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


def test_type_checkers_see_the_classes_of_every_model_type():
    package = importlib.import_module("hf_any3d")
    lines = ast.walk(ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8")))
    starred = {line.module for line in lines if isinstance(line, ast.ImportFrom) and line.names[0].name == "*"}
    packages = {kind.package for kind in registry.MODEL_TYPES.values()}
    assert starred == {f"hf_any3d.modeling.{name}" for name in packages}
    for kind in registry.MODEL_TYPES.values():
        module = importlib.import_module(f"hf_any3d.modeling.{kind.package}")
        assert {kind.config, *kind.models()} <= set(module.__all__)
