"""Labels of pipelines in copies of the files that went in."""

import shutil
import warnings

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import DgcnnForSemanticSegmentation, PointCloudProcessor, example_file, read_point_cloud
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.processing.voxels import VOXEL_PRESETS, PointTransformerV3Processor
from tests.data.files.builders import las
from tests.data.files.test_labels import scan
from tests.errors import raises
from tests.tiny_baselines import tiny_baseline
from tests.tiny_ptv3 import tiny_find3d

laspy = pytest.importorskip("laspy")
NAMES = ["ground", "High_Vegetation", "building"]


def segmenter(names, **config):
    model = tiny_baseline(DgcnnForSemanticSegmentation, id2label=dict(enumerate(names)), **config)
    # An untrained head has one answer for all points: its rows get a sum of 0, so that none is larger everywhere.
    with torch.no_grad():
        weight = model.segmenter.head.out.weight.normal_()
        weight -= weight.mean(dim=1, keepdim=True)
    processor = PointCloudProcessor(num_points=64, scale=None, block_size=5.0, up_axis="z")
    return pipeline("point-cloud-segmentation", model=model, feature_extractor=processor)


@pytest.fixture(scope="module")
def tiles():
    return segmenter(NAMES)


@pytest.fixture
def street(tmp_path):
    path = tmp_path / "street.laz"
    path.write_bytes(las(True, 6)[1])
    return path


def test_a_scan_comes_back_with_the_codes_of_its_classes(tiles, street, tmp_path):
    answer = tiles(str(street), write=tmp_path / "labeled.laz", write_scores=True)
    old, new = laspy.read(street), laspy.read(tmp_path / "labeled.laz")
    assert len(np.unique(answer["labels"])) > 1
    np.testing.assert_array_equal(new.classification, np.array([2, 5, 6])[answer["labels"]])
    np.testing.assert_array_equal(new["score"], answer["scores"])
    for name in set(old.point_format.dimension_names) - {"classification"}:
        np.testing.assert_array_equal(new[name], old[name])
    tiles(str(street), write=tmp_path / "mapped.las", classes={"ground": 11, "*": 64})
    assert set(np.unique(laspy.read(tmp_path / "mapped.las").classification)) <= {11, 64}
    tiles(str(street), write=tmp_path / "own.laz", field="part")
    new = laspy.read(tmp_path / "own.laz")
    np.testing.assert_array_equal(new["part"], answer["labels"])
    np.testing.assert_array_equal(new.classification, old.classification)


def test_codes_of_a_config_are_those_of_all_formats(street, tmp_path):
    segment = segmenter(["low", "high", "roof"], class_codes=[2, 5, 6])
    segment.save_pretrained(tmp_path / "model")
    segment = pipeline("point-cloud-segmentation", model=str(tmp_path / "model"))
    write_point_cloud(tmp_path / "a.ply", read_point_cloud(street))
    for name in (street.name, "a.ply"):
        answer = segment(str(tmp_path / name), write=tmp_path / f"new_{name}")
        expected = np.array([2, 5, 6])[answer["labels"]]
        np.testing.assert_array_equal(read_point_cloud(tmp_path / f"new_{name}").labels, expected)


def test_what_a_copy_keeps_is_not_told_as_left_out(tiles, tmp_path):
    # With dimensions of extra bytes, which a cloud cannot hold
    (tmp_path / "a.las").write_bytes(scan(7, False))
    with pytest.warns(UserWarning, match="ignored.*height"):
        tiles(str(tmp_path / "a.las"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tiles(str(tmp_path / "a.las"), write=tmp_path / "b.las")
    assert not [each for each in told if "ignored" in str(each.message)]
    assert "height" in laspy.read(tmp_path / "b.las").point_format.extra_dimension_names


def test_several_files_are_copied_into_a_folder(tiles, street, tmp_path):
    shutil.copy(street, tmp_path / "second.laz")
    tiles([str(street), str(tmp_path / "second.laz")], write=tmp_path / "labeled")
    assert sorted(path.name for path in (tmp_path / "labeled").iterdir()) == ["second.laz", "street.laz"]


def test_what_cannot_be_written_is_said_before_the_model_runs(street, tmp_path):
    unnamed = segmenter(["a", "b", "c"])
    unnamed.model.forward = None  # would be an error of its own
    cases = [
        (street, {"write": tmp_path / "b.laz"}, "'a', 'b', 'c'"),
        (street, {"write": tmp_path / "b.laz", "classes": {"a": 2}}, "'b', 'c'"),
        (street, {"write": tmp_path / "b.laz", "classes": "d=2"}, "'d'"),
        (street, {"write": tmp_path / "b.laz", "classes": "a=2,*=300"}, "class 300"),
        (street, {"write": tmp_path / "b.ply", "field": "part"}, "b.ply"),
        (street, {"write": street, "field": "part"}, "is the input file"),
        (street, {"write": tmp_path / "b.laz", "field": "part", "write_unknown": True}, "write_unknown"),
        (street, {"field": "part"}, "write is None"),
        (np.zeros((9, 3)), {"write": tmp_path / "b.laz"}, "write="),
    ]
    for cloud, arguments, naming in cases:
        with raises(ValueError, naming=naming):
            unnamed(cloud if isinstance(cloud, np.ndarray) else str(cloud), **arguments)
    assert not list(tmp_path.glob("b.*"))


def test_vertices_and_faces_of_a_mesh_get_the_class_of_the_nearest_sample(tiles, tmp_path):
    answer = tiles(str(example_file("chair.ply")), write=tmp_path / "chair.ply")
    old, new = read_point_cloud(example_file("chair.ply")), read_point_cloud(tmp_path / "chair.ply")
    np.testing.assert_array_equal(new.points, old.points)
    np.testing.assert_array_equal(new.faces, old.faces)
    distances = ((old.points[:, None] - answer["points"][None]) ** 2).sum(axis=2)
    nearest = answer["labels"][distances.argmin(axis=1)]
    assert (new.labels == nearest).mean() > 0.99  # two samples may be equally near
    header = (tmp_path / "chair.ply").read_bytes().split(b"end_header")[0]
    # Of vertices and of faces
    assert b"property int scalar_Classification\n" in header and b"property int label\n" in header


def test_points_that_were_found_by_name_are_written_by_name(tmp_path):
    processor = PointTransformerV3Processor(**VOXEL_PRESETS["find3d"] | {"drawn_points": 300})
    segment = pipeline("zero-shot-point-cloud-segmentation", model=tiny_find3d(), feature_extractor=processor)
    generator = np.random.default_rng(0)
    normals = generator.normal(size=(400, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    cloud = PointCloudData(generator.normal(size=(400, 3)) * [1, 0.3, 0.5], generator.random((400, 3)), normals)
    write_point_cloud(tmp_path / "a.ply", cloud)
    answer = segment(
        str(tmp_path / "a.ply"),
        candidate_labels=["seat", "leg"],
        write=tmp_path / "b.ply",
        classes={"seat": 7, "leg": 9, "none": 0},
    )
    new = read_point_cloud(tmp_path / "b.ply")
    np.testing.assert_array_equal(new.labels, np.array([7, 9, 0])[answer["labels"]])
    np.testing.assert_array_equal(new.normals, read_point_cloud(tmp_path / "a.ply").normals)
