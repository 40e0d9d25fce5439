import json
import os
import pickle

import numpy as np
import pytest
from datasets import Array2D

from hf_any3d import load_point_dataset
from hf_any3d.data.catalog import modelnet40, modelnet40_fewshot
from tests.data.catalog.modelnet_trees import label, table, write_text
from tests.errors import raises

ORIGINALS = [8, 0, 39, 12, 30]  # classes of ModelNet40 by the fold's labels


def fold(way=5, shot=10, seed=0, num_points=6):
    """A fold as in the published pickles: points and normals, new label, label of ModelNet40."""
    generator = np.random.default_rng(seed)
    made = {}
    for split, count in (("train", shot), ("test", 20)):
        labels = generator.permutation(np.repeat(np.arange(way), count))
        made[split] = [
            (generator.uniform(-1, 1, (num_points, 6)).astype(np.float32), int(new), np.int64(ORIGINALS[new]))
            for new in labels
        ]
    return made


@pytest.fixture
def write(tmp_path):
    def write(value, name="3.pkl"):
        path = tmp_path / "ModelNetFewshot" / "5way_10shot" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(value) if name.endswith("pkl") else json.dumps(value).encode())
        return path

    return write


@pytest.fixture
def load(tmp_path, cache_dir):
    def load(**options):
        options = {"data_dir": tmp_path, "way": 5, "shot": 10, "fold": 3, **options}
        return load_point_dataset("modelnet40_fewshot", cache_dir=cache_dir, **options)

    return load


def assert_rows_of(splits, made, normals=False):
    names = [modelnet40.CLASS_NAMES[original] for original in ORIGINALS]
    for split, shapes in made.items():
        rows = splits[split]
        assert rows.features["points"] == Array2D((None, 3), "float32")
        assert rows.features["label"].names == names == ["chair", "airplane", "xbox", "desk", "sofa"]
        assert rows.features["original_label"].names == list(modelnet40.CLASS_NAMES)
        assert rows["label"][:].tolist() == [new for _, new, _ in shapes]
        assert rows["original_label"][:].tolist() == [original for _, _, original in shapes]
        for row, (cloud, _, _) in zip(rows, shapes, strict=True):
            np.testing.assert_array_equal(row["points"], cloud[:, :3])
            if normals:
                np.testing.assert_array_equal(row["normals"], cloud[:, 3:])


@pytest.mark.parametrize("normals", [False, True])
def test_published_pickles_are_read(write, load, normals):
    made = fold()
    write(made)
    splits = load(normals=normals)
    assert splits.num_rows == {"train": 50, "test": 100}
    assert_rows_of(splits, made, normals)


@pytest.mark.slow
@pytest.mark.parametrize("normals", [False, True])
def test_a_fold_written_as_parquet_is_the_same_and_is_preferred(write, load, tmp_path, normals):
    made = fold()
    path = write(made)
    for split, rows in load(normals=True).items():
        rows.to_parquet(path.parent / f"3-{split}.parquet")
    path.write_bytes(b"gone")
    assert_rows_of(load(normals=normals), made, normals)


def test_a_fold_as_json_takes_its_shapes_from_modelnet40(write, load, tmp_path):
    write_text(tmp_path / "data")
    names = {"train": ["xbox_0004", "airplane_0001"], "test": ["xbox_0104", "airplane_0627"]}
    write({split: [[name, name.startswith("a") * 1] for name in some] for split, some in names.items()}, "3.json")
    with raises(ValueError, naming="modelnet_dir"):
        load(way=5)
    os.rename(tmp_path / "ModelNetFewshot" / "5way_10shot", tmp_path / "ModelNetFewshot" / "2way_1shot")
    splits = load(way=2, shot=1, modelnet_dir=tmp_path / "data")
    for split, rows in splits.items():
        assert rows.features["label"].names == ["xbox", "airplane"] and rows["label"][:].tolist() == [0, 1]
        assert rows["original_label"][:].tolist() == [label(name) for name in names[split]]
        np.testing.assert_array_equal(rows[0]["points"], table(names[split][0])[:, :3].astype(np.float32))


def test_the_published_numbers_are_those_of_the_protocol_and_are_checked(write, load):
    counts = modelnet40_fewshot.DATASET.expected_counts
    assert counts["5way_10shot"] == {"train": 50, "test": 100} and counts["10way_20shot"] == {
        "train": 200,
        "test": 200,
    }
    made = fold()
    made["test"].pop()
    write(made)
    with pytest.raises(
        ValueError, match=r"\(5way_10shot\), split test, has 99 clouds; expected 100, so 1 are missing"
    ):
        load()
    assert load(verify=False).num_rows == {"train": 50, "test": 99}


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.pop("test"),
        lambda made: made["test"].__setitem__(4, (np.zeros((3, 6)), 0)),
        lambda made: made["test"].__setitem__(4, (np.zeros((3, 6)), 7, 0)),
        lambda made: made["test"].__setitem__(4, (np.zeros((3, 6)), 0, 1)),
        lambda made: made["test"].__setitem__(4, (np.zeros(3), 0, 8)),
        lambda made: made["test"].__setitem__(4, ("points", 0, 8)),
    ],
)
def test_folds_with_other_content_are_refused(write, load, change):
    made = fold()
    change(made)
    write(made)
    with pytest.raises(ValueError):
        load()


def test_a_fold_of_fewer_classes_is_refused(write, load):
    made = fold(way=4)
    write(made)
    with raises(ValueError, naming="3.pkl"):
        load()


def test_json_may_not_name_other_files(write, load, tmp_path):
    write_text(tmp_path / "data")
    write({"train": [["../chair_0001", 0]], "test": []}, "3.json")
    with raises(ValueError, naming="3.json"):
        load(modelnet_dir=tmp_path / "data")


def test_parquet_with_clouds_of_other_shapes_is_named(write, load):
    path = write(fold())
    for split, rows in load(normals=True).items():
        ragged = rows.with_format(None).select_columns(["points", "normals", "label", "original_label"]).to_dict()
        ragged["normals"][2] = ragged["normals"][2][:-1]
        rows.from_dict(ragged, features=rows.features).to_parquet(path.parent / f"3-{split}.parquet")
    with raises(ValueError, naming="3-train.parquet"):
        load()


def test_a_missing_fold_says_where_to_get_it(write, load):
    write(fold())
    with pytest.raises(FileNotFoundError):
        load(fold=4)
    with pytest.raises(FileNotFoundError):
        load(way=10, shot=20)
