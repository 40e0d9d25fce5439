"""The point transformer and all models with a head on it."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel

from hf_any3d import AutoModelForPointCloudClassification, AutoModelForPointCloudSegmentation
from hf_any3d.modeling.act import (
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForSemanticSegmentation,
    ActModel,
)
from tests.tiny_act import SMALL, clouds, tiny_act

HEADS = {
    ActForPointCloudClassification: AutoModelForPointCloudClassification,
    ActForSemanticSegmentation: AutoModelForPointCloudSegmentation,
    ActForPartSegmentation: AutoModelForPointCloudSegmentation,
}


def inputs_of(model_class: type, batch: int = 2, channels: int = 3) -> dict[str, torch.Tensor]:
    inputs = {"points": clouds(batch, channels=channels)}
    if model_class is ActForPointCloudClassification:
        inputs["labels"] = torch.arange(batch) % 3
    elif model_class is not ActModel:
        inputs["labels"] = torch.arange(60).expand(batch, -1) % 3
    if model_class is ActForPartSegmentation:
        inputs["category"] = torch.arange(batch) % 2
    return inputs


def answer(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = model(**inputs)
    return output.logits if "logits" in output else output.last_hidden_state


def test_output_has_the_position_of_every_token():
    model, points = tiny_act(ActModel), clouds()
    output = model(points)
    assert output.last_hidden_state.shape == (2, 13, 24) and output.pooler_output.shape == (2, 48)
    for cloud in range(2):
        assert torch.equal(output.centers[cloud], points[cloud, output.center_index[cloud]])
    hidden_states = output.last_hidden_state
    pooled = torch.cat([hidden_states[:, 0], hidden_states[:, 1:].amax(dim=1)], dim=1)
    assert torch.equal(output.pooler_output, pooled) and output.layer_outputs is None


def test_last_layer_output_is_the_input_of_the_final_norm():
    model = tiny_act(ActModel)
    output = model(clouds(), output_layers=(2,))
    assert torch.equal(model.norm(output.layer_outputs[0]), output.last_hidden_state)


def test_a_model_without_class_token_pools_points_only():
    output = tiny_act(ActModel, use_class_token=False)(clouds())
    assert output.last_hidden_state.shape == (2, 12, 24)
    assert torch.equal(output.pooler_output, output.last_hidden_state.amax(dim=1))


@pytest.mark.parametrize("model_class", [ActModel, *HEADS])
def test_a_saved_model_predicts_the_same_through_its_auto_class(tmp_path, model_class):
    model = tiny_act(model_class)
    model.save_pretrained(tmp_path)
    auto = HEADS.get(model_class, AutoModel)
    again, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is model_class and not again.training
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(answer(again, **inputs_of(model_class)), answer(model, **inputs_of(model_class)))
    assert AutoConfig.from_pretrained(tmp_path).model_type == "act3d"


@pytest.mark.parametrize("model_class", [ActModel, *HEADS])
def test_predictions_do_not_depend_on_the_other_clouds_of_a_batch(model_class):
    model, inputs = tiny_act(model_class), inputs_of(model_class, 3)
    together = answer(model, **inputs)
    for cloud in range(3):
        alone = answer(model, **{name: values[cloud : cloud + 1] for name, values in inputs.items()})
        torch.testing.assert_close(alone, together[cloud : cloud + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_class", HEADS)
def test_checkpointing_gives_the_same_gradients(model_class):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_act(model_class, head_dropout=0.0, segmentation_head_dropout=(0.0, 0.0)).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.act.blocks.layers[0].gradient_checkpointing
        torch.manual_seed(1)  # of drop path
        model(**inputs_of(model_class)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    plain, checkpointed = gradients
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


@pytest.mark.parametrize("model_class", HEADS)
def test_every_parameter_gets_a_gradient(model_class):
    model = tiny_act(model_class, drop_path_rate=0.0).train()
    model(**inputs_of(model_class)).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("model_class", HEADS)
def test_half_precision_predictions_are_close(model_class):
    inputs = inputs_of(model_class)
    full, half = tiny_act(model_class), tiny_act(model_class).bfloat16()
    expected, found = answer(full, **inputs), answer(half, **inputs)
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(expected.flatten(), found.float().flatten(), dim=0) > 0.97
    half.train()(**inputs).loss.backward()


@pytest.mark.parametrize("model_class", HEADS)
def test_eager_attention_matches_sdpa(model_class):
    model, inputs = tiny_act(model_class), inputs_of(model_class)
    expected = answer(model, **inputs)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(answer(model, **inputs), expected, rtol=1e-4, atol=1e-4)


def test_colors_affect_predictions():
    model = tiny_act(ActForPointCloudClassification, in_channels=6)
    points = clouds(channels=6)
    other = torch.cat([points[..., :3], points[..., 3:].flip(2)], dim=-1)
    assert model(points).logits.shape == (2, 3)
    assert not torch.allclose(model(points).logits, model(other).logits)


@pytest.mark.parametrize(
    ("points", "message"),
    [(torch.zeros(2, 60, 4), r"expected \(batch, points, 3\)"), (torch.zeros(2, 9, 3), "at least 12 points")],
)
def test_points_of_another_shape_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        tiny_act(ActModel)(points)


def test_a_pretrained_student_leaves_only_the_heads_to_be_initialized(tmp_path):
    """A pretraining checkpoint has the student under `act.`, and weights of pretraining only."""

    class Pretraining(ActForPointCloudClassification):
        def __init__(self, config):
            super().__init__(config)
            self.classifier, self.mask_token = None, nn.Parameter(torch.zeros(24))

    pretrained = tiny_act(Pretraining)
    pretrained.save_pretrained(tmp_path)
    student = pretrained.act.state_dict()
    for model_class in (ActModel, *HEADS):
        settings = {"num_labels": 5, "category_parts": [[0, 1], [2, 3, 4]]}
        model, report = model_class.from_pretrained(tmp_path, output_loading_info=True, **settings)
        assert not [name for name in report["missing_keys"] if name.startswith("act.")]
        assert bool(report["missing_keys"]) == (model_class is not ActModel)
        own = (model if model_class is ActModel else model.act).state_dict()
        assert own.keys() - student.keys() == set()
        assert all(torch.equal(tensor, student[name]) for name, tensor in own.items())
        assert ("class_token.token" in own) == (model_class in (ActModel, ActForPointCloudClassification))


def test_initial_weights_are_as_in_the_released_programs():
    torch.manual_seed(0)
    model = ActForPointCloudClassification(ActConfig(**(SMALL | {"hidden_size": 192, "head_widths": (256,)})))
    weight = model.act.blocks.layers[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05) and not model.act.blocks.layers[0].mlp.fc1.bias.any()
    assert model.act.class_token.token.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.classifier.hidden[0].weight.abs().max().item() == pytest.approx(384**-0.5, rel=1e-2)
    torch.manual_seed(0)
    segmenter = ActForSemanticSegmentation(ActConfig(**(SMALL | {"propagation_widths": (256, 256)})))
    assert segmenter.propagation.out.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not segmenter.segmenter.from_points.bias.any()


def test_a_segmenter_does_not_change_its_config_argument():
    config = ActConfig(**SMALL)
    assert ActForSemanticSegmentation(config).config.use_class_token is False
    assert config.use_class_token is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"category_parts": [[0], [7]], "category_names": None}, "category_parts names part 7"),
        ({"category_parts": None, "category_names": None}, "category_parts=None"),
    ],
)
def test_invalid_segmentation_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_act(ActForPartSegmentation, **settings)


def test_lora_reaches_every_linear_layer_of_the_blocks(tmp_path):
    model = tiny_act(ActForPointCloudClassification)
    names = ["qkv", "proj", "fc1", "fc2"]
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=names, modules_to_save=["classifier"], init_lora_weights=False)
    )
    assert sum(name.endswith("lora_A.default.weight") for name, _ in adapted.named_parameters()) == 4 * 3
    expected = answer(adapted.eval(), points=clouds())
    adapted.save_pretrained(tmp_path)
    from peft import PeftModel

    again = PeftModel.from_pretrained(tiny_act(ActForPointCloudClassification), tmp_path).eval()
    assert torch.equal(answer(again, points=clouds()), expected)
