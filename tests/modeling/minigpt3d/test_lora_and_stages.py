"""LoRA inside MiniGPT-3D, and which parameters each of its stages trains, by name."""

import re

import pytest
import torch
from torch import nn

from hf_any3d.modeling.minigpt3d import (
    MiniGPT3DForConditionalGeneration,
    load_stage_tensors,
    merge_lora,
    names_in,
    set_stage,
    stage_names,
    trained_names,
    weight_decay_groups,
)
from hf_any3d.modeling.minigpt3d.lora import leave_unquantized, reset_lora
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


def test_matrices_decay_and_vectors_do_not():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model[2].requires_grad_(False)
    first, second = weight_decay_groups(model)
    assert first["params"][0] is model[0].weight and len(first["params"]) == 1 and first["weight_decay"] == 0.05
    assert [id(p) for p in second["params"]] == [id(p) for p in (model[0].bias, model[1].weight, model[1].bias)]
    assert second["weight_decay"] == 0.0
    assert [group["weight_decay"] for group in weight_decay_groups(model, 0.2)] == [0.2, 0.0]


def test_nothing_is_loaded_of_a_stage_that_does_not_fit():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = {name: model.base_model.get_parameter(name).detach() + 1 for name in stage_names(model, 1)}
    kept.popitem()
    with pytest.raises(ValueError, match="is missing$"):
        load_stage_tensors(model, 1, kept)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_lora_is_reset_to_have_no_effect():
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    for parameter in model.parameters():
        parameter._is_hf_initialized = False
    torch.manual_seed(0)
    reset_lora(model)
    changed = {name for name, parameter in model.named_parameters() if not (parameter == 7).all()}
    assert changed == {name for name, _ in model.named_parameters() if ".lora_" in name}
    for name, parameter in model.named_parameters():
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


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning", "ignore:torch.quantize_per:UserWarning")
def test_matrices_of_lora_are_left_unquantized():
    model = tiny_model()
    kept = {path for path, layer in model.named_modules() if "qconfig" in vars(layer)}
    assert kept and all(path.endswith((".lora_A.default", ".lora_B.default")) for path in kept)
    assert kept == {path for path, _ in model.named_modules() if path.endswith((".lora_A.default", ".lora_B.default"))}
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    kinds = {type(quantized.get_submodule(path)) for path in kept}
    assert kinds == {nn.Linear}
    with raises(ValueError, naming="LoRA"):
        merge_lora(quantized)
    plain = nn.Sequential(nn.Linear(2, 2))
    leave_unquantized(plain)
    assert "qconfig" not in vars(plain[0])


def test_merged_lora_refuses_weights_that_are_not_finite():
    model = tiny_model()
    next(p for name, p in model.named_parameters() if ".lora_B." in name).data.fill_(torch.nan)
    with raises(ValueError, naming="NaNs"):
        merge_lora(model)


def test_arguments_of_lora_reach_its_layers():
    model: MiniGPT3DForConditionalGeneration = tiny_model(
        text_lora={"r": 3, "lora_alpha": 6, "target_modules": ["fc1"]},
        qformer_lora={"r": 5, "lora_alpha": 1, "target_modules": ["value"], "lora_dropout": 0.4},
    )
    found = {
        name.rpartition(".lora_A.default")[0]: module.weight.shape[0]
        for name, module in model.base_model.named_modules()
        if name.endswith(".lora_A.default")
    }
    assert {(name.rpartition(".")[2], rank) for name, rank in found.items()} == {("fc1", 3), ("value", 5)}
    assert all(name.startswith("language_model." if rank == 3 else "bridge.qformer.") for name, rank in found.items())
    # Nothing else of the point encoder trains.
    assert not any(parameter.requires_grad for parameter in model.point_encoder.parameters())
