"""Options of `data prepare`, `describe`, `check` and `show` reach the loader, and what they print is whole."""

import csv
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import yaml
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, DatasetInfo, Features

from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.registry import DATASETS, LABELED_CLOUDS, LABELED_POINTS, LABELED_WITH_BOXES
from tests.cli.conftest import run

data = import_module("hf_any3d.cli.data")
pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

POINTS = [[[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]


@pytest.mark.parametrize(
    ("columns", "labeled"),
    [
        ({"boxes": [[[1.0]]], "labels": [[0]]}, LABELED_WITH_BOXES),
        ({"points": POINTS, "boxes": [[[1.0]]]}, LABELED_WITH_BOXES),
        ({"labels": [[0, 1, 1]], "points": POINTS}, LABELED_POINTS),
        ({"points": POINTS, "labels": [[0, 1, 1]]}, LABELED_POINTS),
        ({"labels": [0], "points": POINTS}, LABELED_CLOUDS),
        ({"points": POINTS, "label": [0]}, LABELED_CLOUDS),
    ],
)
def test_columns_of_a_table_say_what_its_labels_belong_to(columns, labeled, tmp_path):
    parquet.write_table(pa.table({"points": POINTS}), tmp_path / "b.parquet")
    (tmp_path / "in").mkdir()
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert data.FoundDataset("parquet", file=tmp_path / "a.parquet").labels() == labeled
    assert data.FoundDataset("parquet", folder=tmp_path).labels() == labeled, "by the first of its files"
    named = [data.FoundDataset(name).labels() for name in ("rooms", "me/scans", "parquet")]
    assert named == [DATASETS["rooms"], None, DATASETS.get("parquet")]
    assert data.FoundDataset("folder", folder=tmp_path).labels() == DATASETS.get("folder")


def test_a_file_a_folder_and_a_name_are_loaded_with_their_options(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("hf_any3d.data.load_point_dataset", lambda *given, **more: asked.append((given, more)))
    data.FoundDataset("parquet", file=tmp_path / "a.parquet").load("unused", a=1)
    data.FoundDataset("folder", folder=tmp_path).load(b=2)
    data.FoundDataset("folder", folder=tmp_path).load("other")
    data.FoundDataset("shapes").load()
    assert asked == [
        (("parquet",), {"data_files": {"train": str(tmp_path / "a.parquet")}, "a": 1}),
        (("folder",), {"data_dir": tmp_path, "b": 2}),
        (("folder",), {"data_dir": "other"}),
        (("shapes",), {"data_dir": None}),
    ]


def test_settings_of_the_loader_of_folders_are_for_folders_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        data.FoundDataset, "load", lambda found, *given, **more: asked.append((found.name, given, more))
    )
    data._load(str(tmp_path), "d", '{"a": 1}', num_points=3, on_error="skip")
    data._load("shapes", None, None, num_points=3, on_error="skip")
    assert asked == [
        ("folder", ("d",), {"num_points": 3, "on_error": "skip", "a": 1}),
        ("shapes", (None,), {}),
    ]
    with pytest.raises(ValueError, match="--options is '1'; expected a JSON object"):
        data._load("shapes", None, "1")


def splits_of(license="cc-by-4.0"):
    features = Features({"points": Array2D((None, 3), "float32"), "label": ClassLabel(names=["ball", "stick"])})
    info = DatasetInfo(license=license, features=features)
    rows = {
        split: Dataset.from_dict(
            {"points": POINTS * count, "label": [int(row > 0) for row in range(count)]}, features=features, info=info
        )
        for split, count in (("train", 3), ("test", 1))
    }
    return DatasetDict(rows)


def test_prepared_data_have_every_split_a_card_and_the_terms_of_their_source(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(data, "_load", lambda *given, **more: asked.append((given, more)) or splits_of())
    output = tmp_path / "new" / "balls"
    words = ("--points", 7, "--columns", "colors,normals labels", "--data-dir", "d", "--options", '{"a": 1}')
    code, out, err = run("data", "prepare", "me/x", "--output", output, *words)
    assert code == 0, err
    further = {"num_points": 7, "columns": ["colors", "normals", "labels"], "on_error": "skip"}
    assert asked == [(("me/x", "d", '{"a": 1}'), further)]
    last = f"{output}: train with hf-any3d train {output}"
    assert out.splitlines() == ["train: 3 clouds", "test: 1 cloud", last]
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*")) == [
        "README.md", "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet", "meta/stats.json",
    ]  # fmt: skip
    rows = parquet.read_table(output / "data" / "train-00000-of-00001.parquet").to_pylist()
    assert rows == [{"points": POINTS[0], "label": int(row > 0)} for row in range(3)]
    bounds = {"min": [0.0, 0.0, 0.0], "max": [4.0, 5.0, 6.0]}
    stats = json.loads((output / "meta" / "stats.json").read_text())["splits"]
    assert list(stats) == ["train", "test"] and stats["train"]["bounds"] == bounds
    assert [(one["num_rows"], one["labels"]) for one in stats.values()] == [
        (3, {"ball": 1, "stick": 2}),
        (1, {"ball": 1}),
    ]
    text = (output / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head == {
        "pretty_name": "balls",
        "license": "cc-by-4.0",
        "size_categories": ["n<1K"],
        "tags": ["3d", "point-cloud"],
    }
    assert text.startswith("---\n") and f'load_dataset("{output}")' in text and "\n---\n\n# balls\n" in text
    assert text.endswith("\n") and "Cc-by-4.0" in text and "| train | 3 | 3 | 0, 0, 0 | 4, 5, 6 |" in text
    asked.clear()
    monkeypatch.setattr(data, "_load", lambda *given, **more: asked.append((given, more)) or splits_of(license=None))
    assert run("data", "prepare", "me/x", "--output", tmp_path / "plain").code == 0
    assert asked == [(("me/x", None, None), {"num_points": None, "columns": [], "on_error": "skip"})]
    text = (tmp_path / "plain" / "README.md").read_text()
    assert "The license is not known." in text and "license: other" in text


def test_data_without_points_are_described_and_not_prepared(tmp_path, monkeypatch):
    splits = DatasetDict({"train": Dataset.from_dict({"text": ["a"]}), "none": splits_of()["test"].select([])})
    asked = []
    monkeypatch.setattr(data, "_load", lambda *given, **more: asked.append((given, more)) or splits)
    found = run("data", "prepare", "me/x", "--output", tmp_path / "out")
    assert found.err == "error: split train has no points, but text\n"
    facts = json.loads(run("data", "describe", "me/x", "--data-dir", "d", "--options", "{}", "--json").out)
    assert facts == {"train": {"columns": ["text"]}, "none": {"columns": ["points", "label"]}}
    assert asked[-1] == (("me/x", "d", "{}"), {"on_error": "skip"})
    splits["train"] = splits_of()["train"]
    facts = json.loads(run("data", "describe", "me/x", "--json").out)
    assert list(facts) == ["train", "none"] and facts["train"]["points_per_cloud"]["max"] == 3
    assert facts["train"]["columns"] == ["points", "label"] and facts["train"]["num_rows"] == 3


@pytest.fixture
def clouds(tmp_path):
    """A folder with clouds that have different columns, a mesh of few points, and some that are doubtful."""
    rng, folder = np.random.default_rng(0), tmp_path / "clouds"
    folder.mkdir()
    many = rng.uniform(size=(64, 3))
    many[:2] = [[0, 0, 0], [1, 2, 0.1234567]]
    whole = {"colors": np.full((64, 3), 0.5), "normals": np.tile([0.0, 0, 1], (64, 1)), "labels": np.arange(64) % 3}
    write_point_cloud(folder / "a.npz", PointCloudData(many, **whole))
    np.savez(folder / "b.npz", points=many)
    np.save(folder / "c.npy", many[:63])
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    write_point_cloud(folder / "d.ply", PointCloudData(corners, faces=np.array([[0, 1, 2]])))
    np.save(folder / "e.npy", np.ones((64, 3)))
    np.save(folder / "f.npy", many[:2])
    return folder


def test_checked_files_are_whole_rows(clouds, tmp_path):
    code, out, _ = run("data", "check", clouds, "--json", "--output", tmp_path / "rows.csv")
    a, b, c, d, e, f = (str(clouds / name) for name in ("a.npz", "b.npz", "c.npy", "d.ply", "e.npy", "f.npy"))
    rows, extent = json.loads(out), [1.0, 2.0]
    assert code == 2 and [row.pop("extent", [])[:2] for row in rows] == [extent, extent, extent, [1, 1], [0, 0], []]
    assert rows == [
        {"file": a, "points": 64, "has": ["colors", "normals", "labels"]},
        {"file": b, "points": 64, "has": [], "warnings": [f"{b}: the same points as {a}"]},
        {"file": c, "points": 63, "has": [], "warnings": [f"{c}: 63 points are few"]},
        {"file": d, "points": 3, "has": ["faces"]},
        {"file": e, "points": 64, "has": [], "warnings": [f"{e}: all points are equal"]},
        {"file": f, "error": f"{f}: 2 points; expected at least 3"},
    ]
    table = list(csv.reader((tmp_path / "rows.csv").read_text().splitlines()))
    assert table[0] == ["file", "points", "extent", "problems"] and table[4] == [d, "3", "1 x 1 x 0", ""]
    assert table[1][2].startswith("1 x 2 x ") and table[5][3] == f"{e}: all points are equal"
    assert table[6] == [f, "", "", f"{f}: 2 points; expected at least 3"]
    assert list(csv.reader(run("data", "check", clouds, "--csv").out.splitlines())) == table
    code, out, err = run("data", "check", clouds)
    assert out == "6 files: 2 good, 3 doubtful, 1 bad; 258 points\n" and err.count("warning: ") == 3
    alone = run("data", "check", f)
    assert (alone.code, alone.out) == (2, "1 file: 0 good, 0 doubtful, 1 bad; 0 points\n")
    assert "--json and --csv; expected one of them" in run("data", "check", a, "--json", "--csv").err
    assert "expected one of .json, .csv" in run("data", "check", a, "--output", tmp_path / "a.html").err


def test_the_smallest_extents_are_rounded_to_a_millionth(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0, 0, 0], [0.12345678, 2e-7, 1], [0, 0, 0.5]], np.float32))
    (row,) = json.loads(run("data", "check", tmp_path / "a.npy", "--json").out)
    assert row["extent"] == [0.123457, 0.0, 1.0]


