"""HDF5 files of many clouds open as they lie, whoever wrote them; what cannot be one row a cloud is named."""

import h5py
import numpy as np
import pytest

from hf_any3d.data import load_point_dataset
from hf_any3d.data.dataset_names import find_dataset
from hf_any3d.training.sources import Task, find_source
from tests.errors import raises

CLOUDS = np.random.default_rng(0).normal(size=(4, 8, 3)).astype(np.float32)
LABELS = np.array([0, 2, 1, 2])
PARTS = np.arange(32).reshape(4, 8) % 5 - 1
SHAPES = ["bag", "bin", "box"]


def write(path, attributes=(), **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        file.attrs.update(attributes)


def modelnet(folder):
    """Several files a split, in lists of another machine, with the names of classes beside them."""
    column = LABELS[:, None].astype(np.uint8)
    for split, rows in (("train", [0, 1]), ("train", [2]), ("test", [3])):
        number = len([*folder.glob(f"ply_data_{split}*.h5")])
        name = f"ply_data_{split}{number}.h5"
        write(folder / name, data=CLOUDS[rows], label=column[rows], normal=-CLOUDS[rows], faceId=PARTS[rows])
        with open(folder / f"{split}_files.txt", "a") as file:
            file.write(f"data/modelnet40_ply_hdf5_2048/{name}\n")
    (folder / "shape_names.txt").write_text("bag\nbin\nbox\n")


def scanobjectnn(folder):
    for name, rows in (("training_objectdataset.h5", [0, 1, 2]), ("test_objectdataset.h5", [3])):
        write(folder / name, data=CLOUDS[rows], label=LABELS[rows], mask=PARTS[rows])


def scenes(folder):
    """Labels of points alone, names in the file, more channels than x, y and z."""
    for split, rows in (("train", [0, 1, 2]), ("val", [3])):
        data = np.concatenate([CLOUDS, CLOUDS], axis=2)[rows]
        write(folder / split / "room_1.hdf5", {"class_names": ["a", "b", "c", "d"]}, data=data, label=abs(PARTS)[rows])


def of_any_program(folder):
    names = np.array(SHAPES, dtype=h5py.string_dtype())
    for split, rows in (("train", [0, 1, 2]), ("test", [3])):
        write(folder / f"{split}.h5", Points=CLOUDS[rows], y=LABELS[rows].astype(float), classes=names)


LAYOUTS = {
    "modelnet": (modelnet, ("normals",), SHAPES, {"train": 3, "test": 1}),
    "scanobjectnn": (scanobjectnn, ("labels",), ["0", "1", "2"], {"train": 3, "test": 1}),
    "scenes": (scenes, (), None, {"train": 3, "validation": 1}),
    "any": (of_any_program, (), SHAPES, {"train": 3, "test": 1}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_open_as_they_lie(layout, tmp_path, cache_dir):
    make, columns, names, sizes = LAYOUTS[layout]
    make(tmp_path)
    assert find_dataset(str(tmp_path)).name == "hdf5"
    assert find_source(str(tmp_path)).task == (Task.CLASSIFICATION if names else Task.SEGMENTATION)
    splits = load_point_dataset("hdf5", data_dir=tmp_path, columns=columns, cache_dir=cache_dir)
    assert splits.num_rows == sizes
    rows = [row for split in splits.values() for row in split]
    np.testing.assert_array_equal(np.stack([row["points"] for row in rows])[:, :, :3], CLOUDS)
    if names:
        assert splits["train"].features["label"].names == names
        assert [row["label"] for row in rows] == LABELS.tolist()
    if "normals" in columns:
        np.testing.assert_array_equal(np.stack([row["normals"] for row in rows]), -CLOUDS)
    if layout == "scanobjectnn":
        np.testing.assert_array_equal(np.stack([row["labels"] for row in rows]), PARTS != -1)
    if layout == "scenes":
        assert rows[0]["points"].shape == (8, 6) and splits["train"].features["labels"].feature.names == list("abcd")
        np.testing.assert_array_equal(np.stack([row["labels"] for row in rows]), abs(PARTS))


def test_one_file_or_files_by_split_may_be_given(tmp_path, cache_dir):
    scanobjectnn(tmp_path)
    file = tmp_path / "test_objectdataset.h5"
    one = load_point_dataset("hdf5", data_dir=file, label_names=SHAPES, cache_dir=cache_dir)
    assert one.num_rows == {"test": 1} and one["test"].features["label"].names == SHAPES
    named = load_point_dataset("hdf5", data_files={"validation": str(file)}, cache_dir=cache_dir)
    assert named.num_rows == {"validation": 1}
    # Two sizes of clouds make one column.
    write(tmp_path / "larger.h5", data=np.ones((1, 9, 3)), label=[1])
    rows = load_point_dataset("hdf5", data_files=[file, tmp_path / "larger.h5"], split="train", cache_dir=cache_dir)
    assert [len(row["points"]) for row in rows] == [8, 9]


# What is wrong -> arrays of the file, and what the error names.
WRONG = {
    "a cloud a file": ({"data": CLOUDS[0]}, r"data has shape \(8, 3\)"),
    "channels first": ({"data": np.ones((2, 3, 64))}, r"data has shape \(2, 3, 64\)"),
    "other names": ({"vertices": CLOUDS}, r"no array of clouds, .*; found vertices \(4, 8, 3\)"),
    "one-hot labels": ({"data": CLOUDS, "label": np.eye(4)[:, :3]}, r"label has shape \(4, 3\)"),
    "fewer labels": ({"data": CLOUDS, "label": LABELS[:3]}, r"label has shape \(3,\)"),
    "no normals": ({"data": CLOUDS, "label": LABELS}, "no array of normals"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_a_row_a_cloud_is_named(what, tmp_path, cache_dir):
    arrays, text = WRONG[what]
    write(tmp_path / "bad.h5", **arrays)
    with pytest.raises(ValueError, match=f"bad.h5: {text}"):
        load_point_dataset("hdf5", data_dir=tmp_path, columns=["normals"], cache_dir=cache_dir)


def test_files_that_belong_to_no_split_or_to_several_data_sets_are_named(tmp_path):
    scanobjectnn(tmp_path / "variants")
    write(tmp_path / "variants" / "test_objectdataset_augmentedrot_scale75.h5", data=CLOUDS)
    with raises(ValueError, naming="objectdataset, objectdataset_augmentedrot_scale75"):
        load_point_dataset("hdf5", data_dir=tmp_path / "variants")
    modelnet(tmp_path / "rest")
    (tmp_path / "rest" / "ply_data_test0.h5").unlink()
    with raises(FileNotFoundError, naming="test_files.txt"):
        load_point_dataset("hdf5", data_dir=tmp_path / "rest")
    scanobjectnn(tmp_path / "more")
    write(tmp_path / "more" / "more.h5", data=CLOUDS)
    with raises(ValueError, naming="more.h5"):
        load_point_dataset("hdf5", data_dir=tmp_path / "more")
