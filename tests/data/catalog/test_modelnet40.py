import pickle

import numpy as np
import pytest
from datasets import Array2D, Value

from hf_any3d import load_point_dataset
from hf_any3d.data.catalog import modelnet40
from tests.data.catalog.modelnet_trees import MODELS, label, table, write_hdf5, write_meshes, write_pickle, write_text
from tests.errors import raises


@pytest.fixture
def load(tmp_path, cache_dir):
    def load(**options):
        options = {"data_dir": tmp_path / "data", "verify": False, **options}
        return load_point_dataset("modelnet40", cache_dir=cache_dir, **options)

    (tmp_path / "data").mkdir()
    return load


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def assert_rows_of(splits, num_points, normals=False, with_file=True):
    for split, models in MODELS.items():
        rows = splits[split]
        assert rows.features["label"].names == list(modelnet40.CLASS_NAMES)
        assert rows["label"][:].tolist() == [label(model) for model in models]
        assert ("normals" in rows.column_names) == normals and ("file" in rows.column_names) == with_file
        if with_file:
            assert rows.features["file"] == Value("string") and rows["file"][:].tolist() == models
        for row, model in zip(rows, models, strict=True):
            np.testing.assert_array_equal(row["points"], table(model, num_points)[:, :3].astype(np.float32))
            if normals:
                np.testing.assert_array_equal(row["normals"], table(model, num_points)[:, 3:].astype(np.float32))


@pytest.mark.parametrize("normals", [False, True])
def test_text_has_points_normals_and_the_order_of_the_lists(load, root, normals):
    write_text(root)
    splits = load(normals=normals)
    assert_rows_of(splits, 40, normals)
    assert splits["train"].features["points"] == Array2D((None, 3), "float32")


@pytest.mark.slow
@pytest.mark.parametrize("normals", [False, True])
def test_hdf5_files_follow_each_other_by_number(load, root, normals):
    write_hdf5(root)
    splits = load(normals=normals)
    assert_rows_of(splits, 2048, normals, with_file=False)
    assert splits["train"].features["points"] == Array2D((2048, 3), "float32")


@pytest.mark.parametrize("normals", [False, True])
def test_the_pickled_cache_is_read(load, root, normals):
    write_pickle(root, num_points=40)
    splits = load(normals=normals, num_points=40)
    assert_rows_of(splits, 40, normals, with_file=False)
    assert splits["train"].features["points"] == Array2D((40, 3), "float32")


def test_the_pickled_cache_of_8192_points_is_the_usual_one(load, root):
    write_pickle(root)
    with raises(ValueError, naming="train_8192pts_fps"):
        load()


@pytest.mark.slow
def test_meshes_are_sampled_on_their_surface_also_with_glued_headers(load, root):
    write_meshes(root)
    splits = load(num_points=100, normals=True)
    for split in MODELS:
        rows = splits[split]
        assert sorted(rows["file"][:]) == sorted(MODELS[split])
        assert rows["label"][:].tolist() == [label(name) for name in rows["file"][:]]
        assert rows["points"][:].shape == (len(MODELS[split]), 100, 3)
        for row in rows:
            assert (row["points"][:, 2] == 0).all() and 0 <= row["points"].min() and row["points"].max() <= 2
            assert np.abs(row["normals"]).tolist() == [[0, 0, 1]] * 100
    # Drawn by the name of the model and the seed.
    assert not np.array_equal(splits["train"][0]["points"], splits["train"][1]["points"])
    np.testing.assert_array_equal(load(num_points=100)["train"]["points"][:], splits["train"]["points"][:])
    assert not np.array_equal(load(num_points=100, seed=1)["train"]["points"][:], splits["train"]["points"][:])
    assert load()["test"].features["points"] == Array2D((10_000, 3), "float32")


