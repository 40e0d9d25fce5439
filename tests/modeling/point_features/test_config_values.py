"""What a config of features says of the model that is built from it."""

import json

import torch

from hf_any3d import ActForPointCloudClassification
from hf_any3d.modeling.point_encoders.packaged_encoder import packaged_settings, packaged_weights
from hf_any3d.pipelines import default_model


def test_the_packaged_encoder_has_the_settings_and_weights_of_the_packaged_classifier():
    settings = packaged_settings()
    with open(f"{default_model()}/config.json", encoding="utf-8") as file:
        stored = json.load(file)
    left_out = {"architectures", "auto_map", "dtype", "id2label", "label2id", "transformers_version"}
    wanted = {name: value for name, value in stored.items() if name not in left_out and name != "unknown"}
    assert settings == wanted and settings["model_type"] == "act3d"
    settings["model_type"] = "another"
    assert packaged_settings() == wanted  # a copy
    classifier = ActForPointCloudClassification.from_pretrained(default_model())
    own = classifier.act.state_dict()
    assert packaged_weights().keys() == own.keys()
    assert all(torch.equal(weight, own[name]) for name, weight in packaged_weights().items())
