"""Report of a generated place: its figures beside what the copy and the table say, and its page."""

import csv
import json
import re
from itertools import product

import laspy
import numpy as np
import pytest
from pyogrio import raw

from hf_any3d.data.generated.tiles import draw_tile, las_bytes
from hf_any3d.pipelines import default_model
from hf_any3d.tasks.direct import open_direct
from hf_any3d_survey.inventory.files import Outputs, take_inventory
from hf_any3d_survey.inventory.place import Place
from hf_any3d_survey.inventory.report import write_report
from hf_any3d_survey.visualization.place_report import _without_rim
from survey.studies import scenes
from tests.errors import raises

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = 80.0


@pytest.fixture(scope="module")
def pipe():
    return open_direct("point-cloud-inventory", str(default_model("point-cloud-inventory")), "cpu")


@pytest.fixture(scope="module")
def place(pipe, tmp_path_factory):
    """A place of two tiles with a third that is empty: its folder, the report, the table and the copies."""
    folder = tmp_path_factory.mktemp("place")
    tile = draw_tile(3, SIZE, houses=3, trees=14, bushes=6)
    west = tile.points[:, 0] < np.median(tile.points[:, 0])
    paths = [folder / "west.las", folder / "east.las", folder / "empty.las"]
    for path, rows in zip(paths[:2], (west, ~west), strict=True):
        path.write_bytes(las_bytes(type(tile)(*(values[rows] for values in tile)), labeled=False))
    empty = laspy.read(paths[0])
    empty.points = empty.points[:0]
    empty.write(paths[2])
    names = [path.name for path in paths]
    take_inventory(pipe, paths, outputs_in(folder, names), command="hf-any3d inventory ...")
    return folder, *read_outputs(folder, names[:2])


def outputs_in(folder, names):
    """Return copies of tiles, a table and a report in a folder."""
    copies = [folder / f"out_{name}" for name in names]
    return Outputs(copies=copies, table=folder / "objects.csv", report=folder / "report.json")


def write_scan(path, cloud):
    """Write points with their returns, and no classes."""
    las = laspy.LasData(laspy.LasHeader(version="1.4", point_format=6))
    las.header.scales = [1e-3] * 3
    las.x, las.y, las.z = cloud.points.T.astype(np.float64)
    for name in ("return_number", "number_of_returns"):
        values = getattr(cloud, name)
        setattr(las, name, np.ones(len(cloud), np.uint8) if values is None else values.astype(np.uint8))
    las.write(path)


