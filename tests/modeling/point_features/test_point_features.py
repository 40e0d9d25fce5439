"""Models of features: what comes with the package, saving, parts from elsewhere, heads, controls that are blind."""

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, ViTConfig, ViTModel

import hf_any3d
from hf_any3d import (
    Any2PointForPointCloudClassification,
    AutoModelForPointCloudClassification,
    GuidedAdapterConfig,
    PointFeaturesConfig,
    PointFeaturesForPointCloudClassification,
    PointFeaturesModel,
    PointNetConfig,
    PointNetModel,
)
from hf_any3d.modeling.encoders import open_pretrained_part
from hf_any3d.modeling.point_features.descriptors import count_descriptors, describe
from hf_any3d.modeling.point_features.modeling_point_features import make_copies
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from hf_any3d.pipelines import default_model
from hf_any3d.tuners import encoder_linear_pattern, trainable_module_names
from tests.common.case import varied_clouds
from tests.errors import raises
from tests.tiny_encoders import pushed_encoder, saved_encoder, tiny_model
from tests.tiny_features import tiny_features

SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def vision(tmp_path_factory) -> str:
    """Directory of a tiny vision model."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=32, patch_size=8, **SIZES)).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def features_of(model: torch.nn.Module, count: int = 3) -> torch.Tensor:
    """Return the features of the same clouds."""
    return model(varied_clouds(count, 200)).pooler_output


@pytest.mark.slow
def test_the_default_is_descriptors_and_the_encoder_of_the_package(tmp_path):
    model = PointFeaturesForPointCloudClassification(PointFeaturesConfig(num_labels=4, copies=2)).eval()
    packaged = hf_any3d.ActForPointCloudClassification.from_pretrained(default_model()).act
    stored = packaged.state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.point_features.encoder.state_dict().items())
    clouds = varied_clouds(3, 200)
    with torch.no_grad():
        copies = make_copies(clouds, model.config)
        expected = torch.stack(
            [torch.cat([describe(one), packaged.eval()(one).pooler_output], -1) for one in copies.unbind(1)]
        ).mean(0)
        torch.testing.assert_close(features_of(model.point_features), expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Hand-made descriptors of the shape and a frozen point encoder describe a cloud. Method" in card
    assert "all of them are stored in this repository" in card
    again = AutoModelForPointCloudClassification.from_pretrained(tmp_path)
    assert torch.equal(features_of(again.base_model), features_of(model.base_model))
    # Frozen as before: what is loaded again would otherwise be trained.
    assert [name for name, weight in again.named_parameters() if weight.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert not again.train().point_features.encoder.training and again.classifier.training


def test_descriptors_alone_have_no_weights_and_are_saved(tmp_path):
    model = PointFeaturesModel(PointFeaturesConfig(features=["descriptors"], copies=1))
    assert not list(model.parameters()) and model.config.hidden_size == count_descriptors()
    torch.testing.assert_close(features_of(model), describe(varied_clouds(3, 200)))
    model.save_pretrained(tmp_path)
    assert torch.equal(features_of(AutoModel.from_pretrained(tmp_path)), features_of(model))
    with raises(ValueError, naming="output_attentions"):
        model(varied_clouds(1), output_attentions=True)


def test_a_large_batch_in_pieces_gives_the_features_of_a_whole_one():
    model = tiny_features(PointFeaturesModel)
    whole = model(varied_clouds(66))  # with gradients, in one piece
    with torch.no_grad():
        pieces = model(varied_clouds(66), output_hidden_states=True)
    for name in ("pooler_output", "last_hidden_state", "centers"):
        torch.testing.assert_close(pieces[name], whole[name], atol=1e-4, rtol=1e-4)
    assert len(pieces.last_hidden_state) == len(pieces.hidden_states[0]) == 66


def test_set_head_sets_head_and_standardization():
    model = tiny_features(PointFeaturesForPointCloudClassification, temperature=2.0)
    raw = features_of(model.base_model) * model.point_features.scale + model.point_features.mean
    width = model.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(3, width, generator=generator), torch.randn(3, generator=generator)
    mean, scale = raw.mean(0), torch.rand(width, generator=generator) + 0.5
    model.set_head(weight, bias, mean, scale)
    with torch.no_grad():
        logits = model(varied_clouds(3, 200)).logits
    torch.testing.assert_close(logits, ((raw - mean) / scale @ weight.T + bias) / 2, atol=1e-3, rtol=1e-3)
    for wrong, message in (
        ({"weight": weight[:2]}, r"weight has shape \(2, .*expected \(3,"),
        ({"mean": mean * torch.nan}, r"mean has shape .* finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_head(**({"weight": weight, "bias": bias, "mean": mean, "scale": scale} | wrong))


def test_an_encoder_from_a_directory_is_stored_with_the_model(tmp_path):
    torch.manual_seed(0)
    PointNetModel(PointNetConfig(in_channels=6, hidden_sizes=(8, 12))).save_pretrained(tmp_path / "encoder")
    model = PointFeaturesModel.from_parts_pretrained(encoder=tmp_path / "encoder", copies=2)
    assert model.config.in_channels == 6 and model.config.widths() == {"descriptors": 104, "encoder": 12}
    assert model.config.parts is None and model.config.encoder_weights == "pretrained"
    model.save_pretrained(tmp_path / "model")
    clouds = varied_clouds(3, 50, 6)
    again = PointFeaturesModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again(clouds).pooler_output, model(clouds).pooler_output)


def test_a_vision_model_sees_depth_views(vision, tmp_path):
    model = PointFeaturesModel.from_parts_pretrained(vision=vision, features=("views",), copies=2)
    assert model.config.widths() == {"views": 24} and model.config.num_hidden_layers == 0
    features = features_of(model)
    assert features.shape == (3, 24) and features.std(dim=0).max() > 1e-3
    model.save_pretrained(tmp_path)
    assert torch.equal(features_of(PointFeaturesModel.from_pretrained(tmp_path)), features)
    everything = PointFeaturesModel.from_parts_pretrained(vision=vision)
    assert list(everything.config.widths()) == ["descriptors", "encoder", "views"]


def test_a_checkpoint_with_several_towers_gives_its_vision_tower():
    model = PointFeaturesModel.from_parts_pretrained(vision=saved_encoder("clip"), features=("views",), copies=1)
    assert model.config.vision_config.model_type == "clip_vision_model"
    assert features_of(model).std() > 1e-3


def test_weights_that_are_kept_elsewhere_are_not_stored_and_are_compared(tmp_path):
    vision = pushed_encoder("vit")
    model = PointFeaturesModel.from_parts_pretrained(vision=vision, features=("descriptors", "views"), copies=1)
    model.config.set_part("vision", open_pretrained_part(PretrainedPart(vision))[1])
    expected = features_of(model)
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.startswith("vision.")]
    again = PointFeaturesModel.from_pretrained(tmp_path)
    assert torch.equal(features_of(again), expected)
    assert not [name for name, weight in again.named_parameters() if weight.requires_grad]
    config = json.loads((tmp_path / "config.json").read_text())
    config["parts"]["vision"]["checksum"] = "tensors-sha256:" + 64 * "0"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with raises(EncoderMismatchError, naming="expected tensors-sha256:000"):
        PointFeaturesModel.from_pretrained(tmp_path)


def test_lost_weights_of_a_stored_part_are_named(vision, tmp_path):
    from safetensors.torch import save_file

    PointFeaturesModel.from_parts_pretrained(vision=vision, features=("views",), copies=1).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vision.layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with raises(ValueError, naming="lacks vision.layernorm.weight"):
        PointFeaturesModel.from_pretrained(tmp_path)


@pytest.mark.slow
def test_a_wrap_is_a_set_of_features_and_leaves_its_encoder_where_it_is(tmp_path):
    wrap = tiny_model(pushed_encoder("bert"), model_class=Any2PointForPointCloudClassification)
    model = PointFeaturesForPointCloudClassification.from_parts_pretrained(wrap=wrap, copies=2, num_labels=3)
    assert list(model.config.widths()) == ["descriptors", "encoder", "wrap"]
    with torch.no_grad():
        expected = wrap.any2point.eval()(make_copies(varied_clouds(3, 200), model.config).flatten(0, 1)).pooler_output
    found = features_of(model.base_model)[:, -model.config.wrap_width :]
    torch.testing.assert_close(found, expected.unflatten(0, (3, 2)).mean(1), atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert any(".wrap." in name for name in stored) and not any(".wrap.encoder." in name for name in stored)
    again = AutoModelForPointCloudClassification.from_pretrained(tmp_path)
    assert torch.equal(features_of(again.base_model), features_of(model.base_model))


@torch.no_grad()
def test_a_wrap_whose_adapter_was_merged_is_stored_whole(tmp_path):
    wrap = tiny_model(model_class=Any2PointForPointCloudClassification)
    lora = LoraConfig(r=2, target_modules=encoder_linear_pattern(wrap), init_lora_weights=False)
    adapted = get_peft_model(wrap, lora)
    merged = adapted.merge_and_unload()
    model = PointFeaturesForPointCloudClassification.from_parts_pretrained(wrap=merged, copies=1, num_labels=3)
    model.save_pretrained(tmp_path)
    again = AutoModelForPointCloudClassification.from_pretrained(tmp_path)
    assert torch.equal(features_of(again.base_model), features_of(model.base_model))


METHODS = {
    "guided adapter": lambda model: GuidedAdapterConfig(init_weights=False, gate=0.3),
    "LoRA": lambda model: LoraConfig(
        r=2,
        target_modules=encoder_linear_pattern(model),
        init_lora_weights=False,
        modules_to_save=trainable_module_names(model),
    ),
}


def adapted_wrap(method: str, encoder: str = "bert") -> PeftModel:
    """Build a tiny wrap whose adapter, tokenizer and head are other ones than those that its config gives."""
    torch.manual_seed(0)
    wrap = tiny_model(encoder, model_class=Any2PointForPointCloudClassification)
    adapted = get_peft_model(wrap, METHODS[method](wrap)).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.2)
    return adapted


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_a_wrap_is_stored_with_its_adapter_whether_from_memory_or_a_directory(method, tmp_path):
    adapted = adapted_wrap(method, pushed_encoder("bert"))
    clouds = varied_clouds(3, 200)
    expected = adapted.get_base_model().any2point(clouds, return_dict=True).pooler_output
    adapted.save_pretrained(tmp_path / "wrap")
    for number, wrap in enumerate((str(tmp_path / "wrap"), adapted.get_base_model())):
        model = PointFeaturesForPointCloudClassification.from_parts_pretrained(wrap=wrap, copies=1, num_labels=3)
        found = features_of(model.base_model)[:, -model.config.wrap_width :]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        stored = load_file(folder / "model.safetensors")
        # The frozen encoder stays where it is; what was trained inside it does not.
        inside = [name for name in stored if ".wrap.encoder." in name]
        assert inside and all("guided_adapter" in name or "lora" in name for name in inside)
        again = AutoModelForPointCloudClassification.from_pretrained(folder)
        assert torch.equal(features_of(again.base_model), features_of(model.base_model))
        assert not any(parameter.requires_grad for parameter in again.base_model.wrap.parameters())
        again.save_pretrained(tmp_path / "twice")
        assert load_file(tmp_path / "twice" / "model.safetensors").keys() == stored.keys()


@torch.no_grad()
def test_a_wrap_around_an_encoder_from_a_directory_is_stored_whole(tmp_path):
    wrap = adapted_wrap("LoRA").get_base_model()
    model = PointFeaturesForPointCloudClassification.from_parts_pretrained(wrap=wrap, copies=1, num_labels=3)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {name for name in model.state_dict() if ".wrap.encoder." in name} <= stored.keys()
    again = AutoModelForPointCloudClassification.from_pretrained(tmp_path)
    assert torch.equal(features_of(again.base_model), features_of(model.base_model))


@torch.no_grad()
def test_a_wrap_with_its_head_gives_its_answers_as_features(tmp_path):
    adapted = adapted_wrap("guided adapter")
    clouds = varied_clouds(3, 200)
    wrap = adapted.get_base_model()
    expected = wrap(clouds, return_dict=True).logits.log_softmax(-1)
    settings = {"features": ("descriptors", "wrap"), "copies": 1, "wrap_labels": wrap.config.num_labels}
    for wrong, message in ((wrap.any2point, "no classifier"), ("somewhere", "no classifier")):
        with pytest.raises(ValueError, match=message):
            PointFeaturesForPointCloudClassification.from_parts_pretrained(wrap=wrong, **settings)
    model = PointFeaturesForPointCloudClassification.from_parts_pretrained(wrap=wrap, **settings, num_labels=3)
    found = features_of(model.base_model)[:, -wrap.config.num_labels :]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path)
    again = AutoModelForPointCloudClassification.from_pretrained(tmp_path).train()
    assert torch.equal(features_of(again.base_model), features_of(model.base_model))
    assert not any(parameter.requires_grad for parameter in again.base_model.parameters())


def test_a_model_that_lost_weights_of_the_adapter_in_its_wrap_is_refused(tmp_path):
    wrap = adapted_wrap("guided adapter").get_base_model()
    PointFeaturesForPointCloudClassification.from_parts_pretrained(wrap=wrap, copies=1).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if "guided_adapter_up" in name)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks {re.escape(lost)}"):
        AutoModelForPointCloudClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": []}, r"features=\[\]"),
        ({"features": "descriptors"}, "features='descriptors'; expected some of"),
        ({"features": ["descriptors", "descriptors"]}, "each once"),
        ({"features": ["colors"]}, r"features=\['colors'\]"),
        ({"features": ["descriptors"], "encoder_config": {"model_type": "act3d"}}, "expected 'encoder' among them"),
        ({"copies": 0}, "copies=0"),
        ({"features": ["descriptors"], "wrap_labels": 3}, "wrap_labels=3"),
        ({"features": ["descriptors"], "wrap_adapter": {"peft_type": "LORA"}}, "wrap_adapter"),
        ({"normals": True}, "normals=True with in_channels=3; expected at least 6"),
        ({"encoder_config": {"model_type": "point_transformer_v3"}, "in_channels": 6}, "reads voxels"),
        ({"up_axis": "w"}, "up_axis='w'"),
        ({"parts": {"teacher": {}}}, "parts has 'teacher'"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PointFeaturesConfig(**settings)
