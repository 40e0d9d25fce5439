"""The command exports a small model into a file with its settings, which gives the model's results."""

import pytest
import torch

from hf_any3d import PointCloudProcessor, PointNetForPointCloudClassification
from hf_any3d.export.onnx import FORMATS
from hf_any3d.export.programs import _nearest
from hf_any3d.modeling import kernels
from tests.cli.conftest import run
from tests.export.cases import LABELS, assert_written, other_clouds
from tests.tiny_baselines import tiny_baseline
from tests.turns import some

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", some(["pt2", "onnx"], left_out=["onnx"]))
def test_command_writes_the_file_and_its_settings(kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model = tiny_baseline(PointNetForPointCloudClassification, id2label=dict(enumerate(LABELS)))
    model.save_pretrained(tmp_path / "saved")
    PointCloudProcessor(num_points=64, up_axis="z").save_pretrained(tmp_path / "saved")
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / f"model.{kind}"
    made = run("export", tmp_path / "saved", "--format", kind, "--output", file)
    assert made.code == 0, made.err
    assert_written(file, made.out, LABELS, min_points=1)
    run_file = FORMATS[kind].open(file)
    for points in other_clouds(3):
        torch.testing.assert_close(run_file(points), model(points).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [3, 6])
def test_neighbors_are_those_of_the_coordinates_alone(channels):
    generator = torch.Generator().manual_seed(0)
    query, points = (torch.randn(2, count, channels, generator=generator) for count in (5, 40))
    found, expected = _nearest(query, points, 4, "exact"), kernels.knn.plain(query, points, 4, "exact")
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
