"""The list of refusals follows the registration, and no test of the common suites leaves a class out silently."""

import ast
from pathlib import Path

import pytest

from tests.common.refusals import FEATURES, REFUSALS, registered_classes
from tests.common.tuners import METHODS
from tests.tiny_detr3d import ON_ENCODER

SUITES = sorted(Path(__file__).parent.glob("test_*.py"))
OF_PEFT = {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"}
TASK_TYPES = {"CAUSAL_LM"}


def test_each_refusal_is_of_a_known_feature_and_subject():
    models = {model.__name__ for model in registered_classes()} | {ON_ENCODER.name}
    known, features = {*models, *METHODS, *OF_PEFT, *TASK_TYPES}, FEATURES.keys() | _features_of_suites()
    # What generation refuses is refused whatever the model.
    known |= {"a language model without the placeholder", "use_cache=False"}
    for name, subject in REFUSALS:
        assert name in features, name
        assert set(subject.split(" on ")) <= known, subject


def _features_of_suites() -> set[str]:
    """Return the features that files of tests register, which need not have been imported."""
    calls = [node for file in SUITES for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    calls = [node for node in calls if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "feature"]
    return {ast.literal_eval(call.args[0]) for call in calls}


@pytest.mark.parametrize("file", SUITES, ids=lambda file: file.stem)
def test_tests_end_early_only_after_a_refusal(file):
    parents = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        parents |= {child: node for child in ast.iter_child_nodes(node)}
    for node in parents:
        if isinstance(node, ast.Return) and node.value is None:
            test = parents[node].test if isinstance(parents[node], ast.If) else ast.Constant("no condition")
            assert ast.unparse(test) == "not is_supported", f"line {node.lineno}: return if {ast.unparse(test)}"
