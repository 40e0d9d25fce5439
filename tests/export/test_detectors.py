"""Files of detectors give the boxes of PyTorch for clouds of sizes that they were not traced with."""

import json

import pytest
import torch

from hf_any3d import PointCloudProcessor
from hf_any3d.export import export_file
from hf_any3d.export.onnx import FORMATS, compare
from tests.cli.conftest import run
from tests.common.case import varied_clouds
from tests.errors import raises
from tests.tiny_detr3d import BOX_FRAME, ON_ENCODER, answering_detector

# Those of the released programs: the first neighbors, no centers near the origin.
RELEASED = {"neighbor_order": "first", "sampling_min_squared_norm": 1e-3}


@torch.no_grad()
def check(model, found, points) -> None:
    """Check that a file's logits and boxes are the model's."""
    expected = model(points=points)
    torch.testing.assert_close(found[0], expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], expected.pred_boxes, rtol=1e-4, atol=1e-4)
    assert expected.pred_boxes[..., :3].std(dim=1).min() > 0.1, "boxes at one place would prove little"


@pytest.mark.slow
def test_the_command_writes_onnx_with_logits_and_boxes(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = answering_detector(decoder_layers=1, **RELEASED)
    model.save_pretrained(tmp_path / "model")
    PointCloudProcessor(num_points=40, **BOX_FRAME).save_pretrained(tmp_path / "model")
    made = run("export", tmp_path / "model", "--output", tmp_path / "model.onnx")
    assert made.code == 0, made.err
    settings = json.loads((tmp_path / "model.json").read_text())
    assert settings["output"] == [
        {"name": "logits", "shape": ["batch", 8, 4]},
        {"name": "pred_boxes", "shape": ["batch", 8, 7]},
    ]
    assert settings["input"]["min_points"] == 24 and settings["labels"] == ["chair", "lamp", "table"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for points in (varied_clouds(1, 24, seed=3), varied_clouds(3, 3000, seed=4)):
        found = session.run(["logits", "pred_boxes"], {"points": points.numpy()})
        check(model, [torch.from_numpy(values) for values in found], points)


@pytest.mark.slow
def test_a_program_of_torch_has_logits_and_boxes_and_the_point_encoder_under_the_decoder(tmp_path):
    model = ON_ENCODER.tiny(decoder_layers=1)
    made = export_file(model, tmp_path / "model.pt2", "pt2")
    assert made.worst_difference < 1e-4
    run_file = FORMATS["pt2"].open(made.path)
    points = varied_clouds(3, 3000, seed=4)
    check(model, run_file(points), points)

    def with_other_boxes(points):
        logits, boxes = run_file(points)
        return logits, boxes + 0.01

    with raises(ValueError, naming="pred_boxes"):
        compare(model, with_other_boxes)
