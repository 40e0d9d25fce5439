"""What a config of features says of the model that is built from it."""

import json

import torch

from hf_any3d import (
    ActForPointCloudClassification,
    PointFeaturesModel,
    PointNetConfig,
    PointNetModel,
)
from hf_any3d.modeling.point_encoders.packaged_encoder import packaged_settings, packaged_weights
from hf_any3d.pipelines import default_model
from tests.common.case import varied_clouds


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
