"""Examples in the docstrings of models and processors run and give what they say."""

import ast
import inspect
import re

import pytest

from hf_any3d import processing
from hf_any3d.integration.registration import MODELS
from tests.common.refusals import registered_classes
from tests.doors.shown import same

_EXAMPLE = re.compile(r"Example:\n +```python\n(.*?)```", re.DOTALL)
CLASSES = [model for config in MODELS for model in registered_classes(config)]
CLASSES += [getattr(processing, name) for name in processing.__all__ if name.endswith("Processor")]
EXAMPLES = {model.__name__: found[1] for model in CLASSES if (found := _EXAMPLE.search(inspect.getdoc(model) or ""))}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_the_shape_that_it_says(name):
    text = inspect.cleandoc(EXAMPLES[name])
    *steps, last = ast.parse(text).body
    assert isinstance(last, ast.Expr)
    names = {}
    exec(compile(ast.Module(steps, []), name, "exec"), names)
    made = eval(compile(ast.Expression(last.value), name, "eval"), names)
    assert same(text.splitlines()[-1].partition("  # ")[2], str(made))


def test_heads_and_processors_have_an_example():
    wanted = {kind.__name__ for kind in CLASSES if re.search("For[A-Z]|Processor$", kind.__name__)}
    assert wanted - EXAMPLES.keys() == set()
