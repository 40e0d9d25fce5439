"""Options of `segment` and `reconstruct` reach what does the work, and what comes back is printed and kept."""

import csv
import json
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from tests.cli.conftest import run

segment, reconstruct = (import_module(f"hf_any3d.cli.{name}") for name in ("segment", "reconstruct"))


class Parts:
    """Stands in for a pipeline that labels points, and keeps how it is called."""

    def __init__(self, returns_num_points):
        self.feature_extractor = SimpleNamespace(up_axis="z", returns_num_points=returns_num_points)
        self.model = SimpleNamespace(config=SimpleNamespace(label_colors=["#000000", "#ff0000", "#00ff00"]))
        self.calls = []

    def label_names(self, *labels):
        self.calls.append(labels)
        return ["top", "a leg", "foot"]

    def __call__(self, row, **given):
        self.calls.append(given)
        points = row["points"].points
        labels = np.array([2, 0, 0, 0] if points.min() < 1000 else [0, 2, 2, 2])
        segments = [
            {"label": self.label_names()[n], "mask": labels == n, "score": 0.5 + n / 8} for n in np.unique(labels)
        ]
        self.calls.pop()
        self.calls.pop()
        return {"points": points, "labels": labels, "segments": segments}


@pytest.mark.parametrize("output", [None, "o.html", "o.ply", "folder", "o.csv"])
def test_labels_of_points_are_lines_cells_and_files(output, opened, shown, shapes, tmp_path, monkeypatch):
    pipe = Parts(returns_num_points=True)
    asked = opened(segment, pipe)
    monkeypatch.setattr(segment, "_segmentation_task", lambda *given: asked.append(given) or "segmenting")
    written = []
    monkeypatch.setattr(
        "hf_any3d.data.files.write_point_cloud", lambda path, cloud: written.append((path, cloud.colors, cloud.labels))
    )
    files = shapes / "b.xyz" if output == "o.ply" else shapes
    words = () if output is None else ("--output", tmp_path / output)
    code, out, err = run("segment", "m", files, *words, "--device", "cpu", "--file-type", "xyz")
    assert code == 0, err
    assert asked == [
        ("read", "xyz"),
        ("checked", "m", "segment"),
        ("found m", None, []),
        ("opened", "segmenting", "found m", "cpu"),
        ("batches", 1, False),
    ]
    wide = max(len(str(shapes / name)) for name in (("b.xyz",) if output == "o.ply" else ("a.v1.xyz",)))
    lines = [
        f"{str(shapes / 'a.v1.xyz'):<{wide}}  4 points: top 75.0 %   foot 25.0 %",
        f"{str(shapes / 'b.xyz'):<{wide}}  4 points: top 25.0 %   foot 75.0 %",
        f"{str(shapes / 'c.xyz'):<{wide}}  4 points: top 75.0 %   foot 25.0 %",
    ]
    assert out.splitlines() == (lines[1:2] if output == "o.ply" else lines)
    palette = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    gallery, *pages = shown
    assert gallery.given == (tmp_path / output if output == "o.html" else None, 1 if output == "o.ply" else 3, "z")
    legend = {"top": [0, 0, 0], "foot": [0, 1, 0]}
    assert gallery.written == [(("labels by m", legend), {})]
    shape = [[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]]
    if output == "o.html":
        assert [title for *_, title in gallery.added] == ["a.v1.xyz", "b.xyz", "c.xyz"]
        for points, colors, title in gallery.added:
            np.testing.assert_allclose(points, shape)
            assert colors.tolist() == palette[[0, 2, 2, 2] if title == "b.xyz" else [2, 0, 0, 0]].tolist()
    if output == "o.ply":
        ((path, colors, labels),) = written
        assert path == tmp_path / "o.ply" and labels.tolist() == [0, 2, 2, 2]
        assert colors.tolist() == palette[labels].tolist() and not pages
    if output == "folder":
        assert [path for path, *_ in written] == [tmp_path / "folder" / f"{name}.ply" for name in ("a.v1", "b", "c")]
        for page, name in zip(pages, ("a.v1", "b", "c"), strict=True):
            assert page.given == (tmp_path / "folder" / f"{name}.html", 1, "z")
            assert page.written == [((name, legend), {})] and page.added[0][2] == name
            np.testing.assert_allclose(page.added[0][0], shape)
    if output == "o.csv":
        rows = list(csv.reader((tmp_path / "o.csv").read_text().splitlines()))
        assert rows[:3] == [
            ["file", "label", "points", "share", "score"],
            [str(shapes / "a.v1.xyz"), "top", "3", "0.75", "0.5"],
            [str(shapes / "a.v1.xyz"), "foot", "1", "0.25", "0.75"],
        ]
        assert len(rows) == 7


