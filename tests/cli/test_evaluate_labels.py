"""`evaluate PREDICTED TRUTH` of files of points, and what `data check` says of labeled tiles."""

import json

import laspy
import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData, write_point_cloud
from tests.cli.conftest import run
from tests.visualization.test_viewer import content

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

# Ground, building and water; the prediction leaves one point without a class and takes water for ground.
TRUE = [2, 2, 2, 2, 6, 6, 6, 9, 1, 0]
ANSWERS = [2, 2, 2, 6, 6, 6, 0, 2, 2, 6]


def places(count=10):
    return np.random.default_rng(0).uniform([500_000, 5_000_000, 0], [500_100, 5_000_100, 20], (count, 3)).round(3)


def tile(path, points, labels, *, returns=True, colors=None, feet=False):
    """Write a tile in meters with coordinates of a map."""
    header = laspy.LasHeader(point_format=2 if colors is not None else 1, version="1.2")
    header.offsets, header.scales = [500_000, 5_000_000, 0], [0.001] * 3
    if feet:  # a directory of GeoTIFF keys with one: the unit is the foot
        body = np.array([1, 1, 0, 1, 3076, 0, 1, 9002], "<u2").tobytes()
        header.vlrs.append(laspy.VLR("LASF_Projection", 34735, "", body))
    scan = laspy.LasData(header)
    scan.x, scan.y, scan.z = points.T
    scan.classification = np.array(labels, np.uint8)
    if returns:
        scan.return_number = scan.number_of_returns = np.ones(len(points), np.uint8)
    if colors is not None:
        scan.red = scan.green = scan.blue = np.full(len(points), colors, np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    scan.write(str(path))
    return path


def figures(*words):
    code, out, err = run("evaluate", *words, "--json")
    assert code == 0, err
    return json.loads(out)


def check(found):
    """Figures of TRUE and ANSWERS by hand, of the eight points with a true class."""
    assert found["counted"] == 8 and found["never_classified"] == 1
    assert found["accuracy"] == pytest.approx(5 / 8)
    classes = {row["name"]: row for row in found["classes"]}
    assert list(classes) == ["ground", "building", "water"]
    assert [classes[name]["iou"] for name in classes] == pytest.approx([3 / 5, 2 / 4, 0])
    assert [classes[name]["recall"] for name in classes] == pytest.approx([3 / 4, 2 / 3, 0])
    assert classes["ground"]["precision"] == pytest.approx(3 / 4) and classes["water"]["precision"] is None
    assert found["mean_iou"] == pytest.approx((3 / 5 + 2 / 4) / 3)
    assert found["without_truth"] == {"never classified": 1, "unclassified": 1}
    labels, counts = found["confusion"]["labels"], np.array(found["confusion"]["counts"])
    assert counts[labels.index(9), labels.index(2)] == 1 and counts.sum() == 8


@pytest.mark.parametrize("ending", ["laz", "las", "ply", "npz", "pcd"])
def test_figures_are_those_counted_by_hand_whatever_the_format(ending, tmp_path):
    truth, path = tile(tmp_path / "truth.laz", places(), TRUE), tmp_path / f"answers.{ending}"
    if ending in ("las", "laz"):
        tile(path, places(), ANSWERS)
    elif ending == "pcd":
        rows = [f"{x!r} {y!r} {z!r} {label}" for (x, y, z), label in zip(places().tolist(), ANSWERS, strict=True)]
        head = "FIELDS x y z label\nSIZE 8 8 8 4\nTYPE F F F U\nWIDTH 10\nHEIGHT 1\nDATA ascii\n"
        path.write_text(head + "\n".join(rows) + "\n")
    else:
        write_point_cloud(path, PointCloudData(places(), labels=ANSWERS))
    found = figures(path, truth)
    check(found)
    assert found["files"][0]["matching"] == "order" and found["unmatched"] == 0


def test_points_in_another_order_are_matched_by_the_nearest(tmp_path):
    truth = tile(tmp_path / "truth.laz", places(), TRUE)
    order = np.random.default_rng(1).permutation(10)
    found = figures(tile(tmp_path / "a.laz", places()[order] + 0.002, np.array(ANSWERS)[order]), truth)
    check(found)
    assert found["files"][0]["matching"] == "nearest" and found["files"][0]["tolerance"] == pytest.approx(0.01)
    fewer = figures(tile(tmp_path / "b.laz", places()[:7], ANSWERS[:7]), truth)
    assert fewer["unmatched"] == 3 and fewer["counted"] == 7
    code, out, _ = run("evaluate", tmp_path / "b.laz", truth)
    assert code == 0 and "nearest point within the tolerance" in out and "3 points" in out
    code, _, err = run("evaluate", tmp_path / "a.laz", truth, "--tolerance", 0.001)
    assert code == 1 and "a.laz" in err and "within 0.001" in err


def test_lines_say_what_is_confused_and_what_does_not_count(tmp_path):
    truth, answers = tile(tmp_path / "truth.laz", places(), TRUE), tile(tmp_path / "a.laz", places(), ANSWERS)
    code, out, _ = run("evaluate", answers, truth, "--page", tmp_path / "a.html", "--output", tmp_path / "a.csv")
    assert code == 0
    for text in ("equal coordinates in the same order", "accuracy 62.50 %", "water as ground 1", "never classified"):
        assert text in out
    assert (tmp_path / "a.csv").read_text().splitlines()[1].startswith("2,ground,0.6,0.75,0.75,4,4")
    shown = content((tmp_path / "a.html").read_text())[0]
    assert [panel["title"] for panel in shown["panels"]] == [
        f"a.laz: {kind}" for kind in ("truth", "prediction", "differences")
    ]
    assert shown["colorings"][0]["names"][-2:] == ["equal", "not counted"]


def test_any_labels_may_be_ignored_and_named(tmp_path):
    truth, answers = tile(tmp_path / "truth.laz", places(), TRUE), tile(tmp_path / "a.laz", places(), ANSWERS)
    found = figures(answers, truth, "--ignore", "9", "--names", '{"1": "rest"}')
    assert found["counted"] == 9 and found["without_truth"] == {"water": 1}
    assert [row["name"] for row in found["classes"]] == ["never classified", "rest", "ground", "building"]
    assert found["never_classified"] == 0
    for name, labels in (("p", [0, 1, 1, 2]), ("t", [0, 1, 2, -100])):
        write_point_cloud(tmp_path / f"{name}.npz", PointCloudData(np.eye(4, 3), labels=labels))
    found = figures(tmp_path / "p.npz", tmp_path / "t.npz")
    # Without LAS, 0 is a class like others, and a negative label none.
    assert found["counted"] == 3 and [row["name"] for row in found["classes"]] == ["class 0", "class 1", "class 2"]
    assert run("evaluate", tmp_path / "p.npz", tmp_path / "t.npz", "--ignore", "x").code == 2


def test_folders_are_compared_file_by_file_of_the_same_names(tmp_path):
    for name in ("a", "inner/b"):
        tile(tmp_path / "truth" / f"{name}.laz", places(), TRUE)
        tile(tmp_path / "answers" / f"{name}.las", places(), ANSWERS)
    tile(tmp_path / "truth" / "c.laz", places(), TRUE)
    code, out, err = run(
        "evaluate", "labels", tmp_path / "answers", tmp_path / "truth", "--output", tmp_path / "a.json"
    )
    assert code == 0 and "of 16 points" in out and "1 of 3 files have no partner: c.laz" in err
    found = json.loads((tmp_path / "a.json").read_text())
    assert [row["file"] for row in found["files"]] == ["a", "inner/b"]
    assert [row["accuracy"] for row in found["files"]] == [found["accuracy"]] * 2
    write_point_cloud(tmp_path / "answers" / "c.ply", PointCloudData(places()))
    code, out, err = run("evaluate", tmp_path / "answers", tmp_path / "truth")
    assert code == 2 and "c.ply: no labels of points" in err and "of 16 points" in out


def test_what_cannot_be_compared_is_named(tmp_path):
    truth, other = tile(tmp_path / "truth.laz", places(), TRUE), tile(tmp_path / "o.laz", places() + 1000, ANSWERS)
    for words, naming in (
        ((other, truth), "o.laz: none of the 10 points"),
        ((truth, tmp_path / "none.laz"), "none.laz"),
        ((truth, tmp_path), "a file and a folder"),
        ((tile(tmp_path / "feet.laz", places(), ANSWERS, feet=True), truth), "0.3048 m"),
        ((truth, tile(tmp_path / "empty.laz", places(), [0] * 10)), "never classified"),
    ):
        code, _, err = run("evaluate", *words)
        assert code == 1 and naming in err, err
    assert run("evaluate", truth, truth, "--page", tmp_path / "a.png").code == 1


def test_check_says_what_labeled_tiles_have_and_how_they_differ(tmp_path):
    points = places(4000)
    half = np.where(np.arange(4000) % 2, 2, 6)
    folder = tmp_path / "tiles"
    tile(folder / "a.laz", points, half, colors=1000)
    tile(folder / "b.laz", points + [90, 0, 0], half, returns=False)
    tile(folder / "c.laz", points[:400] + [300, 0, 0], np.where(np.arange(400) % 4, 2, 9))
    tile(folder / "d.laz", points[:2000] + [900, 0, 0], [0] * 2000, feet=True)
    write_point_cloud(folder / "e.ply", PointCloudData(points))
    code, out, _ = run("data", "check", folder)
    assert code == 0
    for text in (
        "labels of points: 0 never classified 19.2 %, 2 ground 41.3 %, 6 building 38.5 %, 9 water 0.962 %",
        "only 1 of 4 have 9 water: in c.laz",
        "only 3 of 4 have 2 ground: not in d.laz",
        "no labels of points in 1 of 5: e.ply",
        "no point is classified in 1 of 5: d.laz",
        "units differ: no coordinate system: assuming meters in a.laz, b.laz, c.laz; feet in d.laz; not known in e",
        "overlapping boxes, 1 pair: a.laz and b.laz",
        "no colors in 4 of 5: b.laz, c.laz, d.laz, e.ply",
        "no numbers of returns in 1 of 4: b.laz",
    ):
        assert text in out, out
    densities = {
        row["file"][-5]: row["points_per_square_meter"]
        for row in json.loads(run("data", "check", folder, "--json").out)
    }
    # Few of 10,000 cells have a point, so that these are denser than a point to 25 square meters.
    assert 1 < densities["c"] < 1.1 and 1.1 < densities["a"] < 1.3 and densities["e"] is None


def test_check_counts_labels_of_faces(tmp_path):
    corners = np.eye(3)
    for name, labels in (("a", [7]), ("b", [0]), ("c", None)):
        mesh = PointCloudData(corners, faces=np.array([[0, 1, 2]]), face_labels=labels and np.array(labels))
        write_point_cloud(tmp_path / "meshes" / f"{name}.ply", mesh)
    code, out, _ = run("data", "check", tmp_path / "meshes")
    assert "labels of faces: 0 50 %, 7 50 %" in out and "no labels of faces in 1 of 3: c.ply" in out


def test_classes_are_joined_in_prediction_and_truth(tmp_path):
    # Learned as one class, whose code in files is 5: heights of vegetation are right, and buildings are one of two.
    truth = tile(tmp_path / "truth.las", places(6), [3, 4, 5, 6, 6, 2])
    answers = tile(tmp_path / "answers.las", places(6), [5, 5, 5, 6, 2, 2])
    code, out, err = run("evaluate", answers, truth)
    assert code == 0 and "--merge vegetation=3,4,5" in err and "6 of 6 points" in out
    found = figures(answers, truth, "--merge", "vegetation=3,4,5", "hard=2,6")
    assert {row["name"] for row in found["classes"]} == {"vegetation", "hard"} and found["mean_iou"] == 1
    found = figures(answers, truth, "--merge", "vegetation=3,4,5", "--ignore", "0,6")
    assert found["counted"] == 4 and found["mean_iou"] == 1
    assert run("evaluate", answers, truth, "--merge", "a=3,4", "b=4").code == 2


def test_figures_of_points_that_match_by_chance_are_refused(tmp_path):
    other = places(10) * [1, 1, -1] - [0, 0, 1]
    other[0] = places(10)[0]
    truth = tile(tmp_path / "truth.las", places(10), TRUE)
    answers = tile(tmp_path / "answers.las", other, ANSWERS)
    code, out, err = run("evaluate", answers, truth)
    assert code == 1 and not out and "1 of the 10 points" in err and "--least-matched" in err
    assert figures(answers, truth, "--least-matched", "0.1")["unmatched"] == 9
