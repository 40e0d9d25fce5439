"""One place gives one answer, however it is cut into tiles, and wherever it lies on the map."""

import json

import laspy
import numpy as np
import pytest
from scipy.spatial import KDTree
from transformers import pipeline

import hf_any3d  # noqa: F401  registers the pipeline
from hf_any3d.data.generated.stands import draw_stand
from hf_any3d.data.generated.tiles import Tile, las_bytes
from hf_any3d_survey.inventory.files import HEIGHT, NUMBER, SCORE, Outputs, take_inventory
from tests.turns import some

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = 90.0


@pytest.fixture(scope="module")
def pipe():
    return pipeline("point-cloud-inventory")


@pytest.fixture(scope="module")
def stand():
    drawn = draw_stand("mixed conifers", 3, size=SIZE, density=5)
    zeros = np.zeros(len(drawn.points), np.int64)
    points = drawn.points + [500_000.0, 4_000_000.0, 0.0]
    # Coordinates as a file stores them
    return Tile(np.round(points, 3), zeros, drawn.return_numbers, drawn.return_counts, zeros)


@pytest.fixture(scope="module")
def whole(pipe, stand, tmp_path_factory):
    return take_inventory(pipe, written(stand, [slice(None)], tmp_path_factory.mktemp("whole")), Outputs())


def written(stand, parts, folder):
    paths = []
    for number, rows in enumerate(parts):
        paths.append(folder / f"tile{number}.las")
        paths[-1].write_bytes(las_bytes(Tile(*(values[rows] for values in stand)), labeled=False))
    return paths


def quarters(stand, overlap):
    """Rows of four tiles that share so many meters."""
    flat = stand.points[:, :2] - stand.points[:, :2].min(axis=0)
    is_first, is_second = flat < (SIZE + overlap) / 2, flat >= (SIZE - overlap) / 2
    return [
        np.flatnonzero(along_x[:, 0] & along_y[:, 1])
        for along_x in (is_first, is_second)
        for along_y in (is_first, is_second)
    ]


def tops_of(found):
    return np.array([(thing.x, thing.y) for thing in found.things if thing.label == "tree"])


@pytest.mark.parametrize("overlap", some([0, 15, 60], left_out=[0, 60]))
def test_tiles_give_the_trees_of_the_whole(pipe, stand, whole, overlap, tmp_path):
    parts = quarters(stand, overlap)
    paths = written(stand, parts, tmp_path)
    copies = [path.with_name(f"copy{path.name}") for path in paths]
    # Their order makes no difference.
    order = [2, 0, 3, 1]
    report = tmp_path / "report.json"
    found = take_inventory(pipe, [paths[at] for at in order], Outputs([copies[at] for at in order], report=report))

    tops, expected = tops_of(found), tops_of(whole)
    assert abs(len(tops) - len(expected)) <= 0.03 * len(expected)
    away, _ = KDTree(tops).query(expected)
    assert (away < 0.1).mean() > 0.9
    # No top stands twice.
    assert KDTree(tops).query(tops, 2)[0][:, 1].min() > 0.3

    # A point of two tiles has one answer, and counts once.
    assert json.loads(report.read_text())["points"] == len(stand.points)
    answers = {}
    for rows, copy in zip(parts, copies, strict=True):
        las = laspy.read(copy)
        columns = (np.array(las[name]) for name in ("classification", HEIGHT, NUMBER, SCORE))
        for row, *answer in zip(rows.tolist(), *(column.tolist() for column in columns), strict=True):
            assert answers.setdefault(row, answer) == answer
    numbers = np.array([answers[row][2] for row in range(len(stand.points))])
    counts = np.bincount(numbers, minlength=len(found.things) + 1)[1:]
    np.testing.assert_array_equal(counts, [thing.points for thing in found.things])


# By part of a cell of the canopy, the highest points of cells are others.
@pytest.mark.parametrize(("move", "tolerance"), [((10.0, -10.0, 0.0), 0.03), ((3.17, 0.4, 50.0), 0.1)])
def test_a_moved_place_has_as_many_trees(pipe, stand, whole, move, tolerance, tmp_path):
    moved = stand._replace(points=stand.points + move)
    found = take_inventory(pipe, written(moved, [slice(None)], tmp_path), Outputs())
    assert abs(len(tops_of(found)) - len(tops_of(whole))) <= tolerance * len(tops_of(whole))


def test_a_border_moved_by_ten_meters_changes_no_tree_inside(pipe, stand, whole, tmp_path):
    low = stand.points[:, :2].min(axis=0) + 10
    rows = np.flatnonzero((stand.points[:, :2] >= low).all(axis=1))
    found = take_inventory(pipe, written(stand, [rows], tmp_path), Outputs())
    tops, expected = (own[(own > low + 5).all(axis=1)] for own in (tops_of(found), tops_of(whole)))
    assert abs(len(tops) - len(expected)) <= 0.03 * len(expected)
    away, _ = KDTree(tops).query(expected)
    assert (away < 0.1).mean() > 0.9
