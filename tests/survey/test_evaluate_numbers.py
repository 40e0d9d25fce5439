"""`evaluate PREDICTED TRUTH --numbers COLUMN` of files with numbered things."""

import json

import laspy
import numpy as np
import pytest

from tests.cli.conftest import run
from tests.survey.test_instances import PREDICTED, TRUE
from tests.visualization.test_viewer import coloring, content, decoded

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")
POINTS = np.random.default_rng(0).uniform([500_000, 5_000_000, 0], [500_100, 5_000_100, 20], (len(TRUE), 3)).round(3)


def numbered(path, column, numbers, points=POINTS):
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.offsets, header.scales = [500_000, 5_000_000, 0], [0.001] * 3
    header.add_extra_dim(laspy.ExtraBytesParams(name=column, type=np.int32))
    scan = laspy.LasData(header)
    scan.x, scan.y, scan.z = points.T
    scan[column] = numbers
    path.parent.mkdir(parents=True, exist_ok=True)
    scan.write(str(path))
    return path


@pytest.fixture
def files(tmp_path):
    truth = numbered(tmp_path / "truth.laz", "itc_ref", TRUE)
    return numbered(tmp_path / "numbered.laz", "PredInstance", PREDICTED), truth


def test_figures_are_those_counted_by_hand(files):
    code, out, err = run("evaluate", *files, "--numbers", "itc_ref")
    assert code == 0, err
    assert out.splitlines() == [
        "true objects 3: found 2, missed 1",
        "predicted objects 3: correct 2, false positives 1",
        "precision 66.7 %   recall 66.7 %   F1 66.7 %   mean best IoU 53.8 %   of 112 points",
        "with fewer than 10 points, not counted: 1 true, 0 predicted",
    ]
    found = json.loads(run("evaluate", "numbers", *files, "--numbers", "itc_ref", "--json")[1])
    assert found["f1"] == pytest.approx(2 / 3) and found["files"][0]["matching"] == "order"
    # All things count with fewer points, of which a small one that nobody predicts is missed.
    found = json.loads(run("evaluate", *files, "--numbers", "itc_ref", "--least-points", "1", "--json")[1])
    assert (found["true_things"], found["missed"], found["too_small_true"]) == (4, 2, 0)


def test_a_row_for_each_true_thing(files, tmp_path):
    code, out, err = run("evaluate", *files, "--numbers", "itc_ref", "--csv")
    assert code == 0, err
    assert out.splitlines() == [
        "file,number,points,found,best_iou,predicted_number",
        "numbered.laz,1,40,True,0.75,7",
        "numbered.laz,2,12,False,0.3243,8",
        "numbered.laz,3,20,True,0.5405,8",
    ]


def test_folders_are_compared_file_by_file(files, tmp_path):
    for name, numbers in (("a.laz", PREDICTED), ("b.laz", TRUE)):
        numbered(tmp_path / "predicted" / name, "PredInstance", numbers)
        numbered(tmp_path / "truth" / name, "itc_ref", TRUE)
    folders = (tmp_path / "predicted", tmp_path / "truth")
    found = json.loads(run("evaluate", *folders, "--numbers", "itc_ref", "--json")[1])
    assert (found["found"], found["true_things"], found["predicted_things"]) == (5, 6, 6)
    assert [row["f1"] for row in found["files"]] == [pytest.approx(2 / 3), 1.0]


def test_a_page_shows_what_is_found_missed_and_invented(files, tmp_path):
    page = tmp_path / "page.html"
    code, _, err = run("evaluate", *files, "--numbers", "itc_ref", "--output", page)
    assert code == 0, err
    shown, _ = content(page.read_text(encoding="utf-8"))
    assert [panel["title"] for panel in shown["panels"]] == ["numbered.laz: truth", "numbered.laz: prediction"]
    kinds = coloring(shown, "kind")
    assert kinds["names"] == ["no thing", "found", "missed", "invented"]
    truth, prediction = decoded(kinds["values"], "<u2").reshape(2, -1)
    assert truth.tolist() == np.repeat([1, 1, 2, 1, 0, 0, 0], [30, 10, 12, 20, 5, 15, 20]).tolist()
    assert prediction.tolist() == np.repeat([1, 0, 1, 1, 1, 3, 0], [30, 10, 12, 20, 5, 15, 20]).tolist()
    # Equal numbers have equal colors, and points of no thing are gray.
    colors = decoded(coloring(shown, "object")["values"], "<u1").reshape(2, -1, 3)
    assert len(np.unique(colors[0][TRUE == 2], axis=0)) == 1 and (colors[1][PREDICTED <= 0] == 191).all()


def test_files_of_other_scans_and_missing_columns_are_told(files, tmp_path):
    code, _, err = run("evaluate", *files, "--numbers", "treeID")
    assert code == 1 and "truth.laz" in err and "treeID" in err and "itc_ref" in err
    few = np.arange(len(TRUE)) < 20
    part = numbered(tmp_path / "part.laz", "PredInstance", PREDICTED[few], POINTS[few])
    code, _, err = run("evaluate", part, files[1], "--numbers", "itc_ref")
    assert code == 1 and "20 of the 112 points" in err
    code, _, err = run("evaluate", *files, "--numbers", "itc_ref", "--output", "page.txt")
    assert code == 1 and ".html" in err
