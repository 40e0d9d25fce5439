"""Models that cannot be exported are refused with the reason."""

import base64
import importlib.util
import io
import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedConfig

from hf_any3d import (
    Any2PointForPointCloudClassification,
    OpenShapeForPointCloudClassification,
    PointTransformerV3Model,
)
from hf_any3d.export import encode_prompt_embeds, export_program
from hf_any3d.export.language_model import check_is_stock
from hf_any3d.export.onnx import _require, _without_log_messages
from hf_any3d.export.programs import least_points, replaced_when_complete
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.layers.modes import evaluation_mode
from tests.common.models import case_of
from tests.errors import raises
from tests.tiny_aligned import tiny_aligned
from tests.tiny_encoders import tiny_model, tiny_scene_model


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"attention_axis": "batch"}, "attention_axis='batch'"),
        ({"line_mapping": "wrap"}, "line_mapping='wrap'"),
        ({"offset_normalization": "batch_std"}, "offset_normalization='batch_std'"),
    ],
)
def test_models_with_batch_dependent_predictions_are_refused(settings, flag):
    with pytest.raises(ValueError, match=f"{flag}: predictions of this model depend on the other clouds"):
        export_program(tiny_model("bert", **settings))


def test_models_other_than_classifiers_and_classifiers_of_other_systems_are_refused():
    with raises(ValueError, naming="Any2PointForSemanticSegmentation"):
        export_program(tiny_scene_model("bert"))
    with raises(ValueError, naming="OpenShapeForPointCloudClassification"):
        export_program(tiny_aligned(OpenShapeForPointCloudClassification))


def test_models_without_weights_are_refused():
    config = tiny_model("bert").config
    with torch.device("meta"):
        model = Any2PointForPointCloudClassification(config)
    with raises(ValueError, naming="meta device"):
        export_program(model)


def test_other_attention_than_sdpa_and_eager_is_refused():
    model = tiny_model("bert")
    model.config.encoder_config._attn_implementation = "flex_attention"
    with raises(ValueError, naming="attn_implementation"):
        export_program(model)


def test_a_detector_over_another_encoder_is_refused(tmp_path):
    case_of(PointTransformerV3Model).tiny().save_pretrained(tmp_path)
    model = Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained(str(tmp_path), hidden_size=32)
    with raises(ValueError, naming="point_transformer_v3"):
        export_program(model)


def test_files_appear_together_when_they_are_complete(tmp_path):
    (tmp_path / "a.onnx").write_text("old")
    with replaced_when_complete(tmp_path / "a.onnx") as unfinished:
        assert unfinished.name == "a.onnx" and unfinished.parent.parent == tmp_path
        unfinished.write_text("new")
        (unfinished.parent / "a.onnx.data").write_text("weights")
        assert (tmp_path / "a.onnx").read_text() == "old"
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [
        ("a.onnx", "new"),
        ("a.onnx.data", "weights"),
    ]
    with pytest.raises(ZeroDivisionError), replaced_when_complete(tmp_path / "a.onnx") as unfinished:
        unfinished.write_text("broken")
        raise ZeroDivisionError
    assert (tmp_path / "a.onnx").read_text() == "new" and len(list(tmp_path.iterdir())) == 2
    for wrong, error in ((tmp_path, IsADirectoryError), (tmp_path / "gone" / "a.onnx", FileNotFoundError)):
        with pytest.raises(error, match="expected the name of a file|does not exist"), replaced_when_complete(wrong):
            pass


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_a_model_comes_back(training):
    model = torch.nn.Linear(2, 2).train(training)
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training is training


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"num_tokens": 9, "num_neighbors": 4}, 9),
        ({"num_tokens": 4, "num_neighbors": 9}, 9),
        ({"point_encoder_config": True}, 17),
    ],
)
def test_a_detector_needs_the_points_of_its_tokens(settings, least):
    config = Detr3DConfig()
    if "point_encoder_config" in settings:
        settings = {"point_encoder_config": type("Encoder", (PreTrainedConfig,), {"min_points": 17})()}
    for name, value in settings.items():
        setattr(config, name, value)
    assert least_points(SimpleNamespace(config=config)) == least
    assert least_points(SimpleNamespace(config=SimpleNamespace(min_points=5))) == 5


def test_prompts_are_encoded_without_the_tensor_that_they_are_part_of():
    whole = torch.arange(1000.0).reshape(100, 10)
    text = encode_prompt_embeds(whole[3:5].requires_grad_())
    assert len(text) < 4000
    found = torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)
    assert torch.equal(found, whole[3:5]) and not found.requires_grad


def test_language_models_of_others_are_named():
    with pytest.raises(ValueError, match="the language model is a Linear of torch.nn.modules.linear; expected one of"):
        check_is_stock(torch.nn.Linear(2, 2))


def test_remarks_of_the_exporter_are_silenced_for_a_while():
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    loggers[1].setLevel(logging.DEBUG)
    with pytest.raises(ZeroDivisionError), _without_log_messages():
        assert {logger.level for logger in loggers} == {logging.ERROR}
        raise ZeroDivisionError
    assert [logger.level for logger in loggers] == [before[0], logging.DEBUG, before[2]]
    loggers[1].setLevel(before[1])


def test_packages_that_are_missing_are_named_together(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in "ac" else name)
    _require("b")
    with raises(ImportError, naming="'hf-any3d[export]'"):
        _require("a", "b", "c")
