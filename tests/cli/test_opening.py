"""What a command asks of its model: once, before anything large is loaded."""

import json

import pytest

from hf_any3d.cli import opening
from hf_any3d.cli.opening import FoundModel, found_model, model_for
from hf_any3d.modeling.openshape import OpenShapeConfig
from tests.cli.conftest import FILES
from tests.cli.test_errors import error_of
from tests.errors import raises


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list[str]:
    """Names of models whose configurations were asked of the hub; each is that of a zero-shot classifier."""
    names: list[str] = []
    config = OpenShapeConfig(architectures=["OpenShapeForZeroShotPointCloudClassification"], aligned_with="a/tower")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))

    def download(name, revision=None):
        names.append(name)
        return tmp_path / "config.json"

    monkeypatch.setattr(opening, "download_config", download)
    return names


def test_a_model_is_described_by_one_question(asked):
    found = found_model("me/model")
    assert asked == [] and found.title == "me/model" and found.folder is None
    assert found.architecture == "OpenShapeForZeroShotPointCloudClassification" and found.task is not None
    assert found.task.command == "zero-shot" and found.labels == list(found.config["id2label"].values())
    with raises(ValueError, naming="me/model is a zero-shot classifier; use hf-any3d zero-shot"):
        found.check("segment")
    assert asked == ["me/model"]


def test_a_command_asks_once(asked):
    words = (FILES / "chair.ply", "--model", "me/model")
    assert "which cannot be opened here; give" in error_of("zero-shot", *words, "--labels", "a, b")
    assert asked == ["me/model"]


def test_without_a_name_it_is_the_packaged_one():
    classifier, encoder = model_for(None, "predict"), model_for(None, "features", "predict")
    assert classifier.name == encoder.name == opening.packaged_classifier() and classifier.task is not None
    assert classifier.title == "default_model" and "chair" in classifier.labels
    assert "the bundled classifier" in classifier.note and "the bundled encoder" in encoder.note
    assert FoundModel(classifier.name).note == ""