@pytest.mark.parametrize(
    ("what", "asked"),
    [
        (["a.parquet"], "a.parquet"),
        (["folder"], "folder"),
        (["folder", "folder"], None),
        (["plain"], None),
        (["rooms"], "rooms"),
        (["shapes"], None),
        (["me/scans"], "me/scans"),
        (["me/in/scans"], None),
        (["here/scans"], None),
        (["me/*"], None),
        (["me/s?"], None),
        (["me/[s]"], None),
        (["a.ply"], None),
    ],
)
def test_what_is_shown_is_a_dataset_or_files(what, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.parquet", "folder/in/a.parquet", "plain/a.ply", "shapes/a.ply", "here/a.ply"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given, rows = [], splits_of()
    monkeypatch.setattr(data, "_load", lambda *one: given.append(one) or rows)
    found = data._rows_of_dataset(what, None, "d")
    assert found is (None if asked is None else rows["train"]) and given == (
        [] if asked is None else [(asked, "d", None)]
    )
    if asked is None:
        return
    assert data._rows_of_dataset(what, "test", None) is rows["test"]
    with pytest.raises(ValueError, match=f"--split is 'none'; {asked} has train, test"):
        data._rows_of_dataset(what, "none", None)
    for empty in (Dataset.from_dict({"text": ["a"]}), rows["train"].select([])):
        rows["train"] = empty
        with pytest.raises(ValueError, match=f"{asked}: no points to show, but {', '.join(empty.column_names)}"):
            data._rows_of_dataset(what, None, None)


def test_options_of_a_page_reach_it(tmp_path, monkeypatch):
    written, asked, opened = [], [], []
    views = [SimpleNamespace(up_axis=None) for _ in range(2)]
    rows = splits_of()["train"]
    monkeypatch.setattr(data, "_rows_of_dataset", lambda *given: asked.append(given) or rows)
    monkeypatch.setattr(
        "hf_any3d.visualization.show.views_of_rows",
        lambda *given: asked.append(given) or (views, {"note": "of rows"}),
    )
    monkeypatch.setattr(
        "hf_any3d.visualization.show.write_views", lambda *given, **more: written.append((*given, more))
    )
    monkeypatch.setattr(data.webbrowser, "open", opened.append)
    monkeypatch.chdir(tmp_path)
    assert run("show", "me/x").out == "show.html\n" and asked == [(["me/x"], None, None), (rows, 24)]
    assert written == [(Path("show.html"), views, {"title": "me/x", "columns": 4, "note": "of rows"})] and not opened
    words = ("--most", 5, "--columns", 2, "--split", "test", "--data-dir", "d", "--up-axis", "x", "--open")
    assert run("show", "me/x", "--output", tmp_path / "a.png", *words).code == 0
    assert asked[2:] == [(["me/x"], "test", "d"), (rows, 5)] and [view.up_axis for view in views] == ["x", "x"]
    assert written[1] == (tmp_path / "a.png", views, {"title": "me/x", "columns": 2, "note": "of rows"})
    assert opened == [(tmp_path / "a.png").as_uri()]
    found = run("show", "me/x", "--output", tmp_path / "a.ply")
    assert found.code == 1 and "a.ply for 3 files; expected a folder, .html or .png" in found.err
    assert (
        "type '.json'; expected one of .html, .png, .ply, .obj, .npz" in run("show", "me/x", "--output", "a.json").err
    )


def test_files_that_are_shown_have_the_type_that_is_given(tmp_path, monkeypatch):
    for name in "ab":
        np.savetxt(tmp_path / f"{name}.xyz", np.eye(3))
    two = run("show", tmp_path / "a.xyz", tmp_path / "b.xyz", "--output", tmp_path / "c.ply")
    assert two.code == 1 and "c.ply for 2 files; expected a folder, .html or .png" in two.err
    asked, found = [], data.find_inputs
    monkeypatch.setattr(data, "find_inputs", lambda *given: asked.append(given) or found(*given))
    shown = run("show", "-", "--file-type", "xyz", "--output", tmp_path / "c.npz", stdin=b"1 2 3\n4 5 6\n7 8 10\n")
    assert shown.out == f"{tmp_path / 'c.npz'}\n" and asked == [(["-"], "xyz")], shown.err
    # Nothing is written of a file that cannot be read.
    (tmp_path / "bad.ply").write_text("ply\n")
    assert run("show", tmp_path / "bad.ply", "--output", tmp_path / "d.html").code == 1
    assert not (tmp_path / "d.html").exists()
