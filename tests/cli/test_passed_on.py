"""Every option of a command that runs a model reaches what does the work, and what comes back is printed and kept."""

import csv
import json
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from hf_any3d.visualization.viewer import LOWEST_BOX, BoxView, label_colors
from tests.cli.conftest import run

predict, detect = (import_module(f"hf_any3d.cli.{name}") for name in ("predict", "detect"))
no_object = import_module("hf_any3d.data.no_object")


PLAIN = {"top_k": 3, "up_axis": None, "votes": None, "unknown": True, "one_sided": True}
WORDS = {"candidate_labels": "a, b", "hypothesis_template": None, "text_embeds": None, "top_k": 3, "up_axis": None}


@pytest.mark.parametrize(
    ("words", "arguments", "others"),
    [
        ((), PLAIN, (None, None, False, False)),
        (
            ("--top-k", 2, "--up-axis", "x", "--votes", 4, "--no-unknown", "--output", "o.csv", "--batch-size", 5),
            {"top_k": 2, "up_axis": "x", "votes": 4, "unknown": False, "one_sided": False},
            ("o.csv", 5, False, False),
        ),
        (("--json",), PLAIN, (None, None, True, False)),
        (("--csv",), PLAIN, (None, None, False, True)),
        (("--labels", "a, b"), WORDS, (None, None, False, False)),
        (
            ("-l", "a, b", "--text-features", "t.npy", "--top-k", 1, "--up-axis", "z", "--output", "o.html")
            + ("--batch-size", 6, "--json"),
            WORDS | {"text_embeds": "read t.npy", "top_k": 1, "up_axis": "z"},
            ("o.html", 6, True, False),
        ),
        (("-l", "a, b", "--csv"), WORDS, (None, None, False, True)),
    ],
)
def test_options_of_a_prediction_reach_the_pipeline(words, arguments, others, opened, shapes, monkeypatch):
    given = []
    asked = opened(predict, "pipe")
    monkeypatch.setattr(predict, "_classify", lambda *one: given.append(one))
    monkeypatch.setattr(predict, "read_model_config", lambda name: {})
    monkeypatch.setattr(predict, "read_text_features", lambda path: f"read {path}")
    commands = [("predict", (), (), "hypothesis_template")]
    if "candidate_labels" in arguments:
        commands.append(("zero-shot", ("--template", "a {}."), ("a {}.",), "hypothesis_template"))
    for command, more, template, key in commands:
        found = run(command, "m", shapes, *words, *more, "--device", "cpu", "--file-type", "xyz")
        assert found.code == 0, found.err
        pipe, name, inputs, told, output, *rest = given.pop()
        is_zero_shot = "candidate_labels" in arguments
        # A model of words keeps its name, which was checked alone.
        model = "m" if is_zero_shot else "found m"
        assert (pipe, name, len(inputs)) == ("pipe", model, 3) and (output and str(output), *rest) == others
        assert told == arguments | ({key: template[0]} if template else {})
        kind = "zero-shot-point-cloud-classification" if is_zero_shot else "point-cloud-classification"
        assert asked[-3:] == [
            ("read", "xyz"),
            ("checked", "m", "zero-shot" if is_zero_shot else "predict"),
            ("opened", kind, model, "cpu"),
        ]


@pytest.mark.parametrize(
    ("config", "words", "refused"),
    [
        ({"aligned_with": "EVA"}, (), True),
        ({"aligned_with": "EVA", "parts": {"encoder": {}}}, (), True),
        ({"aligned_with": "EVA", "parts": {"text_tower": {}}}, (), False),
        ({"aligned_with": "EVA"}, ("--text-features", "a.npy"), False),
        ({}, (), False),
    ],
)
def test_words_that_cannot_be_encoded_here_are_refused_before_a_model_is_opened(
    config, words, refused, opened, shapes, monkeypatch
):
    asked = opened(predict, "pipe")
    monkeypatch.setattr(predict, "_classify", lambda *one: None)
    monkeypatch.setattr(predict, "read_model_config", lambda name: asked.append(name) or config)
    monkeypatch.setattr(predict, "read_text_features", str)
    found = run("zero-shot", "m", shapes, "-l", "a", *words)
    assert "found m" in asked and (asked[-1][0] == "opened") is not refused
    assert found.code == refused and ("encoded by EVA, which cannot be opened here" in found.err) is refused
    if words:
        found = run("predict", "m", shapes, *words)
        assert found.code == 1 and "--text-features belong to --labels, which are missing" in found.err


