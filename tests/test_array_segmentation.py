"""The function for other programs: arrays in, labels, scores, names and colors out, as the pipelines give them."""

from types import SimpleNamespace

import numpy as np
import pytest
from transformers import pipeline

from hf_any3d import PointTransformerV3Processor, array_segmentation, segment
from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3ForPointCloudClassification,
    PointTransformerV3ForPointCloudSegmentation,
)
from hf_any3d.processing.voxels import VOXEL_PRESETS
from tests.errors import raises
from tests.tiny_ptv3 import tiny_find3d, tiny_ptv3


def cloud(points: int = 300) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {"points": generator.normal(size=(points, 3)), "colors": generator.random((points, 3))}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scenes")
    names = {"id2label": {0: "floor", 1: "wall", 2: "chair"}, "label_colors": ["#ff0000", "#00ff00", "#0000ff"]}
    tiny_ptv3(PointTransformerV3ForPointCloudSegmentation, **names).save_pretrained(directory)
    PointTransformerV3Processor(features=["xyz", "rgb"], grid_size=0.05, views=[[1, 0], [1, 180]]).save_pretrained(
        directory
    )
    return str(directory)


def test_labels_are_those_of_the_pipeline_with_names_and_colors(scenes):
    row = cloud()
    found = segment(**row, model=scenes)
    answer = pipeline("point-cloud-segmentation", model=scenes)(row)
    np.testing.assert_array_equal(found.labels, answer["labels"])
    np.testing.assert_array_equal(found.scores, answer["scores"])
    assert found.names == ("floor", "wall", "chair")
    np.testing.assert_array_equal(found.colors, np.eye(3))
    same = segment(row["points"], (row["colors"] * 255).round().astype(np.uint8), model=scenes)
    assert (same.labels == found.labels).mean() > 0.95
    voted = segment(**row, model=scenes, votes=True)
    expected = pipeline("point-cloud-segmentation", model=scenes)(row, votes=True)["labels"]
    np.testing.assert_array_equal(voted.labels, expected)
    # In blocks too.
    pipe = pipeline("point-cloud-segmentation", model=scenes)
    pipe.feature_extractor.num_points = 100
    assert len(segment(**row, model=pipe).labels) == 300


def test_models_stay_open_and_a_directory_that_changes_is_opened_again(tmp_path, monkeypatch):
    monkeypatch.setattr(array_segmentation, "_open", type(array_segmentation._open)())
    model = tiny_ptv3(PointTransformerV3ForPointCloudSegmentation)
    processor = PointTransformerV3Processor(features=["xyz", "rgb"], grid_size=0.05)
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    segment(**cloud(), model=tmp_path)
    (first,) = array_segmentation._open.values()
    segment(**cloud(), model=tmp_path)
    assert list(array_segmentation._open.values()) == [first]
    model.save_pretrained(tmp_path)
    segment(**cloud(), model=tmp_path)
    assert list(array_segmentation._open.values())[-1] is not first
    segment(**cloud(), model=tmp_path, device="cpu")
    assert len(array_segmentation._open) == 2


def test_parts_are_found_by_name(tmp_path):
    tiny_find3d().save_pretrained(tmp_path)
    PointTransformerV3Processor(**VOXEL_PRESETS["find3d"]).save_pretrained(tmp_path)
    row = cloud()
    found = segment(**row, normals=row["points"], model=tmp_path, labels=["seat", "leg"])
    assert found.names == ("seat", "leg", "none") and found.labels.max() < 3 and len(found.colors) == 3
    with pytest.raises(ValueError, match="labels is missing; expected names of parts"):
        segment(**row, normals=row["points"], model=tmp_path)


def test_wrong_arguments_are_refused(scenes, tmp_path):
    row = cloud()
    for arguments, message in (
        ({**row, "colors": row["colors"][:5]}, "colors has 5 rows; expected 300"),
        ({**row, "labels": ["seat"]}, "labels=.'seat'.; expected None, as the model has labels of its own"),
        ({"points": row["points"][:, :2], "colors": row["colors"]}, "points have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            segment(**arguments, model=scenes)
    with pytest.raises(TypeError, match="model is a int; expected a name"):
        segment(**row, model=3)
    tiny_ptv3(PointTransformerV3ForPointCloudClassification).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model for point-cloud-classification; expected one for point-cloud-segm"):
        segment(**row, model=tmp_path)


class Asked:
    """Stands in for an open pipeline, and keeps what it is asked."""

    def __init__(self, task="point-cloud-segmentation"):
        self.task, self.asked = task, []
        self.model = SimpleNamespace(config=SimpleNamespace(label_colors=["#ff0000", "#0000ff"]))

    def label_names(self, *labels):
        self.asked.append(labels)
        return ["a", "b"]

    def __call__(self, row, **given):
        self.asked.append((list(row), given))
        return {"labels": np.array([1, 0]), "scores": np.array([0.5, 1.0]), "more": 3}


def test_every_argument_reaches_an_open_pipeline():
    pipe, points = Asked(), np.eye(3)[:2]
    found = segment(points, model=pipe)
    assert pipe.asked == [(), (["points"], {"progress": False})] and type(found.names) is tuple
    np.testing.assert_array_equal(found.colors, np.float32([[1, 0, 0], [0, 0, 1]]))
    assert (found.labels.tolist(), found.scores.tolist(), found.names) == ([1, 0], [0.5, 1.0], ("a", "b"))
    assert found.colors.dtype == np.float32
    more = {"colors": points, "normals": points, "intensity": [1, 2], "ring": [3, 4]}
    pipe.asked.clear()
    segment(points, model=pipe, category="c", up_axis="z", max_points=9, votes=True, **more)
    settings = {"category": "c", "up_axis": "z", "max_points": 9, "votes": True}
    assert pipe.asked[1] == (["points", *more], {"progress": False, **settings})
    named = Asked("zero-shot-point-cloud-segmentation")
    segment(points, model=named, labels="a, b")
    assert named.asked == [("a, b",), (["points"], {"progress": False, "candidate_labels": "a, b"})]
    with raises(ValueError, naming="device='cpu' with an open pipeline"):
        segment(points, model=pipe, device="cpu")
    for name in more:
        with pytest.raises(ValueError, match=f"^{name} has 1 rows; expected 2, one for each point$"):
            segment(points, model=pipe, **more | {name: more[name][:1]})


def test_the_two_models_that_were_used_last_stay_open(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(array_segmentation, "_open", type(array_segmentation._open)())
    config = SimpleNamespace(architectures=["ActForSemanticSegmentation"])
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda name: config)
    monkeypatch.setattr("transformers.pipeline", lambda *given, **more: opened.append((*given, more)) or len(opened))
    for name in ("me/a", "me/b", "me/a", "me/c", "me/a", "me/b"):
        array_segmentation._opened(name, "cpu")
    settings = {"device": "cpu", "trust_remote_code": False}
    assert opened == [("point-cloud-segmentation", {"model": f"me/{name}", **settings}) for name in "abcb"]
    assert array_segmentation._opened("me/b", "cuda") == 5 and len(array_segmentation._open) == 2
    # A directory is known by its files.
    (tmp_path / "in").mkdir()
    (tmp_path / "a").write_text("1")
    first = array_segmentation._opened(tmp_path, None)
    assert array_segmentation._opened(str(tmp_path), None) == first
    (tmp_path / "b").touch()
    assert array_segmentation._opened(tmp_path, None) == first + 1