@pytest.mark.slow
def test_text_is_the_default_of_several_layouts(load, root):
    write_text(root)
    write_pickle(root, num_points=40)
    write_hdf5(root)
    assert "file" in load()["test"].column_names
    assert load(layout="h5")["test"][0]["points"].shape == (2048, 3)
    assert load(layout="pickle", num_points=40)["test"].column_names == ["points", "label"]
    with raises(FileNotFoundError, naming="ModelNet40"):
        load(layout="off")


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_text, write_hdf5, write_meshes])
def test_the_folder_itself_may_be_given(load, root, write):
    folder = write(root)
    assert load(data_dir=folder).num_rows == {"train": 5, "test": 3}


def test_a_malformed_line_is_named(load, root):
    folder = write_text(root)
    path = folder / "airplane" / "airplane_0001.txt"
    path.write_text(path.read_text() + "0.1,0.2,0.3\n")
    with raises(ValueError, naming="airplane_0001.txt"):
        load()


def test_class_names_in_another_order_are_refused(load, root):
    names = write_text(root) / "modelnet40_shape_names.txt"
    names.write_text(names.read_text().replace("bathtub\nbed\n", "bed\nbathtub\n"))
    with raises(ValueError, naming="modelnet40_shape_names.txt"):
        load()


@pytest.mark.parametrize("line", ["../../etc/passwd", "spaceship_0001", "chair"])
def test_a_listed_name_without_a_known_class_is_refused(load, root, line):
    (write_text(root) / "modelnet40_test.txt").write_text(f"airplane_0627\n{line}\n")
    with pytest.raises(ValueError, match=f"modelnet40_test.txt: line 2 is '{line}'; expected a class and a number"):
        load()


def test_a_missing_part_of_the_hdf5_files_is_named(load, root):
    (write_hdf5(root) / "ply_data_train0.h5").unlink()
    with raises(FileNotFoundError, naming="ply_data_train0.h5"):
        load()


@pytest.mark.parametrize("content", [[1], {"a": 1}, [[np.zeros((3, 6))], []], [[np.zeros((3, 4))], [0]], [["x"], [0]]])
def test_pickles_with_other_content_are_refused(load, root, content):
    folder = write_pickle(root, num_points=40)
    (folder / "modelnet40_test_40pts_fps.dat").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError):
        load(num_points=40)


def test_class_names_are_the_forty_in_alphabetical_order():
    assert len(modelnet40.CLASS_NAMES) == 40 and list(modelnet40.CLASS_NAMES) == sorted(modelnet40.CLASS_NAMES)


@pytest.mark.parametrize("write", [write_text, write_pickle, write_hdf5, write_meshes])
def test_a_part_of_the_files_is_read_if_that_is_said(load, root, write):
    options = {"num_points": 40} if write == write_pickle else {}
    folder = write(root, **options)
    for path in [*folder.rglob("*train*.*"), *folder.glob("*/train/*"), *folder.rglob("*_00??.txt")]:
        path.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        load(**options)
    splits = load(partial=True, verify=True, **options)
    assert list(splits) == ["test"]
    assert sorted(splits["test"]["label"][:].tolist()) == sorted(label(model) for model in MODELS["test"])


def test_numbers_of_the_names_tell_the_official_split(load, root):
    assert sum(modelnet40.TRAIN_MODELS) == modelnet40.DATASET.expected_counts["txt"]["train"]
    folder = write_text(root)
    listed = load()
    for path in folder.glob("modelnet40_*.txt"):
        path.unlink()
    there = load(partial=True)
    for split in MODELS:
        assert sorted(there[split]["file"][:]) == sorted(listed[split]["file"][:])


def test_without_any_model_a_part_is_refused_too(load, root):
    folder = write_text(root)
    for path in folder.glob("*/*.txt"):
        path.unlink()
    (folder / "airplane" / "airplane_9999.txt").mkdir()
    with raises(FileNotFoundError, naming="no file of modelnet40"):
        load(partial=True)
