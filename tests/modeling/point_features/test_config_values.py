"""What a config of features says of the model that is built from it."""

import json
import re

import pytest
import torch

from hf_any3d import (
    ActForPointCloudClassification,
    PointFeaturesConfig,
    PointFeaturesModel,
    PointNetConfig,
    PointNetModel,
)
from hf_any3d.modeling.point_features.packaged_encoder import packaged_settings, packaged_weights
from hf_any3d.pipelines import default_model
from tests.common.case import varied_clouds
from tests.errors import raises
from tests.tiny_encoders import tiny_config

WRAP = {"model_type": "any2point", "encoder_config": tiny_config("bert").to_dict(), "num_tokens": 8}
VISION = {"model_type": "vit", "hidden_size": 24, "num_attention_heads": 2}


def test_sets_of_features_are_described_in_their_order():
    words = {
        ("descriptors",): "Hand-made descriptors of the shape",
        ("encoder", "descriptors"): "A frozen point encoder and hand-made descriptors of the shape",
        ("views", "wrap", "encoder"): "A frozen vision model that sees depth views, a trained wrap around a frozen "
        "encoder of another modality and a frozen point encoder",
    }
    given = {"encoder_config": {"model_type": "act3d"}, "wrap_config": WRAP, "vision_config": VISION}
    parts = {"encoder": "encoder_config", "wrap": "wrap_config", "views": "vision_config"}
    for features, text in words.items():
        settings = {parts[name]: given[parts[name]] for name in features if name in parts}
        assert PointFeaturesConfig(features=features, **settings).described_features == text


def test_widths_are_those_of_the_features_in_their_order():
    config = PointFeaturesConfig(
        features=("wrap", "views", "descriptors", "encoder"),
        wrap_config=WRAP,
        wrap_width=30,
        wrap_labels=7,
        vision_config=VISION,
        vision_width=24,
        encoder_width=40,
        in_channels=6,
        normals=True,
    )
    assert list(config.widths().items()) == [("wrap", 7), ("views", 24), ("descriptors", 120), ("encoder", 40)]
    assert config.hidden_size == 191
    config.wrap_labels = None
    assert config.widths()["wrap"] == 30
    config.wrap_width, config.wrap_labels = None, 7
    with raises(ValueError, naming="wrap_width"):
        config.widths()


