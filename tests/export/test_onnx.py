"""Export of a compared file with its settings, from Python and from the command line."""

import json

import pytest
import torch
from typer.testing import CliRunner

from hf_any3d import (
    PointCloudProcessor,
    PointFeaturesForPointCloudClassification,
)
from hf_any3d.cli import app
from hf_any3d.export import export_file
from hf_any3d.export.onnx import FORMATS, Format, export_onnx
from tests.errors import raises
from tests.tiny_encoders import adapted_model, tiny_model
from tests.tiny_features import tiny_features

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    settings = {"num_layers": 1, "tokenizer": "patch", "tokenizer_width": 24}
    model = adapted_model("bert", id2label={0: "bottle", 1: "chair", 2: "lamp"}, **settings)
    model.save_pretrained(path)
    PointCloudProcessor(num_points=64, up_axis="z").save_pretrained(path)
    return model, path


def broken(model, path):
    path.write_text("no graph")


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [None, "an earlier file"])
def test_a_file_that_disagrees_is_not_kept(monkeypatch, saved, tmp_path, earlier):
    monkeypatch.setitem(FORMATS, "onnx", Format(broken, lambda path: lambda points: torch.zeros(len(points), 3)))
    output = tmp_path / "model.onnx"
    if earlier is not None:
        output.write_text(earlier)
    with pytest.raises(ValueError, match="disagrees with the model"):
        export_file(saved[0], output, "onnx")
    assert [file.name for file in tmp_path.iterdir()] == ([] if earlier is None else ["model.onnx"])
    assert earlier is None or output.read_text() == earlier


def test_labels_are_stored_in_the_order_of_the_logits(monkeypatch, tmp_path):
    # As a config of eleven labels and more is read: its keys are texts, in the order of the alphabet.
    model = tiny_model(id2label={2: "lamp", 0: "bottle", 1: "chair"}).eval()
    write = Format(lambda model, path: path.write_text("graph"), lambda path: lambda points: model(points).logits)
    monkeypatch.setitem(FORMATS, "onnx", write)
    export_file(model, tmp_path / "model.onnx", "onnx")
    assert json.loads((tmp_path / "model.json").read_text())["labels"] == ["bottle", "chair", "lamp"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--format", "tflite", "--output", "model.tflite"), "'tflite' is not one of onnx, pt2"),
        (("--output", "model.json"), "that name is for the settings; expected one like 'model.onnx'"),
        (("--output", "."), ". is a folder; expected the name of a file"),
    ],
)
def test_wrong_options_give_one_line_errors(saved, monkeypatch, tmp_path, arguments, text):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["export", str(saved[1]), *arguments])
    assert result.exit_code == (2 if "tflite" in text else 1) and result.stdout == ""
    assert text in result.stderr and len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_models_on_other_devices_are_refused(tmp_path):
    model = tiny_model("bert").to("meta")
    with pytest.raises(ValueError, match="the model is on meta; expected the CPU"):
        export_file(model, tmp_path / "model.pt2", "pt2")


def test_features_that_no_graph_computes_are_refused(tmp_path):
    model = tiny_features(PointFeaturesForPointCloudClassification, copies=2)
    model.config.features = ["descriptors", "views"]
    with pytest.raises(ValueError, match="depth views cannot be exported"):
        export_onnx(model, tmp_path / "views.onnx")
    model.config.features, model.config.encoder_config.model_type = ["encoder"], "pointnet2"
    with raises(ValueError, naming="encoder_config"):
        export_onnx(model, tmp_path / "other.onnx")
