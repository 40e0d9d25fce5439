"""Clouds that `datasets` is given without a type become the feature, wherever it finds types by values."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from datasets.arrow_writer import TypedSequence
from PIL.Image import new

from hf_any3d import PointCloud
from hf_any3d.data.files import PointCloudData, read_point_cloud, write_point_cloud
from tests.errors import raises

VALUES = np.random.default_rng(0).uniform(size=(10, 3)).astype(np.float32)
PLAIN, COLORED = PointCloudData(points=VALUES), PointCloudData(points=VALUES, colors=VALUES)
# The first one has fewer attributes than the second, and a row may have none.
CLOUDS = (PLAIN, COLORED, None)
ROWS = Dataset.from_dict({"number": [0, 1, 2], "file": ["a", "b", "c"]})
TYPED = Features({**ROWS.features, "scan": PointCloud(format="npz")})


def objects(numbers):
    """Return an array of clouds, as `pandas` and NumPy hold objects."""
    return np.array([CLOUDS[int(number)] for number in numbers], dtype=object)


def one(row):
    return {"scan": CLOUDS[int(row["number"])]}


def several(rows):
    return {"scan": [CLOUDS[int(number)] for number in rows["number"]]}


def examples():
    for cloud in CLOUDS:
        yield {"scan": cloud}


def frame():
    return pd.DataFrame({"scan": objects(range(3)), "number": range(3)})


DOORS = {
    "map": lambda: ROWS.map(one),
    "map, a row at a time": lambda: ROWS.map(one, writer_batch_size=1),
    "map, in batches": lambda: ROWS.map(several, batched=True),
    "map, in batches of one": lambda: ROWS.map(several, batched=True, batch_size=1),
    "map to an array": lambda: ROWS.map(lambda rows: {"scan": objects(rows["number"])}, batched=True),
    "map in place of a text": lambda: ROWS.rename_column("file", "scan").map(one),
    "map of arrays": lambda: ROWS.with_format("numpy").map(one).with_format(None),
    "map of tensors": lambda: ROWS.with_format("torch").map(one).with_format(None),
    "map in processes": lambda: ROWS.map(one, num_proc=2),
    "map with features": lambda: ROWS.map(one, features=TYPED),
    "map, then once more": lambda: ROWS.map(one).map(one),
    "from_dict": lambda: Dataset.from_dict({"scan": list(CLOUDS)}),
    "from_list": lambda: Dataset.from_list([{"scan": cloud} for cloud in CLOUDS]),
    "from_generator": lambda: Dataset.from_generator(examples),
    "from_generator of rows without a type": lambda: Dataset.from_generator(
        lambda: iter(ROWS.to_iterable_dataset().map(one))
    ),
    "from_pandas": lambda: Dataset.from_pandas(frame()),
    "from_pandas with features": lambda: Dataset.from_pandas(
        frame(), features=Features({"scan": PointCloud(), "number": Value("int64")})
    ),
    "add_column": lambda: ROWS.add_column("scan", list(CLOUDS)),
    "add_column of an array": lambda: ROWS.add_column("scan", objects(range(3))),
    "add_column with a feature": lambda: ROWS.add_column("scan", list(CLOUDS), feature=PointCloud(format="npz")),
    "cast_column": lambda: ROWS.map(one).cast_column("scan", PointCloud(format="npz")),
    "selected and joined": lambda: ROWS.select_columns("file").add_column("scan", list(CLOUDS)).select(range(3)),
}


@pytest.mark.parametrize("door", DOORS)
def test_clouds_become_the_feature(door, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    made = DOORS[door]()
    assert isinstance(made.features["scan"], PointCloud)
    plain, colored, missing = made["scan"]
    np.testing.assert_array_equal(plain["points"], VALUES)
    np.testing.assert_allclose(colored["colors"], VALUES, atol=0.01)
    assert plain["colors"] is None and missing is None
    made.to_parquet(tmp_path / "made.parquet")
    stored = Dataset.from_parquet(str(tmp_path / "made.parquet"))
    assert isinstance(stored.features["scan"], PointCloud)


def test_files_that_are_read_in_map_become_the_feature(tmp_path):
    files = [str(tmp_path / name) for name in ("a.ply", "b.ply")]
    for file, cloud in zip(files, CLOUDS, strict=False):
        write_point_cloud(file, cloud)
    read = Dataset.from_dict({"file": files}).map(lambda row: {"file": read_point_cloud(row["file"])})
    assert isinstance(read.features["file"], PointCloud) and read[1]["file"]["colors"] is not None


def test_lists_of_clouds_are_lists_of_the_feature():
    made = Dataset.from_dict({"scans": [None, [PLAIN, COLORED], [PLAIN]]})
    assert made.features["scans"] == List(PointCloud()) and len(made[1]["scans"]) == 2


def test_what_has_no_type_of_its_own_is_refused_with_the_argument_that_gives_it():
    doors = (
        lambda: Dataset.from_dict({"scan": [{"cloud": PLAIN}]}),
        lambda: ROWS.map(lambda row: {"scan": {"cloud": PLAIN}}),
        lambda: ROWS.map(lambda row: {"scan": PLAIN if row["number"] else "a.ply"}, writer_batch_size=1),
        lambda: ROWS.map(lambda row: {"scan": PLAIN if row["number"] else None}, writer_batch_size=1),
    )
    for door in doors:
        with raises(TypeError, naming="features="):
            door()


def test_streams_keep_clouds_as_they_are_and_take_features():
    stream = ROWS.to_iterable_dataset().map(one)
    assert next(iter(stream))["scan"] is PLAIN
    assert next(iter(IterableDataset.from_generator(examples)))["scan"] is PLAIN


def test_other_values_are_as_before():
    assert isinstance(Dataset.from_dict({"image": [new("L", (2, 2))]}).features["image"], Image)
    table = pd.DataFrame([["a", 1], [None, 2]], columns=["name", "name"])
    with pytest.raises(ValueError, match="[Dd]uplicate"):
        Dataset.from_pandas(table)
    assert ROWS.add_column("x", [1, 2, 3]).features["x"] == Value("int64")


@pytest.mark.parametrize(
    ("function", "call"),
    [
        (TypedSequence.__init__, lambda: Dataset.from_dict({"scan": [PLAIN]})),
        (Dataset.from_pandas.__func__, lambda: Dataset.from_pandas(frame())),
        (Dataset.add_column, lambda: ROWS.add_column("scan", list(CLOUDS))),
    ],
)
def test_datasets_knows_no_clouds_by_itself(monkeypatch, function, call):
    original = function.__wrapped__
    owner = TypedSequence if function is TypedSequence.__init__ else Dataset
    is_class_method = original.__name__ == "from_pandas"
    monkeypatch.setattr(owner, original.__name__, classmethod(original) if is_class_method else original)
    with pytest.raises(Exception, match="PointCloudData"):
        call()
