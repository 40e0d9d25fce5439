"""The list of refusals follows the registration, and no test of the common suites leaves a class out silently."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.integration import registration
from tests.common import refusals
from tests.common.refusals import FEATURES, REFUSALS, registered_classes
from tests.common.tuners import METHODS
from tests.tiny_detr3d import ON_ENCODER

SUITES = sorted(Path(__file__).parent.glob("test_*.py"))
OF_PEFT = {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"}
TASK_TYPES = {"CAUSAL_LM"}


def list_again(monkeypatch) -> dict:
    """Return the refusals as another process would list them, after a change of the registration."""
    spec = importlib.util.spec_from_file_location("refusals_again", refusals.__file__)
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, again)
    spec.loader.exec_module(again)
    return {key: (refusal.match, refusal.reason) for key, refusal in again.REFUSALS.items()}


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_new_model_moves_no_refusal(place, monkeypatch):
    class NewConfig(PreTrainedConfig):
        model_type = "new"

    class NewModel(PreTrainedModel):
        main_input_name = "points"

    kept = list_again(monkeypatch)
    new, old = {NewConfig: (NewModel, {})}, registration.MODELS
    monkeypatch.setattr(registration, "MODELS", new | old if place == "first" else old | new)
    changed = list_again(monkeypatch)
    assert {key: value for key, value in changed.items() if "NewModel" not in key[1]} == kept
    assert ("resize_token_embeddings", "NewModel") in changed and ("no waiting", "NewModel") not in changed


def test_a_new_head_is_refused_what_its_family_is(monkeypatch):
    config = next(config for config in registration.MODELS if config.model_type == "point_transformer_v3")
    base, heads = registration.MODELS[config]
    new = type("PointTransformerV3ForNewTask", (base,), {})
    # A repeated key keeps its place: before the head, nothing after it moves.
    monkeypatch.setitem(registration.MODELS, config, (base, {PreTrainedModel: (new,)} | heads))
    changed, kept = list_again(monkeypatch), {key: (value.match, value.reason) for key, value in REFUSALS.items()}
    assert {key: value for key, value in changed.items() if new.__name__ not in key[1]} == kept
    for name in ("no waiting", "largest coordinates"):
        assert changed[name, new.__name__] == kept[name, base.__name__]


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
