"""Names of modules in earlier versions: in settings of adapters, and in states."""

import pytest
import torch
from peft import LoraConfig

from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForPointCloudClassification
from tests.tiny_ptv3 import tiny_ptv3

HEAD = PointTransformerV3ForPointCloudClassification
FIRST = "point_transformer_v3.blocks.0.mlp.fc1"


@pytest.fixture(scope="module")
def model():
    return tiny_ptv3(HEAD)


def test_beginnings_of_names_are_exchanged():
    for before, now in (
        ("encoder", "point_transformer_v3"),
        ("encoder.blocks.0", "point_transformer_v3.blocks.0"),
        ("encoders.blocks", "encoders.blocks"),
        ("classifier.encoder", "classifier.encoder"),
    ):
        assert HEAD.todays_name(before) == now and HEAD.earlier_name(now) == before
    assert HEAD.todays_name("point_transformer_v3.blocks") == "point_transformer_v3.blocks"
    assert HEAD.renamings() == {r"^encoder\.": "point_transformer_v3."}


def test_lists_and_patterns_of_an_adapter_get_todays_names(model):
    config = LoraConfig(
        target_modules=["encoder.blocks.0.mlp.fc1", "proj", "encoder"],
        exclude_modules=["encoder.poolings"],
        modules_to_save=["classifier", "encoder.embeddings"],
        rank_pattern={"encoder.blocks.0.mlp.fc1": 3, "proj": 2},
        alpha_pattern={"encoder.blocks.1": 5},
    )
    model.use_todays_names(config)
    assert config.target_modules == {FIRST, "proj", "point_transformer_v3"}
    assert config.exclude_modules == {"point_transformer_v3.poolings"}
    assert config.modules_to_save == ["classifier", "point_transformer_v3.embeddings"]
    assert config.rank_pattern == {FIRST: 3, "proj": 2}
    assert config.alpha_pattern == {"point_transformer_v3.blocks.1": 5}
    empty = LoraConfig()
    model.use_todays_names(empty)
    assert empty.target_modules is None and empty.modules_to_save is None and empty.rank_pattern == {}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (r"encoder\.blocks\.[01]\.mlp\.fc1", {FIRST, FIRST.replace(".0.", ".1.")}),
        (r"encoder\.blocks\.0\.mlp\.fc1|classifier\.out", {FIRST, "classifier.out"}),
        # What matches names of today is left as it is.
        (r".*\.fc1", r".*\.fc1"),
        (r"point_transformer_v3\.blocks\.0\.mlp\.fc1", r"point_transformer_v3\.blocks\.0\.mlp\.fc1"),
        ("all-linear", "all-linear"),
        ("All-Linear", "All-Linear"),
    ],
)
def test_expressions_that_matched_earlier_names_become_lists(given, expected, model):
    config = LoraConfig(target_modules=given)
    model.use_todays_names(config)
    assert config.target_modules == expected


def test_states_of_earlier_versions_are_loaded(model):
    state = {HEAD.earlier_name(name): tensor + 1 for name, tensor in model.state_dict().items()}
    assert sum(name.startswith("encoder.") for name in state) > 10
    other = tiny_ptv3(HEAD)
    report = other.load_state_dict(dict(state))
    assert not report.missing_keys and not report.unexpected_keys
    assert all(torch.equal(tensor, state[HEAD.earlier_name(name)]) for name, tensor in other.state_dict().items())
    # Inside another module.
    outer = torch.nn.ModuleDict({"encoder": tiny_ptv3(HEAD)})
    outer.load_state_dict({f"encoder.{name}": tensor for name, tensor in state.items()})
    assert torch.equal(outer["encoder"].classifier.out.weight, other.classifier.out.weight)
