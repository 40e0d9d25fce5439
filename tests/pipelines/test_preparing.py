"""How scans are prepared and answers are put together: what is drawn, cut and turned, without a model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.point_arrays import turn_up_axis
from hf_any3d.modeling.layers.boxes import box_corners
from hf_any3d.pipelines.point_cloud_object_detection import PointCloudObjectDetectionPipeline, Scan
from hf_any3d.pipelines.point_cloud_segmentation import PointCloudSegmentationPipeline


def cloud(count: int, **fields) -> PointCloudData:
    return PointCloudData(np.random.default_rng(0).normal(size=(count, 3)), **fields)


@pytest.mark.parametrize("offset", [None, (100.0, 20.0, 3.0)])
@pytest.mark.parametrize("up_axis", ["x", "y", "z"])
def test_boxes_go_back_to_the_frame_of_the_scan(offset, up_axis):
    boxes = torch.tensor([[1.0, 2, 3, 0.5, 0.25, 2, 0.3], [-1, 0, 0.5, 1, 1, 1, 0]])
    data = cloud(4, offset=None if offset is None else np.array(offset))
    found = PointCloudObjectDetectionPipeline._in_frame(SimpleNamespace(up_axis="z"), boxes, Scan(data, None, up_axis))
    shift = np.zeros(3) if offset is None else np.array(offset)
    for box, own in zip(boxes.double(), found, strict=True):
        center = turn_up_axis(box[None, :3].numpy(), "z", up_axis)[0] + shift
        np.testing.assert_allclose(own["center"], center)
        corners = turn_up_axis(box_corners(box).numpy().reshape(8, 3), "z", up_axis) + shift
        np.testing.assert_allclose(own["corners"], corners)
        assert own["size"] == box[3:6].tolist() and own["heading"] == float(box[6])
        assert np.mean(own["corners"], axis=0) == pytest.approx(center)


def test_segments_are_sorted_by_their_size():
    labels, scores = np.array([4, 1, 4, 1, 4, 0]), np.array([0.5, 1, 0.25, 0, 0.75, 0.125])
    names = ["a", "b", "c", "d", "e"]
    found = PointCloudSegmentationPipeline._segments(None, labels, scores, names)
    assert [(one["label"], one["score"]) for one in found] == [("e", 0.5), ("b", 0.5), ("a", 0.125)]
    assert [one["mask"].tolist() for one in found] == [(labels == number).tolist() for number in (4, 1, 0)]
