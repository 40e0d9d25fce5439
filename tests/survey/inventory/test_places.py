"""Inventory of made places: heights, classes and numbers, in arrays and in the files that went in."""

import shutil
import warnings
from dataclasses import replace

import laspy
import numpy as np
import pytest
import rasterio
from pyproj import CRS, Transformer
from scipy.spatial import KDTree
from transformers import pipeline

import hf_any3d  # noqa: F401  registers the pipeline
from hf_any3d.data.files import PointCloudData, PointCloudError, PointCloudFileError, write_point_cloud
from hf_any3d.data.generated.tiles import draw_tile, las_bytes
from hf_any3d.pipelines import default_model
from hf_any3d.tasks.direct import open_direct
from hf_any3d_survey.inventory.files import HEIGHT, NUMBER, SCORE, Outputs, take_inventory

shapely = pytest.importorskip("shapely")
pytestmark = pytest.mark.filterwarnings("ignore")
SEGMENT = "point-cloud-segmentation"
SIZE = 60.0
FOOT = 0.3048


@pytest.fixture(scope="module")
def pipe():
    return pipeline("point-cloud-inventory")


@pytest.fixture(scope="module")
def tile():
    return draw_tile(5, SIZE, houses=3, trees=8, bushes=6)


@pytest.fixture(scope="module")
def found(pipe, tile):
    return pipe(cloud_of(tile))


def cloud_of(tile, rows=slice(None)):
    returns = {"return_number": tile.return_numbers[rows], "number_of_returns": tile.return_counts[rows]}
    return PointCloudData(tile.points[rows], **returns, meters_per_unit=1.0)


def terrain_below(tile):
    """Height of the made ground below each point, by the nearest points of ground."""
    from scipy.interpolate import griddata

    is_ground = tile.classes == 2
    flat = tile.points[:, :2]
    return griddata(flat[is_ground], tile.points[is_ground, 2], flat, "nearest")


def test_heights_are_those_above_the_made_ground(tile, found):
    heights = tile.points[:, 2] - terrain_below(tile)
    away = np.abs(found["heights"] - heights)
    # Of what lies on open ground; below a house nobody has seen any.
    assert np.quantile(away[tile.classes != 6], 0.95) < 0.15
    assert np.median(away[tile.classes == 6]) < 0.5


def test_classes_are_those_of_asprs(tile, found):
    classes = found["classes"]
    assert classes.dtype == np.uint8 and set(np.unique(classes)) <= {2, 3, 4, 5, 6, 7}
    for own, made in ((classes == 2, tile.classes == 2), (classes == 6, tile.classes == 6)):
        assert (own & made).sum() / (own | made).sum() > 0.8
    plants = np.isin(classes, (3, 4, 5))
    assert (classes[plants] == np.array([3, 4, 5])[np.digitize(found["heights"][plants], [0.5, 1.5])]).all()


def test_things_have_consecutive_numbers_and_what_their_points_say(found):
    numbers, things = found["numbers"], found["things"]
    assert [thing.number for thing in things] == list(range(1, numbers.max() + 1))
    for thing in things:
        own = numbers == thing.number
        assert own.sum() == thing.points
        if thing.label == "tree":
            assert thing.height == pytest.approx(found["heights"][own].max())
            top = found["points"][own][np.argmax(found["heights"][own])]
            assert (thing.x, thing.y) == pytest.approx(tuple(top[:2]))
            assert thing.ground == pytest.approx(top[2] - thing.height, abs=1e-3)
        else:
            assert set(found["classes"][own]) == {6}
        assert 0 < thing.area < SIZE**2 and 0 <= thing.score <= 1
    assert (found["scores"][numbers == 0] == 0).all()


def test_houses_are_blocks(tile, found):
    blocks = [thing for thing in found["things"] if thing.label == "building"]
    for block in blocks:
        own = found["points"][found["numbers"] == block.number][:, :2]
        # Walls lean out of their cells by less than the width of one.
        for place in ([block.x, block.y], *block.outline[0]):
            assert (place > own.min(axis=0) - 1).all() and (place < own.max(axis=0) + 1).all()
    from scipy import ndimage

    cells = np.floor(tile.points[tile.classes == 6, :2]).astype(int)
    cells -= cells.min(axis=0)
    grid = np.zeros(cells.max(axis=0) + 1, bool)
    grid[tuple(cells.T)] = True
    assert len(blocks) == ndimage.label(grid, np.ones((3, 3)))[1]
    assert sum(block.area for block in blocks) == pytest.approx(grid.sum(), rel=0.25)