@pytest.mark.parametrize(("returns", "size"), [(True, 7), (False, 1)])
def test_options_of_a_segmentation_reach_the_pipeline(returns, size, opened, shown, shapes, monkeypatch):
    given = []

    class Asked(Parts):
        def __call__(self, row, **more):
            given.append(more)
            return super().__call__(row, **more)

        def label_names(self, *labels):
            given.append(labels)
            return super().label_names(*labels)

    asked = opened(segment, Asked(returns))
    monkeypatch.setattr(segment, "_segmentation_task", lambda *more: asked.append(more) or "segmenting")
    assert run("segment", "m", shapes / "b.xyz").code == 0
    usual = {"category": None, "up_axis": None, "max_points": None, "batch_size": size, "progress": True}
    assert given[:2] == [(), usual]
    words = ("--category", "table", "--up-axis", "x", "--max-points", 3, "--votes", "--batch-size", 5)
    texts = ("--labels", "a, b", "--templates", "part_only", "--text-features", "t.safetensors")
    given.clear()
    code, out, _ = run("segment", "m", shapes / "b.xyz", *words, *texts, "--json")
    assert code == 0 and asked[-3] == ("found m", "a, b", ["templates", "text_features"])
    assert given[0] == ("a, b",) and shown[-1].given == (None, 1, "x")
    told = {name: str(value) if name == "text_features" else value for name, value in given[1].items()}
    assert told == {
        "candidate_labels": "a, b", "templates": "part_only", "text_features": "t.safetensors", "category": "table",
        "up_axis": "x", "max_points": 3, "votes": True, "batch_size": 5, "progress": True,
    }  # fmt: skip
    (row,) = json.loads(out)
    assert row == {
        "file": str(shapes / "b.xyz"),
        "points": 4,
        "segments": [
            {"label": "top", "points": 1, "share": 0.25, "score": 0.5},
            {"label": "foot", "points": 3, "share": 0.75, "score": 0.75},
        ],
    }


def test_reconstructions_are_lines_cells_and_files(opened, shapes, tmp_path, monkeypatch):
    (shapes / "d.ply").write_text("ply\n")
    pipe = SimpleNamespace(feature_extractor=SimpleNamespace(up_axis="z"))
    asked, written = opened(reconstruct, pipe), []
    monkeypatch.setattr(reconstruct, "is_quiet", lambda *given: given)
    monkeypatch.setattr(reconstruct, "_write_reconstructions", lambda *given: written.append(given))
    result = {"chamfer_l1": 0.0125, "chamfer_l2": 0.5, "f_score": 0.75, "token_ids": np.array([4, 4, 9])}

    def answerer(given, model, **arguments):
        asked.append((given is pipe, model, arguments))
        answers = {"a.v1.xyz": result, "b.xyz": {"error": "b.xyz: NaN"}, "c.xyz": result | {"f_score": 1.0}}
        return lambda clouds: [dict(answers[cloud.name.rpartition("/")[2]]) for cloud in clouds]

    monkeypatch.setattr(reconstruct, "answerer", answerer)
    words = ("--threshold", 0.25, "--batch-size", 2, "--device", "cpu", "--file-type", "xyz")
    code, out, err = run("reconstruct", "m", shapes, *words, "--output", tmp_path / "folder")
    assert asked == [
        ("read", "xyz"),
        ("checked", "m", "reconstruct"),
        ("opened", "point-cloud-reconstruction", "found m", "cpu"),
        (True, "m", {"threshold": 0.25}),
        ("batches", 2, (False, False)),
    ]
    first, last = str(shapes / "a.v1.xyz"), str(shapes / "c.xyz")
    told = "CD-L1 12.50e-3   CD-L2 500.00e-3   F-score {:.3f}   2 codes for 3 patches"
    assert code == 2 and out.splitlines() == [
        f"{first}  {told.format(0.75)}",
        f"{last:<{len(first)}}  {told.format(1.0)}",
    ]
    ((output, suffix, results, places, up_axis),) = written
    assert (output, suffix, up_axis) == (tmp_path / "folder", "", "z") and list(results) == [first, last]
    assert [places[name].name for name in results] == ["a.v1", "c"] and results[last]["f_score"] == 1.0
    asked.clear()
    code, out, _ = run("reconstruct", "m", shapes, "--csv", "--output", tmp_path / "table.json")
    assert asked[3:] == [(True, "m", {"threshold": 0.01}), ("batches", 7, (False, True))] and len(written) == 1
    rows = list(csv.reader(out.splitlines()))
    assert rows[0] == ["file", "chamfer_l1", "chamfer_l2", "f_score", "error"]
    assert [row[1:] for row in rows[1:4]] == [
        ["0.0125", "0.5", "0.75", ""],
        ["", "", "", "b.xyz: NaN"],
        ["0.0125", "0.5", "1.0", ""],
    ]
    kept = json.loads((tmp_path / "table.json").read_text())
    scores = {"chamfer_l1": 0.0125, "chamfer_l2": 0.5, "f_score": 0.75}
    assert kept[0] == {"file": first, **scores, "token_ids": [4, 4, 9]}
    assert [row["file"] for row in kept] == [*(str(shapes / f"{name}.xyz") for name in ("a.v1", "b", "c")), rows[4][0]]
    assert run("reconstruct", "m", shapes / "b.xyz", "--output", tmp_path / "b.ply").code == 2 and len(written) == 1
