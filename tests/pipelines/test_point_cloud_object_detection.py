"""`pipeline("point-cloud-object-detection")`: boxes in the frame of what was given."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import PointCloudProcessor
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.modeling.layers.boxes import box_corners
from tests.common.case import varied_clouds
from tests.errors import raises
from tests.tiny_detr3d import BOX_FRAME, answering_detector

NAMES = ["chair", "lamp", "table"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved detector and its processor."""
    directory = tmp_path_factory.mktemp("detector")
    model = answering_detector()
    model.save_pretrained(directory)
    PointCloudProcessor(num_points=40, **BOX_FRAME).save_pretrained(directory)
    return str(directory), model


@pytest.fixture(scope="module")
def detect(saved):
    return pipeline("point-cloud-object-detection", model=saved[0])


def cloud(points: int = 60, seed: int = 2) -> np.ndarray:
    return varied_clouds(1, points, seed=seed)[0].numpy()


def test_answers_are_those_of_processor_and_model(saved, detect):
    directory, model = saved
    processor = PointCloudProcessor.from_pretrained(directory)
    inputs = processor(cloud())
    with torch.no_grad():
        output = model(**inputs)
    expected = processor.post_process_object_detection(output, threshold=0.1)[0]
    found = detect(cloud(), threshold=0.1)
    assert len(found) == len(expected["scores"]) > 1
    assert [one["label"] for one in found] == [NAMES[number] for number in expected["labels"]]
    assert [one["score"] for one in found] == pytest.approx(expected["scores"].tolist(), abs=1e-5)
    assert sorted(expected["scores"].tolist(), reverse=True) == expected["scores"].tolist()
    for one, box in zip(found, expected["boxes"], strict=True):
        made = [*one["box"]["center"], *one["box"]["size"], one["box"]["heading"]]
        assert made == pytest.approx(box.tolist(), abs=1e-4)
        np.testing.assert_allclose(one["box"]["corners"], box_corners(box), atol=1e-4)


@pytest.mark.parametrize("offset", [np.zeros(3), np.array([100.0, 20.0, 3.0])])
@pytest.mark.parametrize("up_axis", ["x", "y"])
def test_boxes_are_in_the_frame_of_a_file_with_another_up_axis(detect, up_axis, offset):
    upright = cloud()
    turned = PointCloudData(turn_up_axis(upright, "z", up_axis), offset=offset)
    expected, found = detect(upright, threshold=0.1), detect(turned, threshold=0.1, up_axis=up_axis)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        corners = turn_up_axis(np.asarray(other["box"]["corners"]), "z", up_axis) + offset
        assert np.mean(one["box"]["corners"], axis=0) == pytest.approx(one["box"]["center"])
        np.testing.assert_allclose(one["box"]["corners"], corners, atol=1e-4)
        assert one["box"]["size"] == pytest.approx(other["box"]["size"], abs=1e-4)
        assert one["box"]["heading"] == pytest.approx(other["box"]["heading"], abs=1e-4)


def test_thresholds_and_numbers_of_boxes_are_kept(detect):
    everything = detect(cloud(), threshold=0.0, nms=None)
    assert len(everything) == 8
    assert len(detect(cloud(), threshold=0.0, nms=None, top_k=2)) == 2
    limit = everything[3]["score"]
    assert len(detect(cloud(), threshold=limit, nms=None)) == 4
    assert detect(cloud(), threshold=1.0) == []


def test_large_scenes_are_read_in_blocks(saved):
    processor = PointCloudProcessor(num_points=40, block_size=1.5, **BOX_FRAME)
    detect = pipeline("point-cloud-object-detection", model=saved[1], feature_extractor=processor)
    scene = np.concatenate([cloud(seed=3), cloud(seed=4) + np.float32([6, 0, 0])])
    found = detect(scene, threshold=0.0, nms=None)
    assert len(found) > 8 and len(found) % 8 == 0
    places = np.array([one["box"]["center"] for one in found])
    assert (places[:, 0] < 2).any() and (places[:, 0] > 4).any()


def test_clouds_of_different_sizes_are_masked(saved):
    processor = PointCloudProcessor(num_points=40, small_clouds="masked", **BOX_FRAME)
    detect = pipeline("point-cloud-object-detection", model=saved[1], feature_extractor=processor)
    clouds = [cloud(60), cloud(23), cloud(9)]
    made = processor(clouds)
    assert made["points"].shape == (3, 40, 3) and made["points_mask"].sum(dim=1).tolist() == [40, 23, 9]
    together = detect(clouds, threshold=0.0, nms=None, batch_size=3)
    for own, answer in zip(clouds, together, strict=True):
        for one, other in zip(answer, detect(own, threshold=0.0, nms=None), strict=True):
            assert one["box"]["center"] == pytest.approx(other["box"]["center"], abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"threshold": 2}, ValueError, "threshold=2; expected 0 to 1"),
        ({"nms": "3d"}, ValueError, "nms='3d'; expected one of"),
        ({"up_axis": "up"}, ValueError, "up_axis is 'up'; expected one of"),
        ({"top": 3}, TypeError, "unknown arguments: top; expected up_axis, estimate_normals, threshold"),
    ],
)
def test_wrong_arguments_are_named(detect, settings, error, match):
    with pytest.raises(error, match=match):
        detect(cloud(), **settings)


def test_processors_that_move_clouds_are_refused(saved):
    with raises(ValueError, naming="center=True, scale='unit_sphere'; expected center=False"):
        pipeline("point-cloud-object-detection", model=saved[1], feature_extractor=PointCloudProcessor())
