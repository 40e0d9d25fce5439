"""Files of 3DETR become directories that open and compute the same."""

import argparse
import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor
from typer.testing import CliRunner

from hf_any3d import AutoModelForPointCloudObjectDetection
from hf_any3d.cli import app
from hf_any3d.conversions import convert_detr3d
from hf_any3d.conversions.detr3d.names import convert_detr3d_state_dict, detr3d_sizes, is_masked
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.layers.boxes import box_corners
from hf_any3d.published import open_published
from tests.cli.conftest import run
from tests.errors import raises
from tests.modeling.detr3d.reference_case import DetectionCase, camera_corners

FILES = ("scannet_ep1080", "scannet_masked_ep1080", "sunrgbd_ep1080", "sunrgbd_masked_ep1080")
SHAPES = tuple(f"detr3d_manifest_{name}" for name in (*FILES, "scannet_masked_ep1080_color"))


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def original_file(case: DetectionCase, path, **arguments) -> None:
    """Write a file as the authors' training does."""
    args = argparse.Namespace(**(case.manifest["constructor_args"] | arguments))
    torch.save({"model": case.original, "optimizer": {"state": {}}, "epoch": 1079, "args": args}, path)


@pytest.mark.parametrize("name", SHAPES)
def test_released_files_have_exactly_our_tensors(name):
    case = DetectionCase(name)
    state = convert_detr3d_state_dict(case.on_meta)
    sizes = detr3d_sizes(state)
    given = case.manifest["constructor_args"]
    masked = given["enc_type"] == "masked"
    assert is_masked(state) is masked
    with torch.device("meta"):
        config = Detr3DConfig(**sizes, num_queries=given["nqueries"], attention_radii=(1, 1, 1) if masked else None)
        model = Detr3DForPointCloudObjectDetection(config)
    own = model.state_dict()
    assert {key: tensor.shape for key, tensor in own.items()} == {key: tensor.shape for key, tensor in state.items()}
    assert model.num_parameters() == case.manifest["parameters"]
    assert sum(buffer.numel() for buffer in model.buffers()) == case.manifest["buffers"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr3d_scannet_vanilla", "detr3d_sunrgbd"])
def test_a_file_converts_on_the_command_line_and_computes_as_released(name, tmp_path):
    case = DetectionCase(name)
    original_file(case, tmp_path / "detector.pth")
    scannet = "scannet" in name
    stated = ("--dataset", "scannet" if scannet else "sunrgbd")
    result = command("convert", tmp_path / "detector.pth", "--output", tmp_path / "out", *stated)
    assert result.exit_code == 0, result.output
    model = AutoModelForPointCloudObjectDetection.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        output = model(case.points)
    assert float((output.logits - case.expected["pred.sem_cls_logits"][-1]).abs().max()) <= 2e-3
    corners = camera_corners(box_corners(output.pred_boxes))
    assert float((corners - case.expected["pred.box_corners"][-1]).abs().max()) <= 2e-3
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert (processor.center, processor.scale, processor.up_axis) == (False, None, "z")
    assert processor.num_points == (40_000 if scannet else 20_000)
    assert model.config.id2label[0] == ("cabinet" if scannet else "bed")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Every tensor of it is accounted for." in card and "published_overlap=True" in card
    assert ("(0.16, 0.64, 1.44)" in card) is not scannet


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr3d_scannet_vanilla", "detr3d_sunrgbd"])
def test_the_commands_convert_and_detect_find_the_boxes_of_the_released_program(name, tmp_path):
    case = DetectionCase(name)
    original_file(case, tmp_path / "detector.pth")
    np.save(tmp_path / "scan.npy", case.points[1].numpy())
    made = command("convert", tmp_path / "detector.pth", "--output", tmp_path / "out", "--num-points", 2048)
    assert made.exit_code == 0, made.output
    words = ["--model", tmp_path / "out", "--threshold", 0, "--nms-iou", 1, "--json"]
    found = run("detect", tmp_path / "scan.npy", *words)
    assert found.code == 0, found.err
    boxes = json.loads(found.out)[0]["boxes"]
    stored = {key: case.expected[f"pred.{key}"][-1, 1] for key in ("box_corners", "sem_cls_prob")}
    assert len(boxes) == len(stored["box_corners"])
    corners = camera_corners(torch.tensor([one["box"]["corners"] for one in boxes]))
    distances = (corners[:, None] - stored["box_corners"]).abs().amax(dim=(2, 3))  # (boxes, stored boxes)
    nearest = distances.argmin(dim=1)
    assert float(distances.amin(dim=1).max()) <= 2e-3 and len(nearest.unique()) == len(nearest)
    best = stored["sem_cls_prob"][nearest].max(dim=1)
    assert [one["score"] for one in boxes] == pytest.approx(best.values.tolist(), abs=2e-3)
    config = Detr3DConfig.from_pretrained(tmp_path / "out")
    assert [one["label"] for one in boxes] == [config.id2label[number] for number in best.indices.tolist()]


@pytest.mark.slow
def test_a_detector_with_colors_reads_them_from_0_to_1(tmp_path):
    case = DetectionCase("detr3d_scannet_color")
    original_file(case, tmp_path / "detector.pth")
    convert_detr3d(tmp_path / "detector.pth", tmp_path / "out")
    model = AutoModelForPointCloudObjectDetection.from_pretrained(tmp_path / "out")
    assert AutoProcessor.from_pretrained(tmp_path / "out").features == ["xyz", "rgb"]
    points = case.points.clone()  # as the original's data set gives them: (color - mean) / 256
    points[..., 3:] = (256 * points[..., 3:] + torch.tensor([109.8, 97.2, 83.8])) / 255
    with torch.no_grad():
        output, unscaled = model(points), model(case.points)
    expected = case.expected["pred.sem_cls_logits"][-1]
    assert float((output.logits - expected).abs().max()) <= 2e-3
    assert float((unscaled.logits - expected).abs().max()) > 0.1
    assert "Colors are from 0 to 1 here" in (tmp_path / "out" / "README.md").read_text()


def test_colors_of_unknown_scale_are_refused(tmp_path):
    case = DetectionCase("detr3d_scannet_color")
    original_file(case, tmp_path / "detector.pth")
    with raises(ValueError, naming="dataset='none'; expected 3, or 6"):
        convert_detr3d(tmp_path / "detector.pth", tmp_path / "out", dataset="none")


@pytest.mark.slow
def test_settings_of_the_authors_are_kept(tmp_path):
    case = DetectionCase("detr3d_sunrgbd")
    original_file(case, tmp_path / "detector.pth", loss_no_object_weight=0.3, matcher_center_cost=7, nqueries=40)
    convert_detr3d(tmp_path / "detector.pth", tmp_path / "out")
    config = Detr3DConfig.from_pretrained(tmp_path / "out")
    assert (config.no_object_weight, config.center_cost, config.num_queries) == (0.3, 7.0, 40)
    assert (config.giou_cost, config.giou_loss_weight, config.encoder_dropout) == (3.0, 0.0, 0.1)


@pytest.mark.slow
def test_weights_alone_convert_with_published_settings(tmp_path):
    case = DetectionCase("detr3d_scannet_vanilla")
    torch.save(case.original, tmp_path / "weights.pth")
    facts = convert_detr3d(tmp_path / "weights.pth", tmp_path / "out", dataset="none", num_attention_heads=2)
    config = Detr3DConfig.from_pretrained(facts["output"])
    assert (config.num_queries, config.num_tokens, config.decoder_attention_heads) == (128, 2048, 2)
    assert config.id2label[0] == "LABEL_0"


@pytest.mark.parametrize(
    ("changes", "settings", "match"),
    [
        ({}, {"dataset": "sunrgbd"}, "the given dataset has 10 classes; the model has 18"),
        ({}, {"dataset": "kitti"}, "dataset is 'kitti'; expected one of scannet, sunrgbd, none"),
        ({"decoder.norm.weight": None}, {}, "' is missing"),
        ({"extra.weight": torch.zeros(2)}, {}, "belong to no known part: extra.weight"),
        ({"query_projection.layers.0.bias": torch.full((48,), torch.nan)}, {}, "query_projection.layers.0.bias"),
    ],
)
def test_files_that_do_not_fit_are_named(changes, settings, match, tmp_path):
    case = DetectionCase("detr3d_scannet_vanilla")
    state = {key: tensor for key, tensor in (case.original | changes).items() if tensor is not None}
    torch.save({"model": state}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=match):
        convert_detr3d(tmp_path / "weights.pth", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_authors_that_is_missing_is_named_with_its_address(name, tmp_path):
    address = f"https://dl.fbaipublicfiles.com/3detr/checkpoints/{name}.pth"
    made = command("convert", f"{name}.pth", "--output", tmp_path / "out")
    assert made.exit_code == 1 and address in made.stderr
    with pytest.raises(FileNotFoundError, match=address):
        open_published(tmp_path / f"{name}.pth")
