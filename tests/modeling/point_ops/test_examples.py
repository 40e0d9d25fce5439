"""Examples in the docstrings of point operations: each public function has one, and it prints what it says."""

import doctest
import inspect

import pytest
import torch

from hf_any3d.modeling import point_ops

FUNCTIONS = [name for name in point_ops.__all__ if inspect.isfunction(getattr(point_ops, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_example_prints_what_it_says(name):
    public = {"torch": torch} | {other: getattr(point_ops, other) for other in point_ops.__all__}
    function = inspect.unwrap(getattr(point_ops, name))
    parsed = doctest.DocTestParser().get_doctest(function.__doc__ or "", public, name, None, None)
    assert parsed.examples, "no example"
    assert doctest.DocTestRunner().run(parsed).failed == 0
