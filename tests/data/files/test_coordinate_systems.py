"""What coordinate systems say: texts of all dialects, keys of GeoTIFF, EPSG's numbers, and the records of LAS."""

import struct
import sys
import warnings

import numpy as np
import pytest

from hf_any3d import read_point_cloud
from hf_any3d.data.files.coordinate_systems import (
    UNKNOWN,
    CoordinateSystem,
    Units,
    ground_scale_at,
    horizontal_part,
    name_of_keys,
    units_of_keys,
    units_of_text,
)
from hf_any3d.data.files.las import system_of
from hf_any3d.data.frames.units import is_taken_for_meters, why_not_projected
from tests.data.files.builders import las
from tests.data.files.systems import FLAT, HEIGHTS, METRIC

pyproj = pytest.importorskip("pyproj")

US_FOOT = 1200 / 3937
DIALECTS = ("WKT1_GDAL", "WKT1_ESRI", "WKT2_2015", "WKT2_2019")
GEOCENTRIC = Units(1.0, is_geocentric=True)

# EPSG's number -> units of x and y and of heights in meters; below 0 of depths, None of degrees. Those of the table
# that this library had before it asked pyproj, drawn by unit.
SYSTEMS = {
    "2154": (1.0, None),
    "32632": (1.0, None),
    "3857": (1.0, None),
    "2193": (1.0, None),  # northing, easting
    "2225": (US_FOOT, None),
    "2994": (0.3048, None),
    "8035": (US_FOOT, None),
    "2314": (0.3047972654, None),  # Clarke's foot
    "24370": (0.9143985307444408, None),  # Indian yard
    "27291": (0.914398414616029, None),  # British yard
    "3068": (1.0, None),
    "27572": (1.0, None),  # from the meridian of Paris, in grads
    "4326": (None, None),
    "4979": (None, 1.0),
    "4326+5773": (None, 1.0),
    "2225+5703": (US_FOOT, 1.0),
    "6344+6360": (1.0, US_FOOT),
    "2994+8228": (0.3048, 0.3048),
    "7415": (1.0, 1.0),
    "32632+5715": (1.0, -1.0),
    "2229+6358": (US_FOOT, -US_FOOT),
    "5703": (None, 1.0),
    "5336": (None, -1.0),
    "6359": (None, -US_FOOT),
}


def expected_of(number):
    length, height = SYSTEMS[number]
    in_degrees = number.startswith(("4326", "4979"))
    return Units(length, height, in_degrees, has_heights=height is not None)


def close(found, expected):
    """Whether units are equal but for the last digits, with which dialects write lengths."""
    for name in ("length", "height"):
        one, other = getattr(found, name), getattr(expected, name)
        if (one is None) != (other is None) or (one is not None and one != pytest.approx(other, rel=1e-9)):
            return False
    rest = ("in_degrees", "is_geocentric", "has_heights")
    return all(getattr(found, name) == getattr(expected, name) for name in rest)


@pytest.mark.parametrize("number", SYSTEMS)
def test_units_of_a_number_and_of_its_texts_in_all_dialects(number):
    expected = expected_of(number)
    assert close(units_of_text(f"EPSG:{number}"), expected)
    system = pyproj.CRS(f"EPSG:{number}")
    texts = []
    for dialect in DIALECTS:
        # Not every system can be said in every dialect.
        try:
            texts.append(system.to_wkt(dialect))
        except pyproj.exceptions.CRSError:
            continue
    if system.is_projected and not system.is_compound:
        from pyproj.crs import BoundCRS
        from pyproj.crs.coordinate_operation import ToWGS84Transformation

        texts.append(BoundCRS(system, "WGS 84", ToWGS84Transformation(system.geodetic_crs, 1, 2, 3)).to_wkt())
    assert len(texts) >= 2
    for text in filter(None, texts):
        assert close(units_of_text(text), expected), text
        part = horizontal_part(text + "\0\0")
        if expected.length is None and not expected.in_degrees:
            assert part is None  # of heights alone
        else:
            flat = units_of_text(part)
            assert (flat.length, flat.in_degrees) == (pytest.approx(expected.length), expected.in_degrees)
            flat_number = {"7415": "28992"}.get(number, number.split("+")[0])
            assert not CoordinateSystem(part).differs_from(CoordinateSystem(f"EPSG:{flat_number}"))


