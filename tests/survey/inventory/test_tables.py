"""Tables of things, written and read back by pyogrio."""

import json

import numpy as np
import pytest
from pyogrio import raw

from hf_any3d_survey.inventory.lengths import FEET
from hf_any3d_survey.inventory.tables import check_table, write_table
from hf_any3d_survey.inventory.things import Thing
from tests.errors import raises

RING = np.array([[652_000, 6_862_000], [652_010, 6_862_000], [652_010, 6_862_010], [652_000, 6_862_000]], float)
HOLE = RING[0] + 0.3 * (RING[::-1] - RING[0]) + [1, 0.5]
THINGS = [
    Thing(1, "tree", 5, 652_001.23456, 6_862_002.0, 35.126, 12.344, 28.5, 700, 0.81239, (RING, HOLE), True),
    Thing(2, "building", 6, 652_100.0, 6_862_100.5, -0.5, 6.0, 150.0, 3000, float("nan")),
]
METERS_LINES = """\
number,class,code,x,y,ground_m,height_m,crown_diameter_m,area_m2,points,score,ground_guessed
1,tree,5,652001.235,6862002.000,35.13,12.34,6.02,28.50,700,0.812,true
2,building,6,652100.000,6862100.500,-0.50,6.00,,150.00,3000,,false
"""
FEET_LINES = """\
number,class,code,x,y,ground_ft,height_ft,crown_diameter_ft,area_ft2,points,score,ground_guessed
1,tree,5,652001.235,6862002.000,115.24,40.50,19.76,306.77,700,0.812,true
2,building,6,652100.000,6862100.500,-1.64,19.69,,1614.59,3000,,false
"""


def test_lines_of_a_csv(tmp_path):
    write_table(tmp_path / "new folder" / "objects.csv", THINGS)
    assert (tmp_path / "new folder" / "objects.csv").read_text(encoding="utf-8") == METERS_LINES
    write_table(tmp_path / "feet.csv", THINGS, unit=FEET)
    assert (tmp_path / "feet.csv").read_text(encoding="utf-8") == FEET_LINES
    write_table(tmp_path / "none.CSV", [])
    assert (tmp_path / "none.CSV").read_text(encoding="utf-8") == METERS_LINES.splitlines()[0] + "\n"


def test_a_geopackage_has_outlines_in_the_coordinates_of_the_scan(tmp_path):
    path = tmp_path / "objects.gpkg"
    write_table(path, THINGS, "EPSG:2154")
    meta, _, shapes, columns = raw.read(path)
    assert meta["crs"] == "EPSG:2154"
    values = dict(zip(meta["fields"], columns, strict=True))
    assert list(values) == METERS_LINES.splitlines()[0].split(",")
    assert values["number"].tolist() == [1, 2] and values["class"].tolist() == ["tree", "building"]
    assert values["height_m"].tolist() == [12.34, 6.0] and np.isnan(values["score"][1])
    assert values["ground_guessed"].tolist() == [True, False] and np.isnan(values["crown_diameter_m"][1])
    shapely = pytest.importorskip("shapely")
    polygon, point = shapely.from_wkb(shapes)
    assert [shapely.get_coordinates(ring).tolist() for ring in shapely.get_rings(polygon)] == [
        RING.tolist(),
        HOLE.tolist(),
    ]
    assert (point.x, point.y) == (THINGS[1].x, THINGS[1].y)
    # A second one replaces it as a whole, and one of polygons alone says so.
    write_table(path, THINGS[:1])
    meta, _, shapes, _ = raw.read(path)
    assert len(shapes) == 1 and meta["crs"] is None and meta["geometry_type"] == "Polygon"
    assert [file.name for file in tmp_path.iterdir()] == ["objects.gpkg"]


def test_a_geojson_is_in_longitude_and_latitude(tmp_path):
    path = tmp_path / "objects.geojson"
    write_table(path, THINGS, "EPSG:2154")
    content = json.loads(path.read_text(encoding="utf-8"))
    tree, building = content["features"]
    # RFC 7946 knows no other system, so none is named.
    assert "crs" not in content
    corner = tree["geometry"]["coordinates"][0][0]
    # In the middle of Paris
    assert corner == pytest.approx([2.345812, 48.856248], abs=1e-5)
    assert tree["properties"]["x"] == 652_001.235 and building["properties"]["score"] is None
    assert building["geometry"]["type"] == "Point"
    write_table(path, [], "EPSG:2154")
    assert json.loads(path.read_text(encoding="utf-8"))["features"] == []


def test_what_cannot_be_written_is_said_before(tmp_path):
    with raises(ValueError, naming=".xlsx"):
        check_table(tmp_path / "objects.xlsx", None)
    check_table(tmp_path / "objects.csv", None)


def test_a_geojson_without_a_coordinate_system_is_refused(tmp_path):
    with raises(ValueError, naming="objects.geojson"):
        write_table(tmp_path / "objects.geojson", THINGS)
    with raises(ValueError, naming="EPSG:99999"):
        write_table(tmp_path / "objects.gpkg", THINGS, "EPSG:99999")
    assert list(tmp_path.iterdir()) == []
