"""The PointCloud feature under the tests that `datasets` has for its Image and Mesh features."""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import trimesh
from datasets import Dataset, Features, LargeList, List, Value, load_dataset

from hf_any3d.data import PointCloud, embed_files
from hf_any3d.data.files import PointCloudFileError, point_cloud_bytes, read_point_cloud
from tests.data.clouds import FILES, assert_same, full_cloud, points, triangle
from tests.errors import raises

PLY = FILES / "chair_points.ply"
FORMS = {
    "path": lambda path: path,
    "text": str,
    "bytes": Path.read_bytes,
    "buffer": lambda path: memoryview(path.read_bytes()),
    "dict of path": lambda path: {"path": str(path)},
    "dict of bytes": lambda path: {"bytes": path.read_bytes()},
    "dict of both": lambda path: {"path": path.name, "bytes": path.read_bytes()},
    "array": lambda path: read_point_cloud(path).points,
    "object": read_point_cloud,
    "trimesh": lambda path: trimesh.PointCloud(read_point_cloud(path).points),
}
LAYOUTS = {
    "column": (lambda feature: feature, lambda value: value, lambda found: found),
    "list": (List, lambda value: [value, value], lambda found: found[1]),
    "list of one length": (
        lambda feature: List(feature, length=2),
        lambda value: [value, value],
        lambda found: found[1],
    ),
    "large list": (LargeList, lambda value: [value], lambda found: found[0]),
    "dict": (
        lambda feature: {"a": feature, "b": Value("int64")},
        lambda value: {"a": value, "b": 1},
        lambda f: f["a"],
    ),
    "list of dicts": (lambda feature: List({"a": feature}), lambda value: [{"a": value}], lambda found: found[0]["a"]),
}


def dataset(values, feature=None, name="cloud"):
    return Dataset.from_dict({name: list(values)}, features=Features({name: feature or PointCloud()}))