@pytest.mark.parametrize(
    ("text", "units"),
    [
        (FLAT, Units(US_FOOT)),
        (FLAT.replace("[", "(").replace("]", ")"), Units(US_FOOT)),
        (FLAT + "\0\0", Units(US_FOOT)),
        # Rounded, as many programs write it; a foot stays one.
        (FLAT.replace("0.304800609601219", "0.3048006"), Units(US_FOOT)),
        (FLAT.replace("0.304800609601219", "0.3048"), Units(0.3048)),
        # Heights behind the system, as Esri's programs write them; a direction of their own
        (
            pyproj.CRS(2225).to_wkt("WKT1_ESRI") + "," + pyproj.CRS(5703).to_wkt("WKT1_ESRI"),
            Units(US_FOOT, 1.0, has_heights=True),
        ),
        (pyproj.CRS(5715).to_wkt("WKT1_ESRI"), Units(None, -1.0, has_heights=True)),
        (f'COMPD_CS["c",{FLAT},{HEIGHTS}]', Units(US_FOOT, 1.0, has_heights=True)),
        (f'COMPD_CS["c",{METRIC},{HEIGHTS.replace("UP", "DOWN")}]', Units(1.0, -1.0, has_heights=True)),
        # Systems of one's own have the unit that they state.
        (
            f'COMPD_CS["c",{METRIC},{HEIGHTS}]'.replace('"v",2005],UNIT["meter",1]', '"v",2005],UNIT["f",0.3048]'),
            Units(1.0, 0.3048, has_heights=True),
        ),
        (
            f'COMPD_CS["c",{METRIC},{HEIGHTS.replace("meter", "unknown")}]',
            Units(1.0, None, has_heights=True),
        ),
        ('LOCAL_CS["site",LOCAL_DATUM["d",0],UNIT["foot",0.3048],AXIS["x",EAST],AXIS["y",NORTH]]', Units(0.3048)),
        ('ENGCRS["site",EDATUM["d"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["m",1]]', Units(1.0)),
        (pyproj.CRS(4978).to_wkt("WKT1_GDAL"), GEOCENTRIC),
        (pyproj.CRS(4978).to_wkt("WKT2_2019"), GEOCENTRIC),
        # Nothing is guessed from what is cut off, says that it does not know, or is no such text.
        (FLAT[:-1], UNKNOWN),
        (FLAT.replace('"US survey foot",0.304800609601219', '"unknown",1'), UNKNOWN),
        ("", UNKNOWN),
        ("/etc/hostname", UNKNOWN),
        ("A[" * 30_000, UNKNOWN),
    ],
)
def test_units_of_texts(text, units):
    assert units_of_text(text) == units


@pytest.mark.parametrize(
    ("keys", "units"),
    [
        ({1024: 1, 3072: 32632}, Units(1.0)),
        ({3072: 2225, 4096: 5703}, Units(US_FOOT, 1.0, has_heights=True)),
        # The unit that a file gives counts before that of EPSG's number.
        ({1024: 1, 3072: 2225, 3076: 9002, 4099: 9003}, Units(0.3048, US_FOOT, has_heights=True)),
        ({1024: 1, 3072: 32767, 3076: 32767, 3077: 0.304800609601}, Units(US_FOOT)),
        ({1024: 1, 3072: 32767}, UNKNOWN),
        ({3072: 32767}, UNKNOWN),
        # Heights of one's own, with and without a unit; the number of a datum is none of a system.
        ({1024: 1, 3072: 32632, 4096: 32767, 4099: 9002}, Units(1.0, 0.3048, has_heights=True)),
        ({1024: 1, 3072: 32632, 4096: 32767}, Units(1.0, None, has_heights=True)),
        ({1024: 1, 3072: 32632, 4096: 5103}, Units(1.0, None, has_heights=True)),
        # Depths
        ({1024: 1, 3072: 32632, 4096: 5715}, Units(1.0, -1.0, has_heights=True)),
        ({1024: 1, 3072: 32632, 4096: 5715, 4099: 9002}, Units(1.0, -0.3048, has_heights=True)),
        ({1024: 2, 2048: 4326, 4096: 5773}, Units(None, 1.0, in_degrees=True, has_heights=True)),
        ({2048: 4326}, Units(in_degrees=True)),
        ({3072: 4326}, Units(in_degrees=True)),
        ({1024: 3, 2048: 4978}, GEOCENTRIC),
        ({1024: 3}, GEOCENTRIC),
        ({4096: 5703}, None),
        ({}, None),
    ],
)
def test_units_of_keys(keys, units):
    assert units_of_keys(records_of(keys)) == units