def read_outputs(folder, names):
    """Return the report, the rows of the table, and the points of the copies of tiles."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    with open(folder / "objects.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    copies = [laspy.read(folder / f"out_{name}") for name in names]
    points = {"xyz": np.concatenate([copy.xyz for copy in copies])}
    for name in ("classification", "HeightAboveGround"):
        points[name] = np.concatenate([np.array(copy[name]) for copy in copies])
    return report, rows, points


def check_figures(report, rows, points):
    """Compare the figures of a report with those of copies and table."""
    kept = ~np.isin(points["classification"], (7, 18))
    cells = {tuple(cell) for cell in np.floor(points["xyz"][kept, :2]).astype(int).tolist()}
    is_canopy = np.isin(points["classification"], (3, 4, 5)) & (points["HeightAboveGround"] >= 2)
    covered = {tuple(cell) for cell in np.floor(points["xyz"][is_canopy, :2]).astype(int).tolist()}
    ground = int((points["classification"] == 2).sum())
    trees = [float(row["height_m"]) for row in rows if row["class"] == "tree"]
    assert report["points"] == len(kept) and report["ground_points"] == ground
    assert report["area_ha"] * 1e4 == pytest.approx(len(cells))
    assert report["points_per_m2"] == pytest.approx(kept.sum() / len(cells), abs=0.01)
    assert report["ground_points_per_m2"] == pytest.approx(ground / len(cells), abs=0.001)
    assert report["trees"]["trees"] == len(trees) and sum(report["trees"]["height_m"]["histogram"]["trees"]) == len(
        trees
    )
    assert report["trees"]["trees_per_ha"] == pytest.approx(len(trees) / len(cells) * 1e4, abs=0.1)
    assert report["trees"]["crown_cover_share"] == pytest.approx(len(covered) / len(cells), abs=1e-4)
    assert report["trees"]["height_m"]["max"] == pytest.approx(max(trees), abs=0.01)
    assert report["buildings"]["buildings"] == len(rows) - len(trees)


def test_figures_are_those_of_copy_and_table(place):
    folder, report, rows, points = place
    check_figures(report, rows, points)
    assert [row["file"] for row in report["left_out"]] == [str(folder / "empty.las")]
    assert report["settings"]["min_height"] == 2 and report["command"].startswith("hf-any3d inventory")


@pytest.mark.parametrize(
    ("draw", "code"),
    [(lambda: scenes.by_photogrammetry(scenes.wood(3)), 5), (lambda: scenes.hillside(3), 2)],
)
def test_figures_know_which_roofs_are_none(pipe, tmp_path, draw, code):
    write_scan(tmp_path / "scan.las", draw())
    cloud = pipe.open(tmp_path / "scan.las")
    found = Place()
    found.add(0, pipe.look(cloud))
    called_roofs = found.answer_of(0).classes == 6
    found.things()
    assert (found.answer_of(0).classes[called_roofs] == code).sum() > 100
    take_inventory(pipe, [tmp_path / "scan.las"], outputs_in(tmp_path, ["scan.las"]))
    check_figures(*read_outputs(tmp_path, ["scan.las"]))


def test_cells_have_their_points_and_the_doubtful_ones_come_first(place):
    _, report, rows, points = place
    assert report["cell_width_m"] == 20
    total = 0
    for cell in report["cells"]:
        inside = (points["xyz"][:, :2] // 20 == [cell["x"] // 20, cell["y"] // 20]).all(axis=1)
        kept = inside & ~np.isin(points["classification"], (7, 18))
        assert cell["points"] == kept.sum()
        total += cell["trees"]
    assert total == sum(row["class"] == "tree" for row in rows)
    doubts = [cell["doubt"] for cell in report["cells"]]
    assert doubts == sorted(doubts, reverse=True)
    listed = report["check_by_hand"]
    assert all(cell["reasons"] and cell["filled_share"] >= 0.25 for cell in listed) and len(listed) <= 10


@pytest.mark.parametrize("ending", ["csv", "gpkg"])
def test_errors_at_checkpoints_are_those_of_the_terrain(pipe, place, tmp_path, ending):
    """Checkpoints 10 cm above the ground of the copy, and 20 cm below it under vegetation, are found so."""
    folder, _, _, points = place
    rng = np.random.default_rng(0)
    ground = rng.choice(np.flatnonzero(points["classification"] == 2), 40, replace=False)
    vegetated = np.arange(40) % 4 == 0
    xyz = points["xyz"][ground].copy()
    xyz[:, 2] += np.where(vegetated, -0.2, 0.1) - points["HeightAboveGround"][ground]
    xyz = np.concatenate([xyz, [[xyz[0, 0] + 5000, xyz[0, 1], 0]]])
    words = [*np.where(vegetated, "yes", "no"), "no"]
    path = tmp_path / f"points.{ending}"
    if ending == "csv":
        lines = [f"{x},{y},{z},{word}" for (x, y, z), word in zip(xyz.tolist(), words, strict=True)]
        path.write_text("\n".join(["X,Y,Z,Vegetated", *lines]))
    else:
        shapely = pytest.importorskip("shapely")
        shapes = shapely.to_wkb(shapely.points(xyz))
        raw.write(path, shapes, [np.array(words, object)], ["vegetated"], geometry_type="Point Z", driver="GPKG")
    outputs = Outputs(report=tmp_path / "report.json", checkpoints=path)
    take_inventory(pipe, [folder / "west.las", folder / "east.las"], outputs)
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["checkpoints"]
    assert found["outside"] == 1 and len(found["rows"]) == 41
    for kind, error, count in (("non_vegetated", -0.1, 30), ("vegetated", 0.2, 10)):
        assert found[kind]["points"] == count
        assert found[kind]["rmse_z_m"] == pytest.approx(abs(error), abs=0.002)
        assert found[kind]["mean_error_m"] == pytest.approx(error, abs=0.002)


@pytest.mark.parametrize(
    ("text", "named"),
    [("x,y\n1,2\n", "points.csv has no z"), ("x,y,z\n1,2,a\n", "checkpoint 1"), ("x,y,z\n", "no checkpoint")],
)
def test_checkpoints_that_are_none_are_refused_before_the_work(pipe, place, tmp_path, text, named):
    folder = place[0]
    (tmp_path / "points.csv").write_text(text)
    outputs = Outputs(report=tmp_path / "report.json", checkpoints=tmp_path / "points.csv")
    with raises(ValueError, naming=named):
        take_inventory(pipe, [folder / "west.las"], outputs)
    with raises(ValueError, naming="report"):
        take_inventory(pipe, [folder / "west.las"], Outputs(checkpoints=tmp_path / "points.csv"))


def test_the_page_needs_nothing_else_and_says_the_answer_first(place, tmp_path):
    folder, report, _, _ = place
    write_report(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(?!#|data:)[a-z]", page, re.IGNORECASE)
    body = page[page.index("<body>") :]
    assert body.index(f"{report['trees']['trees']} trees") < body.index("Check by hand") < body.index("Accuracy")
    drawn = [cell for cell in report["cells"] if cell["filled_share"] > 0.05]
    assert len(report["cells"]) > body.count("<rect") >= len(drawn) > 0 and "RMSEz" in body and "ASPRS" in body
    # Nothing of the machine, no names of options, and shares in one form.
    assert str(folder) not in page and "site-packages" not in page and report["model"] == "scene_model"
    assert "empty.las" in page and not re.search(r"\d%", re.sub(r"<[^>]*>", "", body))
    for name in report["settings"]:
        assert f"<th>{name.replace('_', ' ').capitalize()}</th>" not in body
    covers = re.findall(r"([\d.]+ %)(?: crown cover|</td></tr>\n<tr><th>Trees above)", body)
    assert len(covers) == 2 and len(set(covers)) == 1


def test_a_row_of_cells_with_points_on_its_edge_alone_is_not_drawn():
    cells = []
    for x, y in product((10, 30, 50), (10, 30)):
        is_inside = x < 50 and y > 10
        cells.append({"x": x, "y": y, "filled_share": 0.14 if is_inside else 0.05})
    assert [(cell["x"], cell["y"]) for cell in _without_rim(cells)] == [(10, 30), (30, 30)]
    assert _without_rim(cells[:1]) == cells[:1]