def test_commands_open_the_packaged_model_without_transformers_and_answer_the_same(tile, found, tmp_path):
    model = shutil.copytree(default_model("point-cloud-inventory"), tmp_path / "model")
    answer = open_direct("point-cloud-inventory", str(model), "cpu")(cloud_of(tile))
    assert [thing.number for thing in answer.pop("things")] == [thing.number for thing in found["things"]]
    assert answer.keys() < found.keys() and all(np.array_equal(answer[name], found[name]) for name in answer)
    pipes = (open_direct(SEGMENT, str(model), "cpu"), pipeline(SEGMENT, str(model), device="cpu"))
    labels = [pipe(cloud_of(tile)) for pipe in pipes]
    assert all(np.array_equal(labels[0][name], labels[1][name]) for name in ("labels", "scores", "unknown"))
    config = (model / "config.json").read_text()
    for changed in (config.replace("float32", "bfloat16"), config.replace('"in_channels"', '"gone"'), "no JSON"):
        (model / "config.json").write_text(changed)
        assert open_direct(SEGMENT, str(model), "cpu") is None


def test_feet_are_meters(pipe, tile, found):
    cloud = cloud_of(tile)
    feet = replace(cloud, points=tile.points / FOOT, offset=None, meters_per_unit=FOOT)
    other = pipe(feet)
    assert (other["classes"] == found["classes"]).mean() > 0.99
    np.testing.assert_allclose(other["heights"], found["heights"], atol=0.02)
    assert len(other["things"]) == len(found["things"])
    for own, same in zip(other["things"], found["things"], strict=True):
        assert own.x * FOOT == pytest.approx(same.x, abs=0.5) and own.height == pytest.approx(same.height, abs=0.1)


def test_a_file_in_feet_has_feet_in_all_that_is_written(pipe, tile, tmp_path):
    """Table, copy and rasters say what those of the same place in meters say, and name their unit."""
    written = {}
    foot = 1200 / 3937
    for unit, length in (("meters", 1.0), ("feet", foot)):
        path = tmp_path / f"{unit}.las"
        path.write_bytes(las_bytes(tile._replace(points=tile.points / length), labeled=False))
        if unit == "feet":
            points = laspy.convert(laspy.read(path), file_version="1.4", point_format_id=6)
            points.header.vlrs.clear()
            points.header.add_crs(CRS("EPSG:2229+6360"))  # California's fifth zone and NAVD88, both in US survey feet
            points.write(path)
        outputs = [tmp_path / f"{unit}.{ending}" for ending in ("csv", "dtm.tif", "chm.tif", "copy.las")]
        take_inventory(pipe, [path], Outputs([outputs[3]], *outputs[:3]))
        rows = np.genfromtxt(outputs[0], delimiter=",", names=True, dtype=None, encoding="utf-8")
        with rasterio.open(outputs[1]) as dtm, rasterio.open(outputs[2]) as chm:
            bands = [(file.descriptions, file.units) for file in (dtm, chm)]
            highest = [np.nanmax(file.read(1)) for file in (dtm, chm)]
        copy = laspy.read(outputs[3])
        written[unit] = (rows, bands, highest, np.array(copy[HEIGHT]), np.array(copy.z) - np.array(copy[HEIGHT]))
    (rows, bands, highest, heights, ground), (feet, bands_in_feet, *others) = written["meters"], written["feet"]
    for unit, (dtm, chm) in (("m", bands), ("ft", bands_in_feet)):
        assert dtm == ((f"ground elevation ({unit})", "ground guessed"), (unit, None))
        assert chm == ((f"canopy height ({unit})",), (unit,))
    for name in ("ground", "height", "crown_diameter"):
        np.testing.assert_allclose(feet[f"{name}_ft"] * foot, rows[f"{name}_m"], atol=0.3)
    np.testing.assert_allclose(feet["area_ft2"] * foot**2, rows["area_m2"], rtol=0.1)
    for own, same in zip(others, (highest, heights, ground), strict=True):
        assert np.quantile(np.abs(np.array(own) * foot - same), 0.999) < 0.1