def records_of(keys):
    """The records of GeoTIFF's keys: numbers that are no integers are in the second."""
    doubles = [value for value in keys.values() if isinstance(value, float)]
    numbers = [1, 1, 0, len(keys)]
    for key, value in keys.items():
        is_double = isinstance(value, float)
        numbers += [key, 34736 if is_double else 0, 1, doubles.index(value) if is_double else value]
    return {34735: struct.pack(f"<{len(numbers)}H", *numbers), 34736: struct.pack(f"<{len(doubles)}d", *doubles)}


# A map -> longitude and latitude of places in its area
MAPS = {
    3857: [(9, 0), (-74, 45), (30, 66), (170, -38)],
    3395: [(9, 52), (-74, -45)],
    32632: [(9, 52), (9, 1)],
    2154: [(2, 47)],
    2225: [(-122, 41)],
    31287: [(13, 47)],
    27572: [(2, 47)],
    3413: [(-45, 70), (100, 62)],
    3031: [(0, -89), (120, -66)],
    3035: [(10, 52), (-8, 40)],
    5070: [(-96, 38)],
    2193: [(173, -41)],
    5514: [(15, 50)],
    3832: [(-170, -18), (150, 50)],
}


@pytest.mark.parametrize("number", MAPS)
def test_the_scale_at_a_place_is_that_of_areas_on_the_ellipsoid(number):
    """A square on the map, by its area and sides on the ellipsoid as GeographicLib measures them."""
    to_map = pyproj.Transformer.from_crs(4326, number, always_xy=True)
    system = pyproj.CRS.from_epsg(number)
    ground = system.get_geod()
    degrees = {"proj": "longlat", "a": ground.a, "b": ground.b}
    back = pyproj.Transformer.from_crs(system, pyproj.CRS.from_dict(degrees), always_xy=True)
    meters = system.axis_info[0].unit_conversion_factor
    for place in MAPS[number]:
        x, y = to_map.transform(*place)
        side = 10 / meters
        corners = back.transform(
            [x - side, x + side, x + side, x - side],
            [y - side, y - side, y + side, y + side],
        )
        area, _ = ground.polygon_area_perimeter(*corners)
        found = ground_scale_at(f"EPSG:{number}", (x, y))
        assert found.scale == pytest.approx(np.sqrt(abs(area) / 400), rel=2e-4), place
        # As PROJ has it
        known = pyproj.Proj(system).get_factors(*back.transform(x, y))
        if number != 3857:  # of a sphere, whose factors are those on the sphere
            assert found.scale == pytest.approx(1 / np.sqrt(known.areal_scale), rel=2e-4), place
            assert found.ratio == pytest.approx(known.tissot_semimajor / known.tissot_semiminor, rel=2e-4), place
        assert found.is_alike


def test_a_map_has_no_scale_where_it_is_none_or_where_places_are_not_its_own():
    near = {2154: (0, 0), 31467: (100, 100), 3035: (0, 0), 27572: (10, 10)}
    assert all(ground_scale_at(f"EPSG:{number}", place) is None for number, place in near.items())
    # Its text alone names no area, which is looked for.
    assert ground_scale_at(pyproj.CRS(31467).to_wkt("WKT1_ESRI"), (100, 100)) is None
    for system in ("EPSG:4326", "EPSG:4978", "EPSG:5703", "EPSG:1", "no text"):
        assert ground_scale_at(system, (9, 52)) is None
    assert ground_scale_at("EPSG:3857", (float("nan"), 0)) is None
    # One direction is stretched, so that x and y have no common scale.
    assert not ground_scale_at("EPSG:4087", (1e6, 5e6)).is_alike
    # Far from its meridian, a zone has the scale that it has there.
    assert ground_scale_at("EPSG:32632", (1.4e6, 5.76e6)).scale == pytest.approx(0.9905, abs=1e-4)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("before", "after", "bit", "point_format", "meters"),
    [
        ({2112: FLAT}, {}, True, 6, US_FOOT),
        # copclib 2.6.3 writes the text of every COPC behind the points.
        ({}, {2112: FLAT}, True, 6, US_FOOT),
        ({2112: METRIC}, {2112: FLAT}, True, 6, US_FOOT),
        # Text and keys: the bit says which counts, and from point format 6 on it is the text.
        ({2112: FLAT, 34735: {3076: 9001}}, {}, True, 1, US_FOOT),
        ({2112: FLAT, 34735: {3076: 9001}}, {}, False, 1, 1.0),
        ({2112: FLAT, 34735: {3076: 9001}}, {}, False, 6, US_FOOT),
        # One that says nothing is no reason not to read the other.
        ({2112: "nothing", 34735: {3076: 9003}}, {}, True, 6, US_FOOT),
        ({}, {}, True, 6, None),
    ],
)
def test_records_of_las(before, after, bit, point_format, meters, compressed):
    data = bytearray(las(compressed, point_format)[1])
    size, start, count = struct.unpack_from("<HII", data, 94)
    front = b"".join(record(number, body, 54) for number, body in before.items())
    behind = b"".join(record(number, body, 60) for number, body in after.items())
    struct.pack_into("<H", data, 6, 16 * bit)
    struct.pack_into("<I", data, 96, start + len(front))
    struct.pack_into("<I", data, 100, count + len(before))
    if compressed:
        move_chunk_table(data, start, len(front))
    if after:
        struct.pack_into("<QI", data, 235, len(data) + len(front), len(after))
    cloud = read_point_cloud(bytes(data[:size] + front + data[size:] + behind), file_type="laz")
    assert cloud.meters_per_unit == meters and not cloud.in_degrees


