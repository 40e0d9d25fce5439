"""LoRA inside MiniGPT-3D, and which parameters each of its stages trains, by name."""

import re

import pytest
import torch

from hf_any3d.modeling.minigpt3d import (
    merge_lora,
    names_in,
    set_stage,
    stage_names,
    trained_names,
)
from tests.errors import raises
from tests.modeling.minigpt3d.tiny_model import tiny_model


def names_of(model, *patterns: str) -> set[str]:
    """The names of the parameters of a model's body that match one of some expressions."""
    return {name for name, _ in model.base_model.named_parameters() if any(re.fullmatch(p, name) for p in patterns)}


def test_every_stage_trains_its_parameters():
    model = tiny_model()
    mlp, experts = r"bridge\.point_mlp\..*", r"bridge\.experts\..*"
    both = [
        mlp,
        r"bridge\.experts\.queries\.0",
        r"bridge\.projector\..*",
        r"(bridge\.qformer\.encoder|language_model)\..*\.lora_[AB]\.default\.weight",
        r"bridge\.qformer\.encoder\..*LayerNorm\.weight",
        r"language_model\..*layernorm\.weight",
    ]
    wanted = {1: [mlp], 2: both, 3: both, 4: [experts]}
    for stage, patterns in wanted.items():
        expected = names_of(model, *patterns)
        found = stage_names(model, stage)
        assert set(found) == expected and len(found) == len(expected) > 3
        assert set_stage(model, stage) == found and model.config.stage == stage
        trained = {name for name, p in model.base_model.named_parameters() if p.requires_grad}
        assert trained == expected and model.config.use_query_experts is (stage == 4)
        before = [pattern for number in range(1, stage + 1) for pattern in wanted[number]]
        assert set(trained_names(model)) == names_of(model, *before)
    model.config.stage = None
    assert trained_names(model) == []
    # Without LoRA, such as after merging, stages 2 and 3 train nothing that is known.
    model.config.stage, model.config.text_lora = 4, None
    assert set(trained_names(model)) == names_of(model, mlp, experts)
    with raises(ValueError, naming="text_lora"):
        stage_names(model, 2)
    for wrong in (0, 5, "2"):
        with pytest.raises(ValueError, match=f"^stage={wrong!r}; expected one of 1, 2, 3, 4$"):
            stage_names(model, wrong)


def test_lora_of_a_new_model_has_no_effect():
    for name, parameter in tiny_model().named_parameters():
        if ".lora_A." in name:
            bound = parameter.shape[1] ** -0.5  # that of a new linear layer
            assert 0.7 * bound < parameter.abs().max() <= bound, name
        elif ".lora_B." in name:
            assert not parameter.any(), name


def test_names_beside_lora_are_found_in_any_model():
    model = tiny_model()
    inside = "bridge.qformer.encoder.layer.0.attention.attention.query.weight"
    wrapped = "minigpt3d.bridge.qformer.encoder.layer.0.attention.attention.query.base_layer.weight"
    norm = "minigpt3d.bridge.qformer.layernorm.weight"
    found = names_in(model, [f"minigpt3d.{inside}", inside, norm, wrapped, "unknown.weight"])
    assert found == {
        f"minigpt3d.{inside}": wrapped,
        inside: wrapped,  # of the model's body, and of earlier versions
        norm: norm,
        wrapped: wrapped,
        "unknown.weight": "unknown.weight",
    }
    assert names_in(model.minigpt3d, [inside]) == {inside: wrapped.removeprefix("minigpt3d.")}
    plain = tiny_model(text_lora=None, qformer_lora=None)
    assert names_in(plain, [f"minigpt3d.{inside}"]) == {f"minigpt3d.{inside}": f"minigpt3d.{inside}"}


def test_merged_lora_refuses_weights_that_are_not_finite():
    model = tiny_model()
    next(p for name, p in model.named_parameters() if ".lora_B." in name).data.fill_(torch.nan)
    with raises(ValueError, naming="NaNs"):
        merge_lora(model)