@pytest.fixture
def loose(tmp_path):
    """A column of local files: one alone, and one with material files."""
    for name in ("chair_points.ply", "screwdriver.obj", "screwdriver.mtl"):
        (tmp_path / "loose").mkdir(exist_ok=True)
        (tmp_path / "loose" / name).write_bytes((FILES / name).read_bytes())
    return dataset([tmp_path / "loose" / "chair_points.ply", str(tmp_path / "loose" / "screwdriver.obj"), None])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_encodes_to_a_struct_and_decodes_to_the_same_points(form):
    feature, expected = PointCloud(), read_point_cloud(PLY)
    encoded = feature.encode_example(FORMS[form](PLY))
    assert set(encoded) == {"bytes", "path"} and any(encoded.values())
    assert pa.array([encoded], feature.pa_type).to_pylist() == [encoded]
    found = feature.decode_example(encoded)
    np.testing.assert_array_equal(found["points"], expected.points)
    if form not in ("array", "trimesh"):
        assert_same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["path", "bytes", "array", "object"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_form_goes_into_every_layout_and_nulls_stay_nulls(layout, form):
    wrap, put, take = LAYOUTS[layout]
    rows = dataset([put(FORMS[form](PLY)), None, put(None)], wrap(PointCloud()))
    expected = read_point_cloud(PLY).points
    np.testing.assert_array_equal(take(rows[0]["cloud"])["points"], expected)
    np.testing.assert_array_equal(take(rows[:1]["cloud"][0])["points"], expected)
    np.testing.assert_array_equal(take(rows["cloud"][0])["points"], expected)
    assert rows[2]["cloud"] is None or take(rows[2]["cloud"]) is None
    if layout != "dict":  # a dict of nulls and a null are one in `datasets`
        assert rows[1]["cloud"] is None
    kept = embed_files(rows)
    np.testing.assert_array_equal(take(kept[0]["cloud"])["points"], expected)
    undecoded = dataset([put(FORMS[form](PLY))], wrap(PointCloud(decode=False)))
    assert set(take(undecoded[0]["cloud"])) == {"bytes", "path"}


def test_a_feature_survives_json_and_pickle():
    for feature in (PointCloud(), PointCloud(decode=False), PointCloud(format="npz")):
        features = Features({"cloud": feature, "more": List(feature)})
        assert Features.from_dict(json.loads(json.dumps(features.to_dict()))) == features
        assert Features.from_arrow_schema(features.arrow_schema) == features
        assert pickle.loads(pickle.dumps(features)) == features
    assert PointCloud() != PointCloud(decode=False) and PointCloud() != PointCloud(format="npz")


@pytest.mark.parametrize("batched", [False, True])
def test_map_decodes_clouds_and_encodes_every_form(batched):
    rows = dataset([points(5), triangle(), None])

    def count(row):
        clouds = row["cloud"] if batched else [row["cloud"]]
        found = [0 if cloud is None else len(cloud["points"]) for cloud in clouds]
        return {"count": found if batched else found[0]}

    counted = rows.map(count, batched=batched)
    assert counted["count"][:] == [5, 3, 0] and counted.features["cloud"] == PointCloud()
    assert_same(counted[1]["cloud"], triangle())
    for value in (str(PLY), point_cloud_bytes(triangle()), triangle(), points(4), {"points": points(4)}, None):
        features = Features({"cloud": PointCloud(), "new": PointCloud()})
        made = rows.map(
            lambda row, value=value: {"new": [value] * len(row["cloud"]) if batched else value},
            batched=batched,
            features=features,
        )
        assert made.features == features
        assert (made[2]["new"] is None) == (value is None)


def test_map_without_reading_the_column_opens_no_file():
    rows = dataset(["/nowhere/a.ply", "/nowhere/b.ply"]).add_column("number", [1, 2])
    assert rows.map(lambda number: {"twice": 2 * number}, input_columns="number")["twice"][:] == [2, 4]
    assert rows.filter(lambda number: number > 1, input_columns="number").num_rows == 1
    assert rows.select([1]).sort("number").num_rows == 1
    with raises(PointCloudFileError, naming="nowhere/a.ply"):
        rows.map(lambda row: {"n": len(row["cloud"]["points"])})


@pytest.mark.parametrize("form", ["numpy", "torch", "pandas", "arrow", None])
def test_every_format_gives_rows_batches_and_columns(form):
    rows = dataset([triangle(), triangle()])
    rows.set_format(form)
    row, batch = rows[0], rows[:]
    if form == "arrow":
        assert isinstance(row, pa.Table) and row["cloud"][0]["bytes"].is_valid
    elif form == "pandas":
        assert isinstance(batch, pd.DataFrame)
        assert_same(batch["cloud"][1], triangle())
    else:
        assert_same(row["cloud"], triangle())
        assert_same(batch["cloud"][1], triangle())
        assert_same(rows["cloud"][1], triangle())
    rows.reset_format()
    assert rows.format["type"] is None


def test_parquet_with_embedded_files_needs_no_file_and_names_no_folder(loose, tmp_path):
    expected = [loose[0]["cloud"], loose[1]["cloud"]]
    embed_files(loose).to_parquet(tmp_path / "clouds.parquet")
    table = pa.parquet.read_table(tmp_path / "clouds.parquet")["cloud"].to_pylist()
    assert [row and row["path"] for row in table] == ["chair_points.ply", "screwdriver.obj.ply", None]
    assert all(row is None or row["bytes"] for row in table)
    for path in (tmp_path / "loose").iterdir():
        path.unlink()
    options = {"data_files": str(tmp_path / "clouds.parquet"), "split": "train"}
    for rows in (
        load_dataset("parquet", **options, cache_dir=str(tmp_path / "cache")),
        load_dataset("parquet", **options, streaming=True),
    ):
        assert rows.features == loose.features
        found = [row["cloud"] for row in rows]
        for before, after in zip(expected, found[:2], strict=True):
            np.testing.assert_array_equal(after["points"], before["points"])
        assert found[2] is None


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["column", "list", "dict"])
def test_what_is_pushed_holds_the_files_in_every_layout(layout, hub, tmp_path):
    wrap, put, take = LAYOUTS[layout]
    (tmp_path / "cloud.ply").write_bytes(PLY.read_bytes())
    rows = dataset([put(str(tmp_path / "cloud.ply")), put(full_cloud())], wrap(PointCloud()))
    name = f"me/feature-{layout}"
    rows.push_to_hub(name)
    (tmp_path / "cloud.ply").unlink()
    for opened in (
        load_dataset(name, split="train", cache_dir=str(tmp_path)),
        load_dataset(name, split="train", streaming=True),
    ):
        assert opened.features == rows.features
        first, second = opened
        assert_same(take(first["cloud"]), read_point_cloud(PLY))
        assert_same(take(second["cloud"]), full_cloud())