def record(number, body, header_size):
    content = records_of(body)[34735] if isinstance(body, dict) else body.encode() + b"\0"
    layout = "<2x16sHH32x" if header_size == 54 else "<2x16sHQ32x"
    return struct.pack(layout, b"LASF_Projection", number, len(content)) + content


def move_chunk_table(data, start, distance):
    (table,) = struct.unpack_from("<q", data, start)
    struct.pack_into("<q", data, start, table + distance)


def in_system(text=None, keys=None, points=None):
    """The bytes of a LAS whose records state a system, with its points at a place."""
    data = bytearray(las(False)[1])
    records = [record(2112, text, 54)] if text is not None else []
    records += [record(34735, keys, 54)] if keys is not None else []
    front = b"".join(records)
    size, start, count = struct.unpack_from("<HII", data, 94)
    struct.pack_into("<II", data, 96, start + len(front), count + len(records))
    if points is not None:
        struct.pack_into("<3d", data, 155, *points)
    return bytes(data[:size] + front + data[size:])


def read(data):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cloud = read_point_cloud(data, file_type="las")
    return cloud, " / ".join(str(warning.message) for warning in told)


# What is stated -> axis that points up, unit of heights, scale on the ground, words of the warning, and of the reason
# why lengths on the ground are unknown
READ = {
    "meters": ({"text": METRIC}, "z", None, None, "", None),
    "Mercator": ({"text": pyproj.CRS(3857).to_wkt(), "points": (1e6, 6.8e6, 0)}, "z", None, 0.616, "", None),
    "Mercator, keys": ({"keys": {1024: 1, 3072: 3857}, "points": (1e6, 6.8e6, 0)}, "z", None, 0.616, "", None),
    "plate carree": ({"keys": {3072: 4087}, "points": (1e6, 5e6, 0)}, "z", None, None, "", "1.41 times"),
    "depth": ({"text": f'COMPD_CS["c",{METRIC},{HEIGHTS.replace("UP", "DOWN")}]'}, None, -1.0, None, "depth", None),
    "depth, keys": ({"keys": {3072: 32632, 4096: 5715, 4099: 9002}}, None, -0.3048, None, "depth", None),
    "own heights": ({"keys": {3072: 32632, 4096: 32767, 4099: 9002}}, "z", 0.3048, None, "z in units", None),
    "own heights, no unit": (
        {"keys": {3072: 32632, 4096: 32767}},
        "z",
        None,
        None,
        "unit of z is unknown",
        None,
    ),
    "geocentric": ({"text": pyproj.CRS(4978).to_wkt()}, None, None, None, "", "of EPSG:4978 (WGS 84) are geocentric"),
    "geocentric, keys": (
        {"keys": {1024: 3, 2048: 4978}},
        None,
        None,
        None,
        "",
        "of EPSG:4978 (WGS 84) are geocentric",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_file_says_more_than_its_unit(name):
    stated, up_axis, height, scale, words, reason = READ[name]
    cloud, said = read(in_system(**stated))
    assert (
        cloud.up_axis == up_axis and cloud.meters_per_height == height and words in said and bool(said) == bool(words)
    )
    assert cloud.ground_scale == (None if scale is None else pytest.approx(scale, abs=1e-3))
    why = why_not_projected(cloud)
    assert (why is None) == (reason is None) and (reason is None or (reason in why and "reproject" in why))
    if scale is not None:
        assert cloud.meters_per_unit == 1.0 and cloud.meters_per_axis == pytest.approx([scale, scale, 1], abs=1e-3)


def test_without_pyproj_points_are_read_and_the_extra_is_named_where_the_unit_matters(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyproj", None)
    for stated in ({"text": METRIC + " "}, {"keys": {1024: 1, 3072: 32633}}):
        cloud, said = read(in_system(**stated))
        assert not said and len(cloud) and cloud.meters_per_unit is None and cloud.up_axis == "z"
        assert "pip install 'hf-any3d[files]'" in why_not_projected(cloud)
        assert not is_taken_for_meters("a.las", cloud)
    # A file that states no system needs nothing.
    cloud, said = read(in_system())
    assert not said and is_taken_for_meters("a.las", cloud)


def keys_of(**values):
    numbers = {"model": 1024, "geographic": 2048, "projected": 3072}
    entries = [(numbers[name], 0, 1, value) for name, value in values.items()]
    return struct.pack(f"<{4 + 4 * len(entries)}H", 1, 1, 0, len(entries), *sum(entries, ()))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"model": 1, "geographic": 4171, "projected": 2154}, "EPSG:2154"),
        ({"projected": 25832}, "EPSG:25832"),
        ({"model": 2, "geographic": 4326}, "EPSG:4326"),
        ({"model": 1, "geographic": 4171, "projected": 32767}, None),
        ({"model": 1, "geographic": 4171}, None),
        ({}, None),
    ],
)
def test_the_name_of_a_system_by_keys(values, name):
    assert name_of_keys({34735: keys_of(**values)}) == name