# Systems, and a longitude and latitude in the area of each
SYSTEMS = {
    "3857": (9, 45),
    "3395": (9, 45),
    "32632+5715": (9, 45),
    "2229+6358": (-118, 34),
    "3857+6358": (-118, 45),
    "3413": (-45, 62),
}


def frame_of(system):
    """What turns meters east and north of a place, on the ellipsoid, into x and y on the map of a system."""
    longitude, latitude = SYSTEMS.get(system, (9, 45))
    frame = CRS.from_dict({"proj": "aeqd", "datum": "WGS84", "lon_0": longitude, "lat_0": latitude})
    return Transformer.from_crs(frame, f"EPSG:{system.partition('+')[0]}", always_xy=True)


def write_in_system(path, tile, system):
    """Write a tile on the map of a system, as long on the ground as it is; return its points, on that map."""
    heights = system.partition("+")[2]
    x, y = frame_of(system).transform(*(tile.points[:, :2] - tile.points[:, :2].mean(axis=0)).T)
    z = tile.points[:, 2]
    if heights:
        (axis,) = CRS.from_epsg(heights).axis_info
        z = z / axis.unit_conversion_factor * (-1 if axis.direction == "down" else 1)
    header = laspy.LasHeader(version="1.4", point_format=6)
    header.scales, header.offsets = [0.001] * 3, np.floor([x.min(), y.min(), z.min()])
    header.add_crs(CRS(f"EPSG:{system}"))
    written = laspy.LasData(header)
    written.x, written.y, written.z = x, y, z
    written.return_number, written.number_of_returns = tile.return_numbers, tile.return_counts
    written.write(path)
    return np.stack([x, y, z], axis=1)


def inventory_in(pipe, tile, system, folder):
    """What is written of a tile in a system: rows of the table, with places and areas of outlines on the ground; more.

    Rows have lengths in meters. Further are rasters and heights of points, as they are written.
    """
    import pyogrio

    path = folder / f"{system}.las"
    points = write_in_system(path, tile, system)
    outputs = [folder / f"{system}.{ending}" for ending in ("gpkg", "dtm.tif", "chm.tif", "copy.las")]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        take_inventory(pipe, [path], Outputs([outputs[3]], *outputs[:3]))
    said = [str(warning.message) for warning in told]
    assert sum("on the ground" in text for text in said) == system.startswith(("3857", "3395", "3413")), said
    assert sum("depth" in text for text in said) == ("+" in system), said
    meta, _, shapes, columns = pyogrio.raw.read(outputs[0])
    rows = dict(zip(meta["fields"].tolist(), columns, strict=True))
    if "ground_ft" in rows:
        for name in [name for name in rows if name.endswith(("_ft", "_ft2"))]:
            power = 2 if name.endswith("2") else 1
            rows[name.replace("_ft", "_m")] = rows[name] * (1200 / 3937) ** power
    to_ground = frame_of(system).transform
    rows["east"], rows["north"] = to_ground(rows["x"], rows["y"], direction="INVERSE")
    outlines = [
        shapely.transform(shapely.from_wkb(shape), lambda xy: np.stack(to_ground(*xy.T, direction="INVERSE"), axis=1))
        for shape in shapes
    ]
    rows["outline_m2"] = shapely.area(outlines)
    copy = laspy.read(outputs[3])
    np.testing.assert_allclose(copy.xyz, points, atol=6e-4)
    with rasterio.open(outputs[1]) as dtm, rasterio.open(outputs[2]) as chm:
        rasters = dtm.read(1), chm.read(1)
        assert (dtm.bounds.left <= rows["x"]).all() and (rows["x"] <= dtm.bounds.right).all()
    return rows, rasters, np.array(copy[HEIGHT])


