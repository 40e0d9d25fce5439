"""The function for other programs: arrays in, labels, scores, names and colors out, as the pipelines give them."""

import numpy as np
import pytest
from transformers import pipeline

from hf_any3d import PointTransformerV3Processor, array_segmentation, segment
from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3ForPointCloudClassification,
    PointTransformerV3ForPointCloudSegmentation,
)
from hf_any3d.processing.voxels import VOXEL_PRESETS
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
    with pytest.raises(ValueError, match="labels are missing"):
        segment(**row, normals=row["points"], model=tmp_path)
    opened = pipeline("zero-shot-point-cloud-segmentation", model=str(tmp_path), candidate_labels=["seat", "leg"])
    again = segment(**row, normals=row["points"], model=opened)
    assert again.names == found.names and np.array_equal(again.labels, found.labels)


def test_wrong_arguments_are_refused(scenes, tmp_path):
    row = cloud()
    for arguments, message in (
        ({**row, "colors": row["colors"][:5]}, "colors ha"),
        ({**row, "labels": ["seat"]}, "labels=.'seat'.; expected None, as the model has labels of its own"),
        ({"points": row["points"][:, :2], "colors": row["colors"]}, "points ha"),
    ):
        with pytest.raises(ValueError, match=message):
            segment(**arguments, model=scenes)
    tiny_ptv3(PointTransformerV3ForPointCloudClassification).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model for point-cloud-classification; expected one for point-cloud-segm"):
        segment(**row, model=tmp_path)
