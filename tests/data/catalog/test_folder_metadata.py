"""Folders with metadata files."""

import json
import logging

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_any3d.data import load_point_dataset
from tests.data.clouds import points
from tests.errors import raises

ROWS = [
    {"file_name": "a.npy", "label": "mug", "weight": 0.5, "note": "chipped"},
    {"file_name": "deep/er/b.npy", "label": "cup", "weight": None, "note": None},
]


def put(path, count=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, points(count))


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        # A value that is missing has no key at all.
        lines = ({key: value for key, value in row.items() if value is not None} for row in rows)
        path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    else:
        pd.DataFrame(rows).to_parquet(path)


@pytest.fixture
def scans(tmp_path):
    root = tmp_path / "scans"
    put(root / "a.npy", 8)
    put(root / "deep" / "er" / "b.npy", 9)
    return root


@pytest.fixture
def load(cache_dir):
    def load(root, **options):
        return load_point_dataset("folder", data_dir=root, cache_dir=cache_dir, **options)

    return load


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_columns_of_metadata_become_columns(suffix, streaming, scans, load):
    write(scans / f"metadata{suffix}", ROWS)
    rows = load(scans, split="train", streaming=streaming)
    assert rows.features["label"].names == ["cup", "mug"]
    assert rows.features["weight"].dtype == "float64" and list(rows.features)[:3] == ["points", "label", "file"]
    first, second = rows
    assert (str(first["file"]), str(second["file"])) == ("a.npy", "deep/er/b.npy")
    assert (len(first["points"]), len(second["points"])) == (8, 9)
    assert (int(first["label"]), int(second["label"])) == (1, 0)
    assert (
        first["weight"] == 0.5
        and np.isnan(second["weight"] or np.nan)
        and first["note"] == "chipped"
        and second["note"] is None
    )


def test_features_of_a_parquet_file_are_kept(scans, load):
    features = Features({"file_name": Value("string"), "label": ClassLabel(names=["z", "a"])})
    rows = Dataset.from_dict({"file_name": ["deep/er/b.npy", "a.npy"], "label": [0, 1]}, features=features)
    rows.to_parquet(scans / "metadata.parquet")
    loaded = load(scans)["train"]
    assert loaded.features["label"] == features["label"] and loaded["label"][:].tolist() == [0, 1]
    assert loaded["file"][:].tolist() == ["deep/er/b.npy", "a.npy"]  # in the order of the metadata


def test_a_class_number_beyond_the_classes_is_named(scans, load):
    features = Features({"file_name": Value("string"), "label": ClassLabel(names=["mug"])})
    rows = Dataset.from_dict({"file_name": ["a.npy"], "label": [0]}, features=features)
    plain = rows.cast_column("label", Value("int64")).map(lambda row: {"label": 3})
    Dataset(plain.data.table, info=rows.info).to_parquet(scans / "metadata.parquet")
    with raises(ValueError, naming="a.npy"):
        load(scans)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([2, 0], ClassLabel(num_classes=3)), ([1.5, 2.5], Value("float64")), (["b", "a"], ClassLabel(names=["a", "b"]))],
)
def test_labels_of_metadata_are_classes_unless_they_are_quantities(labels, expected, scans, load):
    write(scans / "metadata.csv", [{**row, "label": label} for row, label in zip(ROWS, labels, strict=True)])
    for streaming in (False, True):
        assert load(scans, split="train", streaming=streaming).features["label"] == expected


def test_labels_of_metadata_replace_folder_names(tmp_path, load):
    put(tmp_path / "scans" / "mug" / "a.npy")
    put(tmp_path / "scans" / "cup" / "b.npy")
    write(
        tmp_path / "scans" / "metadata.csv",
        [{"file_name": "mug/a.npy", "label": "big"}, {"file_name": "cup/b.npy", "label": "small"}],
    )
    assert load(tmp_path / "scans")["train"].features["label"].names == ["big", "small"]


def test_folder_names_are_labels_if_metadata_has_none(tmp_path, load):
    root = tmp_path / "scans"
    for name in ("mug/a.npy", "cup/b.npy"):
        put(root / name)
    write(root / "metadata.csv", [{"file_name": "mug/a.npy", "age": 3}, {"file_name": "cup/b.npy", "age": 4}])
    rows = load(root)["train"]
    assert rows.features["label"].names == ["cup", "mug"] and rows["age"][:].tolist() == [3, 4]
    assert "label" not in load(root, drop_labels=True)["train"].features
    (root / "metadata.csv").write_text("file_name\nmug/a.npy\n")
    assert "label" not in load(root)["train"].features  # a single folder is no class
    assert load(root, drop_labels=False)["train"].features["label"].names == ["mug"]