def prediction(label, score, **more):
    return {"label": label, "score": score, **more}


def test_predictions_are_lines_cells_titles_and_remarks(opened, shown, shapes, tmp_path, monkeypatch):
    """The first cloud is known, the second lies on its side, the third is seen from one side, the last is damaged."""
    pipe = SimpleNamespace(
        feature_extractor=SimpleNamespace(up_axis="z"),
        model=SimpleNamespace(config=SimpleNamespace(id2label={0: "chair", 1: "a long name"})),
    )
    (shapes / "d.ply").write_text("ply\n")
    asked = opened(predict, pipe)
    monkeypatch.setattr(no_object, "FEW_POINTS", 3)
    monkeypatch.setattr(predict, "is_quiet", lambda *given: given)
    answers = {
        "a.v1": [prediction("chair", 0.75, unknown=0.5, one_sided=0.5), prediction("a long name", 0.25, unknown=0.5)],
        "b": [prediction("a long name", 0.625, unknown=0.875, one_sided=0.9)],
        "c": [prediction(None, 0.875, unknown=0.25, one_sided=0.75)],
    }

    def answerer(given, model, **arguments):
        asked.append((given is pipe, model, arguments))
        turned = arguments["up_axis"] in ("x", "y")
        known = [prediction("chair", 1.0, unknown=0.125 if arguments["up_axis"] == "y" else 0.2)]
        stem = lambda cloud: cloud.name.rpartition("/")[2].removesuffix(".xyz")  # noqa: E731
        return lambda clouds: [known if turned else [dict(one) for one in answers[stem(cloud)]] for cloud in clouds]

    monkeypatch.setattr(predict, "answerer", answerer)
    output = tmp_path / "page.html"
    code, out, err = run("predict", "m", shapes, "--output", output, "--top-k", 2)
    assert code == 2
    places = [str(shapes / f"{name}.xyz") for name in answers]
    wide = max(map(len, places))
    assert out.splitlines() == [
        f"{places[0]:<{wide}}  chair        75.0 %   a long name  25.0 %",
        f"{places[1]:<{wide}}  a long name  62.5 %",
        f"{places[2]:<{wide}}  none of these",
    ]
    assert f"warning: {places[1]}: if y points up it looks like chair: try --up-axis y" in err.splitlines()
    assert f"warning: {places[2]}: looks as if seen from one side, " in err
    assert err.count("warning: ") == 2 and "1 of 4 files could not be used" in err
    (page,) = shown
    assert page.given == (output, 4, "z") and page.written == [(("predictions of found m",), {})]
    assert [title for _, title in page.added] == [
        "a.v1.xyz: chair, 75 %",
        "b.xyz: a long name, 62 %",
        "c.xyz: none of these",
    ]
    assert ("batches", 7, (False, False)) in asked
    settings = {"top_k": 2, "up_axis": None, "votes": None, "unknown": True, "one_sided": True}
    assert [entry for entry in asked if entry[0] is True] == [
        (True, "found m", settings | {"up_axis": axis}) for axis in (None, "x", "y")
    ]
    code, out, _ = run(
        "predict", "m", shapes / "a.v1.xyz", "--json", "--output", tmp_path / "a.json", "--up-axis", "z"
    )
    rows = json.loads(out)
    assert code == 0 and json.loads((tmp_path / "a.json").read_text()) == rows
    expected = [{name: value for name, value in one.items() if name != "one_sided"} for one in answers["a.v1"]]
    assert rows == [{"file": places[0], "predictions": expected}]
    assert shown[1].given == (None, 1, "z") and shown[1].added == []


