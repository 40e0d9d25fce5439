"""SemanticKITTI and nuScenes-lidarseg: classes, splits, and files that do not fit each other."""

import json

import numpy as np
import pytest

from hf_any3d import load_point_dataset
from hf_any3d.conversions.point_transformer_v3.benchmarks import BENCHMARKS
from hf_any3d.data.catalog import nuscenes, semantickitti
from hf_any3d.data.parquet.rows import IGNORED
from hf_any3d.training.segmentation_rows import class_weights
from tests.data.catalog.street_trees import write_nuscenes, write_semantickitti
from tests.data.files.builders import sweep_rows
from tests.errors import raises


@pytest.fixture
def kitti(tmp_path, cache_dir):
    root = write_semantickitti(tmp_path / "data")
    return root, {"data_dir": root, "cache_dir": cache_dir, "verify": False}


@pytest.fixture
def mini(tmp_path, cache_dir):
    root = write_nuscenes(tmp_path / "data")
    return root, {"data_dir": root, "cache_dir": cache_dir, "verify": False, "version": "v1.0-mini"}


def test_sweeps_of_kitti_have_intensities_and_classes(kitti):
    root, options = kitti
    splits = load_point_dataset("semantickitti", **options)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "validation": 2}
    row = splits["validation"][1]
    assert (row["sequence"], row["sweep"]) == ("08", "000001")
    np.testing.assert_array_equal(row["points"], sweep_rows(4, 30)[:, :3])
    np.testing.assert_array_equal(row["intensity"], sweep_rows(4, 30)[:, 3])
    names = splits["train"].features["labels"].feature.names
    found = [None if label == IGNORED else names[label] for label in np.asarray(row["labels"])[:6]]
    assert found == [None, "car", "car", "road", "road", "traffic-sign"] and len(names) == 19
    assert class_weights(splits["train"]["labels"], 19, 1.0).count_nonzero() == 3
    streamed = load_point_dataset("semantickitti", **options, streaming=True, split="train")
    assert [one["sweep"] for one in streamed] == ["000000", "000001"]
    assert load_point_dataset("semantickitti", **{**options, "data_dir": root / "dataset"})["train"].num_rows == 2


def test_every_number_of_kitti_leads_to_one_class_or_none():
    assert sorted(set(semantickitti.LEARNING_MAP.values()) - {IGNORED}) == list(range(19))
    assert len(semantickitti.LEARNING_MAP) == 34
    assert semantickitti.DATASET.expected_counts["default"] == {"train": 19130, "validation": 4071}


def test_an_incomplete_kitti_is_refused_with_what_is_missing(kitti):
    root, options = kitti
    with raises(FileNotFoundError, naming="00/velodyne/000002.bin"):
        load_point_dataset("semantickitti", **{**options, "verify": True})
    sequence = root / "dataset" / "sequences" / "00"
    (sequence / "labels" / "000000.label").unlink()
    with raises(FileNotFoundError, naming="missing 00/labels/000000.label"):
        load_point_dataset("semantickitti", **options)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (bytes(116), "116 bytes; expected 4 for each of 30 points"),
        (b"\7\0\0\0" * 30, "class 7; expected one of 10, 252"),
    ],
)
def test_labels_of_kitti_that_do_not_fit_are_refused_or_left_out(content, why, kitti, caplog):
    root, options = kitti
    (root / "dataset" / "sequences" / "00" / "labels" / "000001.label").write_bytes(content)
    with pytest.raises(ValueError, match=f"000001.label: {why}"):
        load_point_dataset("semantickitti", **options)
    assert len(load_point_dataset("semantickitti", **options, on_error="skip")["train"]) == 1


def test_sweeps_of_nuscenes_have_the_classes_of_their_categories(mini):
    splits = load_point_dataset("nuscenes", **mini[1])
    assert {split: list(rows["scene"]) for split, rows in splits.items()} == {
        "train": ["scene-0061", "scene-0061"],
        "validation": ["scene-0103"],
    }
    assert list(splits["train"]["timestamp"]) == [8, 9]  # in the order of time
    row = splits["validation"][0]
    np.testing.assert_array_equal(row["points"], sweep_rows(5, 30)[:, :3])
    np.testing.assert_array_equal(row["intensity"], sweep_rows(5, 30)[:, 3])
    np.testing.assert_array_equal(row["ring"], sweep_rows(5, 30)[:, 4])
    names = splits["train"].features["labels"].feature.names
    found = [None if label == IGNORED else names[label] for label in np.asarray(row["labels"])[:6]]
    assert found == [None, None, "car", "bus", "driveable_surface", None]
    assert names == BENCHMARKS["nuscenes"].classes  # of the published model


def test_all_categories_of_nuscenes_lead_to_16_classes_or_none():
    assert len({**nuscenes.CATEGORIES, **dict.fromkeys(nuscenes.NOT_JUDGED)}) == 32
    assert set(nuscenes.CATEGORIES.values()) == set(nuscenes.CLASS_NAMES)


def test_tables_of_nuscenes_that_do_not_fit_are_refused(mini, tmp_path):
    root, options = mini
    folder = root / "v1.0-mini"

    (tmp_path / "secret.bin").write_bytes(bytes(30))
    for table, changes in (
        ("category", {"index": None}),
        ("category", {"name": "vehicle.boat"}),
        ("category", {"index": 9}),
        ("lidarseg", {"sample_data_token": "z"}),
        ("sample", {"scene_token": "z"}),
        ("lidarseg", {"filename": 3}),
        ("lidarseg", {"filename": "../secret.bin"}),
        ("lidarseg", {"filename": "/no/such/file"}),
        ("lidarseg", {"filename": str(tmp_path / "secret.bin")}),
    ):
        path = folder / f"{table}.json"
        before = path.read_text()
        entries = json.loads(before)
        path.write_text(json.dumps([{**entries[0], **changes}, *entries[1:]]))
        with pytest.raises(ValueError):
            load_point_dataset("nuscenes", **options)
        path.write_text(before)
    with pytest.raises(ValueError):
        load_point_dataset("nuscenes", **{**options, "verify": True})
    (root / "lidarseg" / "v1.0-mini" / "a_lidarseg.bin").write_bytes(bytes(29))
    with pytest.raises(ValueError):
        load_point_dataset("nuscenes", **options)
    (root / "lidarseg" / "v1.0-mini" / "a_lidarseg.bin").unlink()
    with pytest.raises(FileNotFoundError):
        load_point_dataset("nuscenes", **options)
    with pytest.raises(ValueError):
        load_point_dataset("nuscenes", **{**options, "version": "v2"})


def test_scenes_of_other_names_are_for_training(mini):
    root, options = mini
    path = root / "v1.0-mini" / "scene.json"
    scenes = json.loads(path.read_text())
    scenes[0]["name"] = "campus, 2nd drive"
    path.write_text(json.dumps(scenes))
    splits = load_point_dataset("nuscenes", **options)
    assert {*splits["train"]["scene"]} == {"campus, 2nd drive"} and {*splits["validation"]["scene"]} == {"scene-0103"}
