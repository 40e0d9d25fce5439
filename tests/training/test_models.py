"""PEFT methods by name, their default target modules, and dropout of frozen attention."""

import re
from functools import partial

import pytest
import torch
from peft import get_peft_model
from torch import nn

from hf_any3d.modeling.act import ActConfig, ActForPointCloudClassification
from hf_any3d.modeling.patchalign3d import PatchAlign3DForPointCloudClassification
from hf_any3d.training.arguments import AdapterArguments
from hf_any3d.training.models import CLASSES, PointModelArguments, build_model, drop_attention
from hf_any3d.training.peft_methods import build_peft_config
from hf_any3d.tuners import GuidedAdapterConfig
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_aligned import tiny_aligned
from tests.tiny_encoders import LAYERS, clouds, saved_encoder, tiny_model


def without_other_noise(model: nn.Module) -> nn.Module:
    """Set train mode without randomness other than in the frozen attention."""
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "encoder" not in name or "guided_adapter" in name:
            module.eval()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["dinov2", "imagebind_audio", "clip_text_model", "bert"])
def test_frozen_attention_has_dropout_only_in_training(encoder):
    points = clouds(4)
    still = without_other_noise(tiny_model(encoder, head_dropout=0.0))
    torch.testing.assert_close(still(points).logits, still(points).logits)

    model = tiny_model(encoder, head_dropout=0.0)
    expected = model.eval()(points).logits
    assert drop_attention(model, 0.5) == LAYERS
    model = without_other_noise(get_peft_model(model, GuidedAdapterConfig()))
    assert not torch.allclose(model(points=points).logits, model(points=points).logits, atol=1e-5)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "q_proj" in n or "query" in n)
    with model.disable_adapter():
        torch.testing.assert_close(model.eval()(points=points).logits, expected)


@pytest.mark.slow
def test_half_precision_is_for_frozen_weights_and_models_around_an_encoder():
    source = saved_encoder("bert")
    half = PointModelArguments(
        encoder_name_or_path=source, encoder_dtype="bfloat16", num_tokens=8, tokenizer_neighbors=4
    )
    build = partial(build_model, CLASSES, half, labels=["a", "b"])
    adapted = build(adapter=AdapterArguments(peft="lora"))
    assert adapted.config.encoder_dtype == "bfloat16"
    assert {weight.dtype for weight in adapted.parameters() if weight.requires_grad} == {torch.float32}
    with raises(ValueError, naming="--encoder_dtype"):
        build(adapter=AdapterArguments(peft="ln_tuning"))
    with raises(ValueError, naming="encoder_dtype"):
        build(adapter=AdapterArguments(peft="full"))
    with raises(ValueError, naming="--encoder_dtype"):
        PointModelArguments(model_type="act3d", encoder_dtype="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize(("tuning", "trains"), [("full", True), ("head", False)])
def test_the_config_of_patchalign3d_says_what_complete_training_changes(tuning, trains, tmp_path):
    tiny_aligned(PatchAlign3DForPointCloudClassification, trained="projection").save_pretrained(tmp_path)
    arguments = PointModelArguments(model_type="patchalign3d", tuning=tuning, model_name_or_path=str(tmp_path))
    model = build_model(CLASSES, arguments, AdapterArguments(), ["a", "b", "c"])
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    expected = (
        {f"projection.{name}" for name, _ in model.base_model.projection.named_parameters()} if trains else set()
    )
    assert {name.removeprefix("patchalign3d.") for name in names if name.startswith("patchalign3d.")} == expected
    assert any(not name.startswith("patchalign3d.") for name in names)


def test_encoders_without_such_dropout_are_refused():
    with raises(ValueError, naming="no attention with dropout"):
        drop_attention(tiny_model("gpt2"), 0.1)


def matched(model: nn.Module, pattern: str) -> set[str]:
    return {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prompt_tuning", "prompt_tuning does not fit point cloud models; expected one of"),
        ("poly", "poly does not fit point cloud models; expected one of"),
        ("trainable_tokens", "trainable_tokens does not fit point cloud models; expected one of"),
        ("unheard_of", "unknown method 'unheard_of'; expected one of"),
        ("lorra", "unknown method 'lorra'; did you mean lora\\? Methods:"),
    ],
)
def test_unsupported_methods_are_refused_and_supported_ones_listed(name, text):
    with pytest.raises(ValueError, match=f"^--peft: {text} .*guided_adapter"):
        build_peft_config(name, tiny_model())


def test_names_are_case_insensitive_and_settings_override_defaults():
    config = build_peft_config("LoRA", tiny_model(), {"r": 2, "target_modules": ["query"], "modules_to_save": ["x"]})
    assert (config.r, config.target_modules, config.modules_to_save) == (2, {"query"}, ["x"])
    with raises(TypeError, naming="'rank'"):
        build_peft_config("ia3", tiny_model(), {"rank": 4})
    model = tiny_model("vit")
    norms = matched(model, build_peft_config("ln_tuning", model).target_modules)
    assert len(norms) == 4 and all(isinstance(model.get_submodule(name), nn.LayerNorm) for name in norms)


def test_ia3_scales_inputs_of_feedforward_modules_and_outputs_of_others():
    model = tiny_model()
    model = get_peft_model(model, build_peft_config("ia3", model))
    vectors = {key: p.numel() for key, p in model.named_parameters() if "ia3_l" in key and ".layer.0." in key}
    inner = model.get_base_model().config.encoder_config.intermediate_size
    entering = [size for key, size in vectors.items() if "output.dense" in key and "attention" not in key]
    assert entering == [inner] and len(vectors) == 6


@pytest.mark.slow
def test_a_classifier_of_other_classes_gets_a_new_head(tmp_path):
    saved = tiny_act(ActForPointCloudClassification, id2label={0: "chair", 1: "lamp", 2: "table"})
    saved.save_pretrained(tmp_path)
    arguments = PointModelArguments(model_name_or_path=str(tmp_path))
    same = build_model(CLASSES, arguments, AdapterArguments(), ["chair", "lamp", "table"], in_channels=3)
    other = build_model(CLASSES, arguments, AdapterArguments(), ["box", "car", "cup", "pen"], in_channels=3)
    assert other.config.num_labels == 4 and other.config.id2label[2] == "cup"
    for name, weight in saved.state_dict().items():
        assert torch.equal(same.state_dict()[name], weight)
        if name.startswith("act."):
            assert torch.equal(other.state_dict()[name], weight), name
    assert other(points=clouds(1)).logits.shape == (1, 4)


def test_training_drops_the_unknown_score_of_the_weights_it_starts_from(tmp_path):
    saved = tiny_act(ActForPointCloudClassification, id2label={0: "chair", 1: "lamp"}).eval()
    points = clouds(6)
    with torch.no_grad():
        features = saved.act(points=points).pooler_output
        saved.fit_unknown_score(features, saved.classifier(features), bank=features + 1)
    saved.config.unknown.share = 0.05
    saved.save_pretrained(tmp_path)
    arguments = PointModelArguments(model_name_or_path=str(tmp_path))
    blank = ActConfig()
    for labels in (["chair", "lamp"], ["box", "car", "cup"]):
        model = build_model(CLASSES, arguments, AdapterArguments(), labels, in_channels=3).eval()
        assert "unknown" not in model(points=points) and not any("unknown" in name for name in model.state_dict())
        assert model.config.unknown == blank.unknown
        model.save_pretrained(tmp_path / "trained")
        assert "unknown" not in type(model).from_pretrained(tmp_path / "trained")(points=points)