def test_features_are_lines_cells_and_files_of_good_clouds(opened, shapes, tmp_path, monkeypatch):
    (shapes / "d.ply").write_text("ply\n")
    asked = opened(predict, "pipe")
    monkeypatch.setattr(predict, "is_quiet", lambda *given: given)
    written = []
    monkeypatch.setattr(predict, "_write_features", lambda *given: written.append(given))

    def feature_answerer(*given):
        asked.append(given)
        return lambda clouds: [{"features": [0.5, len(cloud.name), 2.0, 3.25, 4.125]} for cloud in clouds]

    monkeypatch.setattr(predict, "feature_answerer", feature_answerer)
    code, out, _ = run("features", "m", shapes)
    places = [str(shapes / f"{name}.xyz") for name in ("a.v1", "b", "c")]
    assert code == 2 and out.splitlines() == [
        f"{place:<{len(places[0])}}  5 features: 0.500 {len(place)}.000 2.000 3.250 …" for place in places
    ]
    allowed = ("predict", "zero-shot", "segment", "detect", "features")
    opening = ("opened", "point-cloud-feature-extraction", "found m", None)
    answered = ("pipe", "found m", "pooled", None)
    assert asked == [("read", None), ("checked", "m", *allowed), opening, answered, ("batches", 7, (False, False))]
    asked.clear()
    words = ("--feature", "class_token", "--up-axis", "x", "--batch-size", 2, "--device", "cpu", "--file-type", "xyz")
    code, out, _ = run("features", "m", shapes, *words, "--output", tmp_path / "f.npz", "--csv")
    assert asked[0] == ("read", "xyz") and asked[2:] == [
        (*opening[:3], "cpu"),
        ("pipe", "found m", "class_token", "x"),
        ("batches", 2, (False, True)),
    ]
    rows = list(csv.reader(out.splitlines()))
    assert rows[0] == ["file", *(f"feature_{number}" for number in range(5)), "error"]
    assert [row[1:-1] for row in rows[1:4]] == [["0.5", str(len(place)), "2.0", "3.25", "4.125"] for place in places]
    ((path, names, values),) = written
    assert path == tmp_path / "f.npz" and names == places and values.dtype == np.float32
    assert values.tolist() == [[0.5, len(place), 2.0, 3.25, 4.125] for place in places]
    assert run("features", "m", shapes, "--output", tmp_path / "f.json").code == 2 and len(written) == 1
    assert [row.get("features", [])[:1] for row in json.loads((tmp_path / "f.json").read_text())] == [
        [0.5], [0.5], [0.5], [],
    ]  # fmt: skip
    assert "expected one of .npz, .npy, .html, .png, .json, .csv" in run("features", "m", shapes, "--output", "f").err


