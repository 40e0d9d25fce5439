"""predict, zero-shot, segment, features and reconstruct: their results as tables, JSON, CSV, files and pages."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from transformers import pipeline

from hf_any3d import read_point_cloud
from hf_any3d.visualization.viewer import label_colors
from tests.cli.conftest import FILES, LABELS, run
from tests.tiny_text_towers import LABELS as ZERO_SHOT_LABELS

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

CHAIR, LAMP = FILES / "chair.ply", FILES / "lamp.stl"


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.slow
def test_csv_has_a_row_for_each_file_and_its_error(models, scans):
    code, out, _ = run("predict", scans, "--model", models("classifier"), "--csv", "--top-k", 2)
    bad, chair, holes, lamp = rows_of(out)
    assert code == 2 and bad["file"].endswith("bad.ply") and "has 128 bytes" in bad["error"] and bad["label"] == ""
    for row in (chair, holes, lamp):
        assert row["error"] == "" and {row["label"], row["label_2"]} < set(LABELS)
        assert float(row["score"]) >= float(row["score_2"])


def test_numbers_of_a_regression_are_no_shares(models, tmp_path):
    model = shutil.copytree(models("classifier"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"problem_type": "regression"}
    (model / "config.json").write_text(json.dumps(config))
    code, out, err = run("predict", CHAIR, "--model", model, "--top-k", 1, "--output", tmp_path / "page.html")
    assert code == 0 and "%" not in out, err
    assert [word for word in out.split() if word in LABELS] == list(LABELS)
    code, out, _ = run("predict", CHAIR, "--model", model, "--json")
    numbers = [one["score"] for one in json.loads(out)[0]["predictions"]]
    assert code == 0 and len(numbers) == len(LABELS) and abs(sum(numbers) - 1) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.html", "a.png"])
def test_predictions_are_also_written_to_a_file(models, tmp_path, name):
    path = tmp_path / "new" / name
    code, out, err = run("predict", CHAIR, LAMP, "--model", models("classifier"), "--output", path, "--top-k", 1)
    assert code == 0 and len(out.splitlines()) == 2 and str(path) in err
    best = [line.split()[1] for line in out.splitlines()]
    if name == "a.json":
        assert [row["predictions"][0]["label"] for row in json.loads(path.read_text())] == best
    elif name == "a.csv":
        assert [row["label"] for row in rows_of(path.read_text())] == best
    elif name == "a.html":
        for title, label in zip(("chair.ply", "lamp.stl"), best, strict=True):
            assert f'"title": "{title}", "note": "{label}, ' in path.read_text()
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_zero_shot_scores_are_those_of_the_pipeline(models):
    model, labels = models("zero-shot"), ZERO_SHOT_LABELS
    code, out, _ = run("zero-shot", CHAIR, LAMP, "--model", model, "-l", ", ".join(labels), "--json")
    expected = pipeline("zero-shot-point-cloud-classification", model=model)(
        [str(CHAIR), str(LAMP)], candidate_labels=labels
    )
    assert code == 0
    for row, answer in zip(json.loads(out), expected, strict=True):
        assert [entry["label"] for entry in row["predictions"]] == [entry["label"] for entry in answer]
        scores = [entry["score"] for entry in row["predictions"]]
        assert scores == pytest.approx([entry["score"] for entry in answer], abs=1e-5)


@pytest.mark.slow
def test_segments_are_those_of_the_pipeline(models):
    model = models("parts")
    code, out, _ = run("segment", CHAIR, "--model", model, "--category", "table", "--json")
    (row,) = json.loads(out)
    answer = pipeline("point-cloud-segmentation", model=model)(str(CHAIR), category="table")
    assert code == 0 and row["points"] == len(answer["labels"])
    counts = {part["label"]: part["points"] for part in row["segments"]}
    assert counts == {part["label"]: int(part["mask"].sum()) for part in answer["segments"]}
    assert sum(part["share"] for part in row["segments"]) == pytest.approx(1)


@pytest.mark.slow
def test_a_missing_category_is_an_error_that_names_the_choices(models):
    code, _, err = run("segment", CHAIR, "--model", models("parts"))
    assert code == 1 and "category is missing" in err and "table, lamp" in err and err.count("\n") == 1
    code, _, err = run("segment", CHAIR, "--model", models("parts"), "--labels", "seat, leg")
    assert code == 1 and "has labels of its own" in err


@pytest.mark.parametrize("name", ["a.ply", "a.html", "a.png", "a.csv", "a.json"])
def test_labeled_points_are_written(models, tmp_path, name):
    path = tmp_path / name
    words = ("segment", FILES / "chair.npy", "--model", models("scenes"), "--output", path)
    code, out, _ = run(*words)
    labels = [part.rsplit(" ", 2)[0].strip() for part in out.partition(": ")[2].split("   ")]
    assert code == 0 and labels
    if name == "a.ply":
        written = read_point_cloud(path)
        assert len(written) == len(read_point_cloud(FILES / "chair.npy")) and f"{len(written):,} points" in out
        np.testing.assert_allclose(written.colors, label_colors(3)[written.labels], atol=1 / 255)
    elif name == "a.csv":
        assert [row["label"] for row in rows_of(path.read_text())] == labels
    elif name == "a.json":
        assert [part["label"] for part in json.loads(path.read_text())[0]["segments"]] == labels
    else:
        assert path.stat().st_size > 1000


@pytest.mark.slow
def test_a_folder_gets_points_and_a_page_of_each_file_below_its_own_folder(models, scans, tmp_path):
    code, _, _ = run("segment", scans, "--model", models("scenes"), "--output", tmp_path / "out")
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    names = ("chair", "holes", "inner/lamp")
    assert code == 2 and written == [f"{name}.{ending}" for name in names for ending in ("html", "ply")]


@pytest.mark.slow
def test_features_are_those_of_the_pipeline(models, tmp_path):
    model, path = models("classifier"), tmp_path / "a.npz"
    code, out, _ = run("features", CHAIR, LAMP, "--model", model, "--json", "--output", path)
    expected = pipeline("point-cloud-feature-extraction", model=model)([str(CHAIR), str(LAMP)])
    assert code == 0
    for row, answer in zip(json.loads(out[: out.rindex("]") + 1]), expected, strict=True):
        assert row["features"] == pytest.approx(answer["pooled"].tolist(), abs=1e-5)
    with np.load(path) as arrays:
        assert arrays["files"].tolist() == [str(CHAIR), str(LAMP)]
        np.testing.assert_allclose(arrays["features"], [answer["pooled"] for answer in expected], atol=1e-5)


@pytest.mark.slow
def test_features_of_a_folder_are_a_table_or_a_map(models, scans, tmp_path):
    model = models("classifier")
    code, _, _ = run("features", scans, FILES / "bottle.glb", "--model", model, "--output", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert code == 2 and "chair.ply" in page and "bottle.glb" in page
    run("features", scans, "--model", model, "--output", tmp_path / "a.csv", "--feature", "tokens")
    table = rows_of((tmp_path / "a.csv").read_text())
    assert len(table) == 4 and [bool(row["error"]) for row in table] == [True, False, False, False]
    assert "a map needs at least 4" in run("features", CHAIR, "--model", model, "--output", tmp_path / "b.html").err