def test_layers_and_points_are_those_of_the_models_of_points():
    alone = PointFeaturesConfig(features=["descriptors"])
    assert (alone.num_hidden_layers, alone.min_points, alone.batch_dependent_flags) == (0, 2, [])
    wrapped = WRAP | {"tokenizer_blocks": [1, 1], "tokenizer_bottlenecks": [8, 8], "attention_axis": "batch"}
    config = PointFeaturesConfig(features=["wrap"], wrap_config=wrapped)
    # Of the encoder inside the wrap; sixteen centers in the first stage, and thirty-two neighbors.
    assert (config.num_hidden_layers, config.min_points) == (2, 32)
    assert config.batch_dependent_flags == ["attention_axis='batch'"]
    both = PointFeaturesConfig(
        features=["wrap", "encoder"],
        wrap_config=WRAP,
        encoder_config={"model_type": "act3d", "num_hidden_layers": 5, "num_groups": 300, "group_size": 8},
    )
    assert (both.num_hidden_layers, both.min_points) == (5, both.encoder_config.min_points) and both.min_points > 128


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"copy_scale": (1.0,)}, "copy_scale=[1.0]; expected the smallest and the largest factor"),
        ({"copy_scale": (0.9, 1.0, 1.1)}, "copy_scale=[0.9, 1.0, 1.1]; expected the smallest"),
        ({"normals": True, "in_channels": 5}, "normals=True with in_channels=5; expected at least 6"),
        ({"features": ["wrap"], "wrap_config": WRAP, "wrap_adapter": "LORA"}, "wrap_adapter='LORA' with features=['w"),
        (
            {"features": ["descriptors"], "wrap_config": WRAP},
            "wrap_config with features=['descriptors']; expected 'wr",
        ),
        ({"features": ["wrap"]}, "features=['wrap'] without wrap_config; expected that of a model for 'wrap'"),
        ({"features": ("views", "views")}, "features=('views', 'views'); expected some of 'descriptors', 'encoder', "),
        ({"features": None}, "features=None; expected some of 'descriptors', 'encoder', 'wrap', 'views', each once"),
        (
            {"features": ["wrap"], "wrap_config": WRAP | {"in_channels": 4}},
            "in_channels=3; expected at least 4, which",
        ),
        (
            {"encoder_weights": "shuffled"},
            "encoder_weights='shuffled'; expected one of 'packaged', 'pretrained', 'ran",
        ),
        ({"views": 7}, "views=7; expected 1 to 6"),
        ({"copies": 65}, "copies=65; expected 1 to 64"),
        ({"wrap_labels": 1}, "wrap_labels=1; expected 2 to 1,000,000"),
        ({"encoder_config": {"model_type": "act3d"}, "wrap_labels": 3}, "wrap_labels=3 with a wrap of the type None"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PointFeaturesConfig(**settings)


def test_settings_at_the_limits_are_allowed():
    config = PointFeaturesConfig(normals=True, in_channels=6, copy_scale=(1.0, 1.0), wrap_labels=None)
    assert config.encoder_config.in_channels <= 6 and config.normals
    wide = PointFeaturesConfig(features=["wrap"], wrap_config=WRAP | {"in_channels": 4}, in_channels=4, wrap_labels=2)
    assert wide.wrap_labels == 2 and wide.encoder_config is None


def test_the_packaged_encoder_has_the_settings_and_weights_of_the_packaged_classifier():
    settings = packaged_settings()
    with open(f"{default_model()}/config.json", encoding="utf-8") as file:
        stored = json.load(file)
    left_out = {"architectures", "auto_map", "dtype", "id2label", "label2id", "transformers_version"}
    wanted = {name: value for name, value in stored.items() if name not in left_out and "unknown_" not in name}
    assert settings == wanted and settings["model_type"] == "act3d"
    settings["model_type"] = "another"
    assert packaged_settings() == wanted  # a copy
    classifier = ActForPointCloudClassification.from_pretrained(default_model())
    own = classifier.act.state_dict()
    assert packaged_weights().keys() == own.keys()
    assert all(torch.equal(weight, own[name]) for name, weight in packaged_weights().items())


def test_a_part_of_the_hub_is_recorded_with_its_commit_and_fetched_again(hub, tmp_path):
    torch.manual_seed(0)
    encoder = PointNetModel(PointNetConfig(in_channels=5, hidden_sizes=(8, 12)))
    encoder.push_to_hub("me/features-encoder")
    first = hub.commits("me/features-encoder")[-1]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(2)
    encoder.push_to_hub("me/features-encoder")
    settings = {"features": ("encoder",), "copies": 1}
    model = PointFeaturesModel.from_parts_pretrained(
        encoder="me/features-encoder", revisions={"encoder": first}, **settings
    )
    record = model.config.part("encoder")
    assert (record.name_or_path, record.revision, record.stored) == ("me/features-encoder", first, False)
    newest = PointFeaturesModel.from_parts_pretrained(encoder="me/features-encoder", **settings)
    assert newest.config.part("encoder").revision == hub.commits("me/features-encoder")[-1] != first
    assert model.config.in_channels == 5 and model.config.encoder_weights == "pretrained"
    model.save_pretrained(tmp_path)
    clouds = varied_clouds(2, 30, 5)
    again = PointFeaturesModel.from_pretrained(tmp_path)
    assert torch.equal(again(clouds).pooler_output, model(clouds).pooler_output)
    assert not torch.equal(newest(clouds).pooler_output, model(clouds).pooler_output)
