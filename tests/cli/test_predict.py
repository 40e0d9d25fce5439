"""Rows, cells and words of `predict`, `features`, `segment` and `detect`; others test the commands."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData
from hf_any3d.many_files.files import Cloud
from tests.errors import raises

predict, detect, segment = (
    importlib.import_module(f"hf_any3d.cli.{name}") for name in ("predict", "detect", "segment")
)


def test_a_row_of_a_prediction_has_numbered_cells():
    best, second = (
        {"label": "chair", "score": 0.75, "unknown": 0.125},
        {"label": None, "score": 0.25, "unknown": 0.5},
    )
    assert list(predict.prediction_cells({"file": "a", "predictions": [best, second]})) == [
        {
            "file": "a",
            "label": "chair",
            "score": "0.750000",
            "unknown": "0.125000",
            "label_2": None,
            "score_2": "0.250000",
        }
    ]
    assert list(predict.prediction_cells({"file": "a", "error": "bad"})) == [{"file": "a", "error": "bad"}]
    assert list(predict.feature_cells({"file": "a", "features": [0.5, 2.0]}))[0]["file"] == "a"


def test_errors_of_a_model_are_rows():
    rows = predict.prediction_answerer(lambda clouds: [{"error": "bad"}, [{"label": "a"}]])([None, None])
    assert rows == [{"error": "bad"}, {"predictions": [{"label": "a"}]}]


def test_the_most_familiar_of_the_other_axes_is_proposed_if_it_is_clearly_so():
    rows = {
        "x": {"error": "bad"},
        "y": {"predictions": [{"label": "chair", "unknown": 0.029}]},
        "z": {"predictions": [{"label": "lamp", "unknown": 0.02}]},
    }
    reason = predict.why_unlike(None, "x", 0.4, lambda cloud, axis: rows[axis])
    assert reason == "if z points up it looks like lamp: try --up-axis z"
    assert "y points up" in predict.why_unlike(None, "z", 0.4, lambda cloud, axis: rows[axis])
    assert predict.why_unlike(None, "z", 0.35, lambda cloud, axis: rows[axis]) is None
    rows["y"]["predictions"][0]["label"] = None
    assert predict.why_unlike(None, "z", 1.0, lambda cloud, axis: rows[axis]) is None
    assert predict.why_unlike(None, "z", 1.0, lambda cloud, axis: {"error": "bad"}) is None


@pytest.mark.parametrize(
    ("files", "model", "found"),
    [
        (["a.ply"], "me/m", ("me/m", ["a.ply"])),
        (["me/m", "a.ply"], None, ("me/m", ["a.ply"])),
        (["MODEL", "a.ply"], None, ("MODEL", ["a.ply"])),
        (["ADAPTER", "a.ply", "b.ply"], None, ("ADAPTER", ["a.ply", "b.ply"])),
        (["me/m"], None, (None, ["me/m"])),
        (["a.ply", "b.ply"], None, (None, ["a.ply", "b.ply"])),
        (["a.PLY", "b.ply"], None, (None, ["a.PLY", "b.ply"])),
        (["scans/*", "b.ply"], None, (None, ["scans/*", "b.ply"])),
        (["scans/[ab]", "b.ply"], None, (None, ["scans/[ab]", "b.ply"])),
        (["scans/a?", "b.ply"], None, (None, ["scans/a?", "b.ply"])),
        (["-", "b.ply"], None, (None, ["-", "b.ply"])),
        (["folder", "b.ply"], None, (None, ["folder", "b.ply"])),
    ],
)
def test_the_first_word_may_be_the_model(files, model, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, file in (("MODEL", "config.json"), ("ADAPTER", "adapter_config.json"), ("folder", "a.ply")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    assert predict.split_model(files, model) == found
    if found[0] is None:
        with raises(ValueError, naming="--model"):
            predict.split_model(files, model, "segment")
    with pytest.raises(ValueError, match="MODEL is a model; expected files too"):
        predict.split_model(["MODEL"], None)


@pytest.mark.parametrize(
    ("as_json", "as_csv", "is_terminal", "quiet"),
    [(False, False, True, False), (True, False, True, True), (False, True, True, True), (False, False, False, True)],
)
def test_a_bar_is_shown_unless_lines_show_the_progress(as_json, as_csv, is_terminal, quiet, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    assert predict.is_quiet(as_json, as_csv) is quiet


def test_the_column_of_files_is_as_wide_as_the_longest_name():
    inputs = SimpleNamespace(files=[SimpleNamespace(name=name) for name in ("a", "abc\x1b", "ab")])
    assert predict.file_width(inputs) == len("abc\\u001b")


@pytest.mark.parametrize(("count", "perplexity"), [(4, 1.0), (76, 25.0), (79, 25.0)])
def test_a_map_of_features_is_colored_by_folder(count, perplexity, tmp_path, monkeypatch):
    drawn, projected = [], []
    monkeypatch.setattr(
        "hf_any3d.visualization.show.project_features", lambda *one, **more: projected.append(more) or "places"
    )
    monkeypatch.setattr(
        "hf_any3d.visualization.show.write_feature_map", lambda *one, **more: drawn.append((one, more))
    )
    names = ["b/x.ply", "a/y.ply", "z.ply", *(f"a/{number}.ply" for number in range(count - 3))]
    predict._write_features(tmp_path / "a.HTML", names, np.zeros((count, 2)))
    (((path, places, labels, classes), more),) = drawn
    assert projected == [{"perplexity": perplexity}] and places == "places" and path == tmp_path / "a.HTML"
    assert classes == [".", "a", "b"] and labels[:4].tolist() == [2, 1, 0, 1]
    assert more.pop("texts")[:3] == ["x.ply", "y.ply", "z.ply"]
    assert more == {"heading": "features; nearby clouds are similar"}
    with pytest.raises(ValueError, match="for 3 files; a map needs at least 4"):
        predict._write_features(tmp_path / "a.png", names[:3], np.zeros((3, 2)))


def test_arrays_of_features_keep_their_names_and_their_order(tmp_path, capsys):
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    for ending in ("npy", "npz"):
        predict._write_features(tmp_path / f"a.{ending}", ["x", "y", "z"], values)
    assert np.array_equal(np.load(tmp_path / "a.npy"), values)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["files"].tolist() == ["x", "y", "z"] and np.array_equal(arrays["features"], values)
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path / 'a.npy'}: 3 × 2"


def box(label="chair", score=0.514, **more):
    return {
        "label": label,
        "score": score,
        "box": {"center": [1, 2.0, 3.004], "size": [4, 5, 6], "heading": 0.5, **more},
    }


def test_boxes_have_a_row_each_and_files_without_one_a_row_of_their_own():
    cells = {"x": 1, "y": 2, "z": 3.004, "length": 4, "width": 5, "height": 6, "heading": 0.5}
    rows = list(detect.box_cells({"file": "a", "boxes": [box(), box("bed", None)]}))
    assert rows == [
        {"file": "a", "label": "chair", "score": 0.514} | cells,
        {"file": "a", "label": "bed", "score": None} | cells,
    ]
    assert list(detect.box_cells({"file": "a", "boxes": []})) == [{"file": "a"}]
    assert list(detect.box_cells({"file": "a", "error": "bad"})) == [{"file": "a", "error": "bad"}]
    assert detect._told(box()) == "chair 51 % at (1.00, 2.00, 3.00)"
    assert detect._told(box("a\x1b", None)) == "a\\u001b at (1.00, 2.00, 3.00)"


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ((None, None, None, None, None), {}),
        (
            ("all", "chair,bed", True, None, False),
            {"task": "all", "candidate_labels": "chair,bed", "align": True, "grammar": False},
        ),
        ((None, None, False, None, None), {"align": False}),
        ((None, None, None, "unit,floor", None), {"align": ["unit", "floor"]}),
        ((None, None, True, "unit", True), {"align": ["unit"], "grammar": True}),
    ],
)
def test_options_of_layouts_become_arguments(given, settings):
    assert detect.layout_settings(*given) == settings
    with raises(ValueError, naming="--align-parts"):
        detect.layout_settings(None, None, False, "unit", None)


def test_options_of_layouts_are_refused_for_other_models():
    scored, writes = SimpleNamespace(has_scores=True), SimpleNamespace(has_scores=False)
    detect.check_layout_settings(scored, "m", {})
    detect.check_layout_settings(writes, "m", {"task": "all"})
    for given, option in (
        ((None, "chair", None, None, None), "labels"),
        ((None, None, None, None, True), "grammar"),
        ((None, None, None, None, False), "no-grammar"),
        ((None, None, True, None, None), "align"),
        ((None, None, False, None, None), "no-align"),
        ((None, None, None, "unit", None), "align-parts"),
    ):
        with pytest.raises(
            ValueError, match=f"--{option}: m has boxes with scores and writes no layouts; expected no --{option}$"
        ):
            detect.check_layout_settings(scored, "m", detect.layout_settings(*given))


@pytest.mark.parametrize(
    ("output", "mesh", "colors"), [("a.html", False, True), ("a.html", True, False), ("a.png", False, False)]
)
def test_boxes_are_shown_in_the_frame_of_their_cloud(output, mesh, colors):
    added = []
    gallery = SimpleNamespace(is_page=output == "a.html", add=lambda *given: added.append(given))
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    cloud = PointCloudData(
        points,
        colors=np.full((4, 3), 0.25) if colors else None,
        faces=np.array([[0, 1, 2], [0, 1, 3]]) if mesh else None,
        offset=np.array([7.0, 8, 9]),
    )
    corners = np.array([[x, y, z] for x in (7, 8) for y in (8, 9) for z in (9, 10)])
    found = [box("lamp", 0.5, corners=corners.tolist())]
    detect._show(gallery, Cloud("in/scan.ply", cloud), "scan.ply", found, {"lamp": np.array([1, 0, 0.0])})
    shown, painted, title, *boxes = added[0]
    assert title == "scan.ply" and shown.min() == pytest.approx(0, abs=1e-3) and len(shown) == len(painted)
    if output == "a.html":
        ((view,),) = boxes
        low = [7, 8, 9] if not mesh else corners[0] - (view.corners[0] - 0)
        np.testing.assert_allclose(view.corners, corners - low, atol=1e-6)
        assert (view.label, view.score) == ("lamp", 0.5) and len(shown) == (100_000 if mesh else 4)
        assert painted[0] == pytest.approx([0.25] * 3 if colors else [0.7] * 3)
    else:
        assert painted[4:].tolist() == [[1, 0, 0]] * (len(shown) - 4) and len(shown) > 4


@pytest.mark.parametrize(
    ("architecture", "labels", "others", "task"),
    [
        ("PatchAlign3DForZeroShotPointCloudSegmentation", "a", ["templates"], "zero-shot-point-cloud-segmentation"),
        ("ActForPointCloudSegmentation", None, [], "point-cloud-segmentation"),
        ("PatchAlign3DForZeroShotPointCloudSegmentation", None, [], "--labels is missing; m finds parts by name"),
        ("ActForPointCloudSegmentation", "a", ["templates"], "--labels: m has labels of its own"),
        ("ActForPointCloudSegmentation", None, ["text_features"], "--text-features: m has labels of its own"),
    ],
)
def test_models_that_find_parts_by_name_need_names_and_others_refuse_them(
    architecture, labels, others, task, monkeypatch
):
    monkeypatch.setattr(segment, "read_model_config", lambda name: {"architectures": [architecture]})
    if " " not in task:
        assert segment._segmentation_task("m", labels, others) == task
        return
    with pytest.raises(ValueError, match=task):
        segment._segmentation_task("m", labels, others)


def test_the_share_of_a_part_is_that_of_all_points():
    part = {"label": "leg", "mask": np.array([True, False, True, False]), "score": 0.5}
    assert segment._share(part, 8) == {"label": "leg", "points": 2, "share": 0.25, "score": 0.5}
    points = np.array([[5e6, 1, 2], [5e6 + 1, 0, 3]])
    assert segment.cloud_frame(points).tolist() == [[0, 1, 0], [1, 0, 1]]