@pytest.fixture(scope="module")
def in_meters(pipe, tile, tmp_path_factory):
    return inventory_in(pipe, tile, "32632", tmp_path_factory.mktemp("meters"))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_place_has_the_same_sizes_on_the_ground_in_every_system(pipe, tile, in_meters, system, tmp_path):
    """Areas and heights are those in meters on the ground; elevations and places are those of the file."""
    rows, (dtm, chm), heights = inventory_in(pipe, tile, system, tmp_path)
    same, (same_dtm, same_chm), same_heights = in_meters
    length = 1200 / 3937 if "ground_ft" in rows else 1.0
    up = -1 if "+" in system else 1
    for kind in ("tree", "building"):
        own, other = (np.flatnonzero(table["class"] == kind) for table in (rows, same))
        places, others = (
            np.stack([table["east"], table["north"]], axis=1)[which] for table, which in ((rows, own), (same, other))
        )
        away, nearest = KDTree(others).query(places)
        # Cells begin elsewhere on each map, so that one of two trees that touch may be another one.
        is_same = away < 1.5
        assert is_same.sum() >= len(other) - 2 > 0 and len(own) <= len(other) + 1
        for name, most in (("height", 0.2), ("ground", 0.3), ("crown_diameter", 1.5)):
            sign = up if name == "ground" else 1
            differences = rows[f"{name}_m"][own] * sign - same[f"{name}_m"][other][nearest]
            assert (np.abs(differences[is_same & ~np.isnan(differences)]) < most).all(), name
        for name in ("area_m2", "outline_m2"):
            found, expected = rows[name][own][is_same], same[name][other][nearest[is_same]]
            assert found.sum() == pytest.approx(expected.sum(), rel=0.05 if kind == "building" else 0.2), name
    assert np.nanmedian(dtm) * length * up == pytest.approx(np.nanmedian(same_dtm), abs=0.1)
    assert np.nanmax(chm) * length == pytest.approx(np.nanmax(same_chm), abs=0.1)
    assert np.quantile(np.abs(heights * length - same_heights), 0.95) < 0.1


def test_tiles_on_a_stretched_map_are_one_place_with_one_scale(pipe, tile, tmp_path):
    """Each tile has a scale of its own, by which their coordinates would lie hundreds of meters apart."""
    points = write_in_system(tmp_path / "whole.las", tile, "3857")
    south = points[:, 1] < np.median(points[:, 1])
    whole = laspy.read(tmp_path / "whole.las")
    for name, rows in (("south", south), ("north", ~south)):
        part = laspy.LasData(whole.header, whole.points[rows].copy())
        part.write(tmp_path / f"{name}.las")
    tables = []
    for names in (["whole"], ["south", "north"]):
        take_inventory(pipe, [tmp_path / f"{name}.las" for name in names], Outputs(table=tmp_path / "things.csv"))
        tables.append(np.genfromtxt(tmp_path / "things.csv", delimiter=",", names=True, dtype=None, encoding="utf-8"))
    one, cut = tables
    assert abs(len(one) - len(cut)) <= 1
    for kind in ("tree", "building"):
        one_area, cut_area = (table["area_m2"][table["class"] == kind].sum() for table in tables)
        assert cut_area == pytest.approx(one_area, rel=0.2)


