"""Models that cannot be exported are refused with the reason."""

import pytest
import torch

from hf_any3d import OpenShapeForPointCloudClassification, PointTransformerV3Model
from hf_any3d.export import export_onnx, export_program
from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection
from tests.common.models import case_of
from tests.errors import raises
from tests.tiny_aligned import tiny_aligned
from tests.tiny_encoders import tiny_model, tiny_scene_model


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"released": {"attention_axis": "batch"}}, "attention_axis='batch'"),
        ({"released": {"line_mapping": "wrap"}}, "line_mapping='wrap'"),
        ({"released": {"offset_normalization": "batch_std"}}, "offset_normalization='batch_std'"),
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


def test_half_precision_is_refused_for_onnx(tmp_path):
    model = tiny_model("bert", dtype=torch.bfloat16)
    with raises(ValueError, naming="dtype:"):
        export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
