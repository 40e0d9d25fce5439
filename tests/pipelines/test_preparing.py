"""How scans are prepared and answers are put together: what is drawn, cut and turned, without a model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.point_arrays import turn_up_axis
from hf_any3d.modeling.layers.boxes import box_corners
from hf_any3d.pipelines import point_cloud_object_detection as detection, point_cloud_segmentation as segmentation
from hf_any3d.pipelines.point_cloud_object_detection import PointCloudObjectDetectionPipeline, Scan
from hf_any3d.pipelines.point_cloud_segmentation import PointCloudSegmentationPipeline
from tests.errors import raises

USUAL = {
    "features": ("xyz",),
    "num_points": 10,
    "seed": None,
    "block_size": 1.5,
    "block_overlap": 0.25,
    "up_axis": "z",
}


def cloud(count: int, **fields) -> PointCloudData:
    return PointCloudData(np.random.default_rng(0).normal(size=(count, 3)), **fields)


def mesh(**fields) -> PointCloudData:
    return PointCloudData(np.eye(3), faces=np.array([[0, 1, 2]]), **fields)


@pytest.fixture
def cut(monkeypatch):
    """Put two blocks in the place of those of scenes; return how they were asked for."""
    asked = []

    def split_into_blocks(points, *given, **settings):
        asked.append((points, *given, settings))
        return np.array([[0, 2, 2], [1, 0, 1]])

    for module in (detection, segmentation):
        monkeypatch.setattr(module, "split_into_blocks", split_into_blocks)
    return asked


def prepared(given, processor=None, **settings):
    processor = SimpleNamespace(**USUAL | {"returns_num_points": True} | (processor or {}))
    pipe = SimpleNamespace(feature_extractor=processor, _category_number=lambda cloud, category: (cloud, category))
    return PointCloudSegmentationPipeline._cut(pipe, given, **settings)


@pytest.mark.parametrize(
    ("processor", "settings", "kept", "count"),
    [
        ({}, {}, 30, 10),
        ({"returns_num_points": False}, {}, 30, 10),
        ({"returns_num_points": False, "num_points": 99}, {}, 30, 30),
        ({"num_points": 99}, {}, 30, 99),
        ({}, {"max_points": 12}, 12, 10),
        ({"seed": 5}, {"max_points": 12}, 12, 10),
        ({}, {"max_points": 30}, 30, 10),
        ({"drawn_points": 3}, {}, 10, 10),
        ({"drawn_points": 3}, {"max_points": 7}, 7, 10),
        ({"drawn_points": 3}, {"max_points": 20}, 10, 10),
        ({"drawn_points": 3, "num_points": 30}, {}, 30, 30),
        ({"drawn_points": None}, {}, 30, 10),
    ],
)
def test_a_scene_is_thinned_turned_and_cut_into_blocks(processor, settings, kept, count, cut):
    data = cloud(30, colors=np.random.default_rng(1).random((30, 3)))
    scene = prepared(data, processor, category="ship", up_axis="x", votes=True, **settings)
    seed = processor.get("seed", 0)
    index = np.arange(30) if kept == 30 else np.sort(np.random.default_rng(seed).choice(30, kept, replace=False))
    np.testing.assert_array_equal(scene.data.points, data.points)
    assert (scene.part is scene.data) is (kept == 30)
    np.testing.assert_array_equal(scene.part.points, data.points[index])
    np.testing.assert_array_equal(scene.part.colors, data.colors[index])
    ((points, *given, more),) = cut
    np.testing.assert_array_equal(points, turn_up_axis(data.points[index], "x", "z"))
    assert given == [count, 1.5, 0.25] and more == {"up_axis": "z", "generator": seed}
    assert (scene.category, scene.stem, scene.up_axis, scene.votes) == ((data, "ship"), None, "x", True)
    assert scene.blocks.tolist() == [[0, 2, 2], [1, 0, 1]]


@pytest.mark.parametrize(
    ("processor", "drawn", "seed"),
    [
        ({}, 40, 0),
        ({"seed": 3}, 40, 3),
        ({"returns_num_points": False}, 40, 0),
        ({"returns_num_points": False, "num_points": 50}, 64, 0),
    ],
)
def test_a_mesh_is_sampled_four_times_as_densely_as_the_model_sees_it(processor, drawn, seed, cut, monkeypatch):
    monkeypatch.setattr(segmentation, "SURFACE_POINTS", 64)
    scene = prepared(mesh(), processor)
    np.testing.assert_array_equal(scene.data.points, mesh().sample_surface(drawn, seed).points)
    assert scene.up_axis is None and not scene.votes
    np.testing.assert_array_equal(cut[0][0], scene.data.points)


def test_a_file_gives_its_name(cut, tmp_path):
    np.save(tmp_path / "ship.npy", cloud(12).points)
    assert prepared(tmp_path / "ship.npy").stem == "ship"


@pytest.mark.parametrize(("size", "blocks"), [(None, 1), (1.5, 2)])
@pytest.mark.parametrize(("seed", "drawn"), [(None, 0), (4, 4)])
def test_a_scan_is_given_to_a_detector_in_blocks_of_its_own_points(size, blocks, seed, drawn, cut):
    seen = []

    class Processor(SimpleNamespace):
        def __call__(self, part, **settings):
            seen.append((part, settings))
            return {"points": len(part)}

    pipe = SimpleNamespace(feature_extractor=Processor(**USUAL | {"block_size": size, "seed": seed, "num_points": 50}))
    data = cloud(12)
    found = list(PointCloudObjectDetectionPipeline.preprocess(pipe, data, up_axis="y"))
    assert [settings for _, settings in seen] == [{"up_axis": "y", "return_tensors": "pt"}] * blocks
    assert [one["is_last"] for one in found] == [False, True][-blocks:] and found[0]["points"] == (
        12 if blocks == 1 else 2
    )
    assert [one["scan"] for one in found[:-1]] == [None] * (blocks - 1)
    assert found[-1]["scan"] == Scan(data, None, "y")
    if size is None:
        assert seen[0][0] is found[0]["scan"].data and not cut
        return
    ((points, *given, more),) = cut
    np.testing.assert_array_equal(points, turn_up_axis(data.points, "y", "z"))
    # No more points than there are, each once.
    assert given == [12, 1.5, 0.25] and more == {"up_axis": "z", "generator": drawn}
    for (part, _), index in zip(seen, ([0, 2], [0, 1]), strict=True):
        np.testing.assert_array_equal(part.points, data.points[index])


def test_a_mesh_is_sampled_for_a_detector_too(cut):
    pipe = SimpleNamespace(feature_extractor=lambda part, **_: {"points": part})
    vars(pipe.feature_extractor).update(USUAL | {"block_size": None, "seed": 2})
    (found,) = PointCloudObjectDetectionPipeline.preprocess(pipe, mesh())
    np.testing.assert_array_equal(found["points"].points, mesh().sample_surface(40, 2).points)
    assert found["scan"].up_axis == "z" and found["scan"].data is found["points"]


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


def test_scores_of_each_class_are_all_asked_for_unless_a_threshold_is_given(monkeypatch):
    asked = []

    def select(boxes, probabilities, objectness, rule, points):
        asked.append((boxes, probabilities, objectness, rule, points))
        return torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([0.25, 0.5])

    monkeypatch.setattr(detection, "select_detections", select)
    config = SimpleNamespace(id2label={0: "bed", 1: "sofa"})
    pipe = SimpleNamespace(model=SimpleNamespace(config=config), _in_frame=lambda boxes, scan: [*boxes[:, 0].tolist()])
    logits = torch.tensor([[[0.0, 1, 2]], [[3.0, 0, 0]]])
    boxes = torch.arange(14.0).view(2, 1, 7)
    outputs = [
        {
            "logits": logits[number][None],
            "boxes": boxes[number][None],
            "points": torch.full((1, 2, 3), number),
            "scan": s,
        }
        for number, s in ((0, None), (1, Scan(None, "a", "z")))
    ]
    answer = PointCloudObjectDetectionPipeline.postprocess(pipe, outputs, scores="per_class")
    # The highest score first; of both blocks.
    assert answer == [{"label": "sofa", "score": 0.5, "box": 0.0}, {"label": "bed", "score": 0.25, "box": 7.0}]
    ((own, probabilities, objectness, rule, points),) = asked
    expected = logits.flatten(0, 1).softmax(dim=1)
    torch.testing.assert_close(own, boxes.flatten(0, 1))
    torch.testing.assert_close(probabilities, expected[:, :2])
    torch.testing.assert_close(objectness, 1 - expected[:, 2])
    assert points[:, 0].tolist() == [0, 0, 1, 1] and rule.threshold == 0 and rule.scores == "per_class"
    PointCloudObjectDetectionPipeline.postprocess(pipe, outputs, scores="per_class", threshold=0.3)
    PointCloudObjectDetectionPipeline.postprocess(pipe, outputs)
    assert [one[3].threshold for one in asked] == [0, 0.3, 0.5]
    for name in ("logits", "boxes"):
        broken = [{**outputs[0], name: outputs[0][name] * torch.nan}, outputs[1]]
        with raises(ValueError, naming="the cloud of 'a'"):
            PointCloudObjectDetectionPipeline.postprocess(pipe, broken)


def test_segments_are_sorted_by_their_size():
    labels, scores = np.array([4, 1, 4, 1, 4, 0]), np.array([0.5, 1, 0.25, 0, 0.75, 0.125])
    names = ["a", "b", "c", "d", "e"]
    found = PointCloudSegmentationPipeline._segments(None, labels, scores, names)
    assert [(one["label"], one["score"]) for one in found] == [("e", 0.5), ("b", 0.5), ("a", 0.125)]
    assert [one["mask"].tolist() for one in found] == [(labels == number).tolist() for number in (4, 1, 0)]


@pytest.mark.parametrize("formats", [("ply",), ("obj", "html"), ("html",)])
@pytest.mark.parametrize("up_axis", [None, "x"])
def test_an_answer_is_written_in_the_colors_of_the_model(formats, up_axis, monkeypatch, tmp_path):
    files, pages = [], []
    monkeypatch.setattr(segmentation, "write_point_cloud", lambda *given: files.append(given))
    monkeypatch.setattr(segmentation, "write_point_cloud_page", lambda *given, **more: pages.append((given, more)))
    config = SimpleNamespace(label_colors=["#ff0000", "#0000ff"])
    pipe = SimpleNamespace(model=SimpleNamespace(config=config), feature_extractor=SimpleNamespace(up_axis="z"))
    data, labels = cloud(3, offset=np.array([1.0, 2, 3])), np.array([0, 1, 1])
    scene = segmentation._Scene(data, data, None, "a", np.zeros(0), up_axis)
    path = tmp_path / "new" / "room.1"
    PointCloudSegmentationPipeline._write(pipe, scene, labels, path, formats, ("wall", "floor"))
    assert path.parent.is_dir()
    assert [place.name for place, _ in files] == [f"room.1.{kind}" for kind in formats if kind != "html"]
    for _, colored in files:
        np.testing.assert_array_equal(colored.points, data.points)
        np.testing.assert_allclose(colored.colors, [[1, 0, 0], [0, 0, 1], [0, 0, 1]])
        assert colored.labels.tolist() == [0, 1, 1] and colored.offset.tolist() == [1, 2, 3]
    assert len(pages) == ("html" in formats)
    for (place, points, own, names), settings in pages:
        assert place == path.with_name("room.1.html") and names == ["wall", "floor"] and own is labels
        np.testing.assert_array_equal(points, data.points)
        np.testing.assert_allclose(settings.pop("palette"), [[1, 0, 0], [0, 0, 1]])
        assert settings == {"title": "room.1", "up_axis": up_axis or "z"}