# Where x and y are no lengths on the ground, or have several -> what is said
REFUSED = {
    "geocentric": ("4978", "geocentric"),
    "unequal": ("4087", "1.41 times"),
    "wide": ("3857", "run parts of the site separately"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_scale_of_the_ground_is_refused(pipe, tile, tmp_path, name):
    system, words = REFUSED[name]
    paths = [tmp_path / "a.las"]
    if system == "4978":
        flat = frame_of("4326").transform(*(tile.points[:, :2] - tile.points[:, :2].mean(axis=0)).T)
        places = Transformer.from_crs(4979, 4978, always_xy=True).transform(*flat, tile.points[:, 2])
        header = laspy.LasHeader(version="1.4", point_format=6)
        header.scales, header.offsets = [0.001] * 3, [np.floor(axis.min()) for axis in places]
        header.add_crs(CRS(4978))
        written = laspy.LasData(header)
        written.x, written.y, written.z = places
        written.return_number, written.number_of_returns = tile.return_numbers, tile.return_counts
        written.write(paths[0])
    else:
        write_in_system(paths[0], tile, system)
    if name == "wide":
        paths.append(tmp_path / "b.las")
        whole = laspy.read(paths[0])
        # 500 kilometers to the north
        whole.header.offsets += np.array([0, 700_000, 0])
        whole.points.offsets = whole.header.offsets
        whole.write(paths[1])
    with pytest.raises(PointCloudFileError) as error:
        take_inventory(pipe, paths, Outputs(table=tmp_path / "things.csv"))
    assert words in str(error.value) and "reproject" in str(error.value) and "a.las" in str(error.value)
    assert not (tmp_path / "things.csv").exists()


@pytest.fixture(scope="module")
def las(tmp_path_factory, tile):
    path = tmp_path_factory.mktemp("place") / "tile.las"
    path.write_bytes(las_bytes(tile, labeled=True))
    points = laspy.read(path)
    # Half of the points have no class yet.
    codes = np.array(points.classification)
    codes[::2] = np.arange(len(codes[::2])) % 2
    points.classification = codes
    points.write(path)
    return path


@pytest.mark.parametrize("classes", ["unclassified", "all", "none"])
def test_every_other_byte_of_a_copy_is_that_of_the_file(pipe, las, tmp_path, classes, found):
    copy = tmp_path / "copy.las"
    take_inventory(pipe, [las], Outputs([copy], classes=classes))
    old, new = laspy.read(las), laspy.read(copy)
    for name in old.point_format.dimension_names:
        if name != "classification":
            np.testing.assert_array_equal(np.array(old[name]), np.array(new[name]))
    columns = set(new.point_format.extra_dimension_names) - set(old.point_format.extra_dimension_names)
    assert columns == {HEIGHT, NUMBER, SCORE}
    before, after = np.array(old.classification), np.array(new.classification)
    is_free = np.isin(before, (0, 1)) if classes == "unclassified" else np.full(len(before), classes == "all")
    np.testing.assert_array_equal(after[~is_free], before[~is_free])
    if is_free.any():
        assert set(after[is_free]) <= {2, 3, 4, 5, 6, 7}
        assert (after[is_free] == found["classes"][is_free]).mean() > 0.98
    assert np.array(new[HEIGHT]).dtype == np.float32 and np.array(new[NUMBER]).dtype == np.int32


def test_a_scan_is_held_once(pipe, las, tile):
    opened, own = pipe.open(las), cloud_of(tile)
    pipe.open(own)
    assert opened.intensity is None and opened.return_number.dtype == np.uint8
    assert own.return_number.dtype == np.float32


def test_a_border_cuts_nothing(pipe, tile, tmp_path):
    """Two halves of a tile have the things of the whole, and those on the border one number in both."""
    middle = np.median(tile.points[:, 0])
    halves = [tile.points[:, 0] < middle, tile.points[:, 0] >= middle]
    paths = []
    for number, rows in enumerate(halves):
        path = tmp_path / f"half{number}.las"
        path.write_bytes(las_bytes(type(tile)(*(values[rows] for values in tile)), labeled=False))
        paths.append(path)
    whole = tmp_path / "whole.las"
    whole.write_bytes(las_bytes(tile, labeled=False))
    single = take_inventory(pipe, [whole], Outputs([tmp_path / "whole_numbered.las"]))
    copies = [tmp_path / f"numbered{number}.las" for number in range(2)]
    both = take_inventory(pipe, paths, Outputs(copies))
    assert both.points == [int(rows.sum()) for rows in halves]
    kinds = [[thing.label for thing in found.things] for found in (single, both)]
    assert kinds[0] == kinds[1]
    numbers = [np.array(laspy.read(copy)[NUMBER]) for copy in copies]
    counts = np.bincount(np.concatenate(numbers), minlength=len(both.things) + 1)[1:]
    # Points of a tree that another one has taken first, beyond a border, are few.
    told = np.array([thing.points for thing in both.things])
    assert np.abs(counts - told).sum() < 0.05 * counts.sum()
    on_border = {*numbers[0].tolist()} & {*numbers[1].tolist()} - {0}
    rings = [thing.outline[0][:, 0] for thing in single.things if thing.outline]
    at_middle = [east for east in rings if east.min() < middle < east.max()]
    assert len(on_border) >= min(1, len(at_middle))


@pytest.mark.parametrize("ending", ["ply", "pcd"])
def test_other_formats_get_the_same_columns(pipe, tile, tmp_path, ending):
    path, copy = tmp_path / f"tile.{ending}", tmp_path / f"copy.{ending}"
    cloud = PointCloudData(tile.points, meters_per_unit=1.0)
    if ending == "ply":
        write_point_cloud(path, cloud)
    else:
        rows = cloud.points
        head = (
            f"VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {len(rows)}\nHEIGHT 1\n"
            f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(rows)}\nDATA binary\n"
        )
        path.write_bytes(head.encode() + rows.astype("<f4").tobytes())
    take_inventory(pipe, [path], Outputs([copy]))
    read = hf_any3d.read_point_cloud(copy, columns=[HEIGHT if ending == "pcd" else f"scalar_{HEIGHT}"])
    assert read.labels is not None and set(np.unique(read.labels)) <= {2, 3, 4, 5, 6, 7}
    (heights,) = read.further.values()
    assert np.isfinite(heights).all() and heights.max() > 3


class TestErrors:
    """One clear word for what cannot be answered."""

    def test_a_room_is_no_place(self, pipe):
        generator = np.random.default_rng(0)
        walls = generator.random((20_000, 3)) * (4, 5, 3)
        walls[:, 0] = np.where(generator.random(len(walls)) < 0.5, 0, 4)
        walls[:, 2] += 0.5
        with pytest.raises(PointCloudError, match="4.0 × 5.0 m; an inventory needs an aerial scan"):
            pipe(PointCloudData(walls, meters_per_unit=1.0))

    def test_degrees_are_refused(self, pipe, tile):
        degrees = tile.points * (1e-5, 1e-5, 1) + (6, 45, 0)
        with pytest.raises(PointCloudError, match="degree"):
            pipe(PointCloudData(degrees, in_degrees=True))

    def test_numbers_that_are_there_stay(self, pipe, las, tmp_path):
        first = tmp_path / "first.las"
        take_inventory(pipe, [las], Outputs([first]))
        with pytest.raises(PointCloudFileError, match=f"has a dimension '{HEIGHT}' already"):
            take_inventory(pipe, [first], Outputs([tmp_path / "second.las"]))
        assert not (tmp_path / "second.las").exists()

    def test_a_mesh_is_no_scan(self, pipe):
        mesh = PointCloudData(np.eye(3), faces=np.array([[0, 1, 2]]))
        with pytest.raises(ValueError, match="a mesh; inventory needs"):
            pipe(mesh)

    def test_tiles_of_two_units_are_refused(self, pipe, tile, tmp_path):
        paths = [tmp_path / "a.las", tmp_path / "b.las"]
        for path in paths:
            path.write_bytes(las_bytes(tile, labeled=False))
        opened = pipe.open

        def other_unit(path, unit=None, columns=()):
            cloud = opened(path, unit, columns)
            return replace(cloud, meters_per_unit=FOOT) if str(path).endswith("b.las") else cloud

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipe, "open", other_unit)
            with pytest.raises(PointCloudFileError, match="use the same for all"):
                take_inventory(pipe, paths, Outputs())


def test_a_place_without_trees_or_houses_has_no_things(pipe):
    generator = np.random.default_rng(0)
    flat = generator.random((8000, 2)) * 50
    found = pipe(PointCloudData(np.column_stack([flat, 0.02 * flat[:, 0]]), meters_per_unit=1.0))
    assert found["things"] == [] and not found["numbers"].any()


@pytest.mark.parametrize("arguments", [{"smoothing": -1.0}, {"min_area": float("nan")}, {"votes": True}])
def test_arguments_are_checked(pipe, arguments):
    with pytest.raises((ValueError, TypeError), match=next(iter(arguments))):
        pipe(np.zeros((10, 3)), **arguments)


def test_a_sparse_scan_has_no_numbered_trees(pipe, tile):
    rows = np.random.default_rng(0).choice(len(tile.points), int(0.4 * SIZE**2), replace=False)
    with pytest.warns(UserWarning, match="too few to separate trees"):
        found = pipe(cloud_of(tile, rows))
    assert not [thing for thing in found["things"] if thing.label == "tree"]