def test_each_split_may_have_its_own_metadata(tmp_path, load):
    root = tmp_path / "scans"
    for split, label in (("train", "mug"), ("train", "cup"), ("test", "cup")):
        put(root / split / f"{label}.npy")
        names = [path.name for path in sorted((root / split).glob("*.npy"))]
        write(root / split / "metadata.csv", [{"file_name": name, "label": name[:-4]} for name in names])
    splits = load(root)
    assert {split: rows["file"][:].tolist() for split, rows in splits.items()} == {
        "train": ["train/cup.npy", "train/mug.npy"],
        "test": ["test/cup.npy"],
    }
    assert splits["test"].features["label"].names == ["cup", "mug"]
    write(root / "test" / "metadata.csv", [{"file_name": "cup.npy", "label": "jug"}])
    with raises(ValueError, naming="jug"):
        load(root)


def test_files_that_the_metadata_does_not_name_are_left_out_with_a_warning(scans, load, caplog):
    write(scans / "metadata.csv", ROWS[:1])
    with caplog.at_level(logging.WARNING, logger="hf_any3d"):
        assert load(scans)["train"]["file"][:].tolist() == ["a.npy"]
    assert "skipped 1 files that are not in the metadata, such as deep/er/b.npy" in caplog.text
    with raises(ValueError, naming="fits no layout"):
        load(scans, drop_metadata=True)


@pytest.mark.parametrize(
    "content",
    [
        "file_name\ngone.npy\nalso.npy\n",
        "file_name\na.npy\n./a.npy\n",
        "file_name\nmetadata.csv\n",
        "file_name\n../scans/a.npy\n",
        "file_name\n/etc/a.npy\n",
        "file_name\nfile://a.npy\n",
        "file_name,label\na.npy,mug\n,cup\n",
        "file_name,label\na.npy,\ndeep/er/b.npy,cup\n",
        "name,label\na.npy,mug\n",
        "file_name,points\na.npy,8\n",
        "file_name,file\na.npy,8\n",
        "file_name,label\n",
        "",
        'file_name\n"a.npy\n',
    ],
)
def test_metadata_that_does_not_match_the_files_is_named(content, scans, load):
    (scans / "metadata.csv").write_text(content)
    with pytest.raises(ValueError):
        load(scans)


def test_metadata_lines_that_are_not_objects_are_named(scans, load):
    (scans / "metadata.jsonl").write_text('{"file_name": "a.npy"}\n["b"]\n')
    with raises(ValueError, naming="metadata.jsonl"):
        load(scans)


def test_metadata_files_must_agree(scans, load):
    write(scans / "metadata.csv", [{"file_name": "a.npy", "size": 1}])
    write(scans / "deep" / "metadata.csv", [{"size": 2.5, "file_name": "er/b.npy"}])
    assert sorted(load(scans)["train"]["size"][:]) == [1, 2.5]
    write(scans / "deep" / "metadata.csv", [{"size": 2.5, "file_name": "../a.npy"}])
    with pytest.raises(ValueError):
        load(scans)


def test_a_folder_named_like_a_metadata_file_is_a_folder(tmp_path):
    path = tmp_path / "metadata.csv" / "a.npy"
    path.parent.mkdir()
    np.save(path, points())
    assert load_point_dataset("folder", data_dir=tmp_path, drop_labels=True)["train"]["file"][:] == [
        "metadata.csv/a.npy"
    ]


def test_a_small_parquet_file_of_millions_of_rows_is_refused_before_it_is_read(tmp_path):
    np.save(tmp_path / "a.npy", points())
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(9_000_000, np.int8)), ["a.npy"])
    pa.parquet.write_table(pa.table({"file_name": column, "label": column}), tmp_path / "metadata.parquet")
    with raises(ValueError, naming="metadata.parquet"):
        load_point_dataset("folder", data_dir=tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_metadata_are_read_as_any_spreadsheet_saves_them(tmp_path, load, delimiter, encoding):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).random((20, 3)))
    decimal = "." if delimiter == "," else ","
    rows = [["File_Name", "label", "age"], ["a.npy", " Stühle", f"1{decimal}5"], ["b.npy", "cup ", "2"]]
    text = "\r\n".join(delimiter.join(cells) for cells in rows) + "\r\n"
    (tmp_path / "metadata.csv").write_bytes(text.encode(encoding))
    shapes = load(tmp_path)["train"]
    names = shapes.features["label"].names
    assert [names[label] for label in shapes["label"]] == ["Stühle", "cup"] and list(shapes["age"]) == [1.5, 2.0]