@pytest.mark.parametrize("compressed", [False, True])
def test_the_system_of_a_file_is_read_from_its_records(compressed, tmp_path):
    laspy = pytest.importorskip("laspy")
    text = f'COMPD_CS["c",{FLAT},{HEIGHTS}]'
    flat = pyproj.CRS.from_wkt(FLAT).to_wkt()
    text_record = laspy.VLR("LASF_Projection", 2112, "", text.encode() + b"\0")
    keys_record = laspy.VLR("LASF_Projection", 34735, "", keys_of(model=1, projected=2154))

    def written(point_format, *records, after=False):
        header = laspy.LasHeader(point_format=point_format, version="1.4")
        scan = laspy.LasData(header)
        scan.x = scan.y = scan.z = [0.0, 1.0]
        if after:
            scan.evlrs = laspy.vlrs.vlrlist.VLRList(records)
        else:
            header.vlrs.extend(records)
        path = tmp_path / ("scan.laz" if compressed else "scan.las")
        scan.write(str(path))
        return system_of(path).flat

    assert written(6, text_record) == flat
    assert written(6, text_record, after=True) == flat
    assert written(1, keys_record) == "EPSG:2154"
    # The text counts from format 6 on, and keys before, unless a bit says otherwise.
    assert written(6, keys_record, text_record) == flat
    assert written(1, keys_record, text_record) == "EPSG:2154"
    assert written(1) is None


def test_other_files_name_no_system(tmp_path):
    path = tmp_path / "cloud.ply"
    for data in (b"", b"ply\n", b"LASF", b"LASF" + bytes(90), b"LASF" + bytes(223)):
        path.write_bytes(data)
        assert system_of(path).flat is None


CONNECTICUT = (
    'PROJCS["NAD_1983_StatePlane_Connecticut_FIPS_0600",GEOGCS["GCS_North_American_1983",DATUM["D_North_American_1983",'
    'SPHEROID["GRS_1980",6378137.0,298.257222101]],PRIMEM["Greenwich",0.0],UNIT["Degree",0.0174532925199433]],'
    'PROJECTION["Lambert_Conformal_Conic"],PARAMETER["False_Easting",304800.6096],PARAMETER["False_Northing",'
    '152400.3048],PARAMETER["Central_Meridian",-72.75],PARAMETER["Standard_Parallel_1",41.2],'
    'PARAMETER["Standard_Parallel_2",41.8666666666667],PARAMETER["Latitude_Of_Origin",40.8333333333333],'
    'UNIT["Meter",1.0]]'
)


@pytest.mark.parametrize(("number", "differs"), [(26956, False), (26918, True), (25832, True)])
def test_a_number_is_compared_with_a_text_without_one_where_a_rule_says_what_it_is(number, differs):
    by_number = CoordinateSystem(f"EPSG:{number}")
    assert by_number.differs_from(CoordinateSystem(CONNECTICUT)) == differs