def box(label, score, low):
    """A cube of side 2 whose smallest corner is given."""
    low = np.asarray(low, dtype=float)
    corners = [low + [2 * x, 2 * y, 2 * z] for z in (0, 1) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
    place = {"center": (low + 1).tolist(), "size": [2.0, 2.0, 2.0], "heading": 0.0}
    return {"label": label, "score": score, "box": place | {"corners": np.array(corners).tolist()}}


@pytest.mark.parametrize(
    ("ending", "has_scores", "threshold", "least"),
    [
        ("html", True, 0.5, LOWEST_BOX),
        ("html", True, 0.01, 0.01),
        ("html", False, 0.5, 0.5),
        ("png", True, 0.5, 0.5),
        ("json", True, 0.5, 0.5),
        (None, True, 0.5, 0.5),
    ],
)
def test_boxes_are_lines_cells_and_shown_above_a_lower_score(
    ending, has_scores, threshold, least, opened, shown, shapes, tmp_path, monkeypatch
):
    pipe = SimpleNamespace(labels=["chair", "lamp"], up_axis="z", has_scores=has_scores)
    asked = opened(detect, pipe)
    found = {
        "a.v1.xyz": [box("lamp", 0.5 if has_scores else None, (0, 0, 0)), box("odd", 0.25, (0, 0, 1))],
        "b.xyz": [box("chair", 0.75, (1000, 1001, 1002)), box("lamp", 1.0, (1000, 1000, 1000))],
        "c.xyz": [],
    }

    def box_answerer(*given, **arguments):
        asked.append((*given, arguments))
        return lambda clouds: [{"boxes": list(found[cloud.name.rpartition("/")[2]])} for cloud in clouds]

    monkeypatch.setattr(detect, "box_answerer", box_answerer)
    output = None if ending is None else tmp_path / f"o.{ending}"
    words = () if output is None else ("--output", output)
    more = ("--threshold", threshold, "--nms-iou", 0.75, "--top-k", 9, "--device", "cpu", "--file-type", "xyz")
    code, out, err = run("detect", "m", shapes, *words, *more)
    assert code == 0, err
    assert asked[:3] == [
        ("read", "xyz"),
        ("checked", "m", "detect"),
        ("opened", "point-cloud-object-detection", "found m", "cpu"),
    ]
    assert asked[3] == (pipe, "m", {"threshold": least, "nms_iou": 0.75, "top_k": 9, "up_axis": None})
    assert asked[4] == ("batches", 1, False)
    score = " 50 %" if has_scores else ""
    odd = "   odd 25 % at (1.00, 1.00, 2.00)" if threshold < 0.25 else ""
    wide = len(str(shapes / "a.v1.xyz"))
    assert out.splitlines() == [
        f"{shapes / 'a.v1.xyz'}  {'2 boxes' if odd else '1 box'}: lamp{score} at (1.00, 1.00, 1.00){odd}",
        f"{str(shapes / 'b.xyz'):<{wide}}  2 boxes: chair 75 % at (1001.00, 1002.00, 1003.00)   "
        "lamp 100 % at (1001.00, 1001.00, 1001.00)",
        f"{str(shapes / 'c.xyz'):<{wide}}  0 boxes",
    ]
    (page,) = shown
    assert page.given == (output if ending in ("html", "png") else None, 3, "z")
    colors = label_colors(2)
    gray = np.float32([0.7, 0.7, 0.7])
    ((title,), told), = [(given[:1], (given[1:], more)) for given, more in page.written]  # fmt: skip
    assert title == "boxes by m"
    if ending == "html":
        assert told == ((), {"box_names": ["chair", "lamp", "odd"], "threshold": threshold})
        assert [entry[2] for entry in page.added] == list(found)
        for (points, painted, name, boxes), shift in zip(page.added, (0, 1000, 2), strict=True):
            np.testing.assert_allclose(points, [[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], atol=1e-6)
            assert np.array_equal(painted, np.tile(gray, (4, 1))) and all(type(one) is BoxView for one in boxes)
            assert [(one.label, one.score) for one in boxes] == [(one["label"], one["score"]) for one in found[name]]
            for view, one in zip(boxes, found[name], strict=True):
                np.testing.assert_allclose(view.corners, np.asarray(one["box"]["corners"]) - shift, atol=1e-6)
    else:
        (legend,), others = told
        expected = {"lamp": colors[1].tolist(), "chair": colors[0].tolist()}
        assert legend == expected and list(legend) == ["lamp", "chair"] and others == {}
    if ending == "png":
        painted = [np.unique(entry[1][4:], axis=0) for entry in page.added]
        np.testing.assert_allclose(painted[0], np.unique([colors[1], gray], axis=0))
        np.testing.assert_allclose(painted[1], np.unique(colors, axis=0))
        assert len(painted[2]) == 0
    if ending == "json":
        rows = json.loads(output.read_text())
        assert [[one["label"] for one in row["boxes"]] for row in rows] == [["lamp"], ["chair", "lamp"], []]
    asked.clear()
    run("detect", "m", shapes / "c.xyz", "--up-axis", "x", *words)
    assert asked[3][2]["up_axis"] == shown[1].given[2] == "x"
    if not has_scores:
        layouts = ("--task", "all", "--labels", "bed,chair", "--align-parts", "unit,floor", "--grammar")
        run("detect", "m", shapes / "c.xyz", *layouts)
        told = {"task": "all", "candidate_labels": "bed,chair", "align": ["unit", "floor"], "grammar": True}
        assert asked[-2][2] == {"threshold": 0.5, "nms_iou": 0.25, "top_k": None, "up_axis": None, **told}
