"""A model with another encoder than its config names raises an error or warns."""

import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_any3d import AutoModelForPointCloudTextToText
from hf_any3d.integration.registration import MODELS
from hf_any3d.modeling.any2point import Any2PointForPointCloudClassification
from tests.errors import raises

SMALL = {"num_tokens": 8, "tokenizer_neighbors": 4, "num_labels": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small encoder and a model around it, in separate directories."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("loading")
    config = BertConfig(
        vocab_size=30, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder / "encoder")
    model = Any2PointForPointCloudClassification.from_encoder_pretrained(folder / "encoder", **SMALL)
    model.save_pretrained(folder / "model")
    return folder, model


def test_building_from_a_config_alone_warns_that_the_encoder_is_random(saved):
    _, model = saved
    points = torch.rand(2, 64, 3)
    unloaded = Any2PointForPointCloudClassification(model.config)
    with pytest.warns(UserWarning, match="random weights"):
        unloaded(points)


def test_building_from_a_config_loads_the_named_encoder(saved):
    folder, model = saved
    points = torch.rand(2, 64, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        built = Any2PointForPointCloudClassification.from_encoder_pretrained(config=model.config)
        built(points)
        Any2PointForPointCloudClassification.from_pretrained(folder / "model")(points)
    for ours, theirs in zip(built.any2point.encoder.parameters(), model.any2point.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def frozen_encoder_classes():
    """Every class that is built around an encoder, and the auto classes of their tasks."""
    for base, heads in MODELS.values():
        for auto_class, models in (*heads.items(), (None, (base,))):
            for model in models:
                if hasattr(model, "from_encoder_pretrained"):
                    yield model
                    if getattr(auto_class, "__module__", "").startswith("hf_any3d."):
                        yield auto_class


@pytest.mark.parametrize("model_class", dict.fromkeys(frozen_encoder_classes()))
def test_an_encoder_given_as_a_model_names_what_builds_one_around_it(saved, model_class):
    folder, _ = saved
    with raises(ValueError, naming=f".from_encoder_pretrained('{folder / 'encoder'}')") as error:
        model_class.from_pretrained(folder / "encoder")
    assert "bert" in str(error.value).lower() and len(str(error.value)) < 400


def test_an_auto_class_without_such_models_names_those_that_it_opens(saved):
    folder, _ = saved
    with raises(ValueError, naming="BertConfig, none that AutoModelForPointCloudTextToText opens: MiniGPT3D"):
        AutoModelForPointCloudTextToText.from_pretrained(folder / "encoder")


def test_a_checkpoint_without_encoder_and_without_its_name_is_refused(saved, tmp_path):
    folder, _ = saved
    shutil.copytree(folder / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    others = {name: weight for name, weight in weights.items() if ".encoder." not in name}
    assert 0 < len(others) < len(weights)
    save_file(others, file, {"format": "pt"})
    with pytest.raises(ValueError, match="holds no encoder weights"):
        Any2PointForPointCloudClassification.from_pretrained(tmp_path / "model")
