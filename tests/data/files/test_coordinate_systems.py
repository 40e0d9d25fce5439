"""Units by coordinate systems: texts of all dialects, keys of GeoTIFF, EPSG's numbers, and the records of LAS."""

import json
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from hf_any3d import read_point_cloud
from hf_any3d.data.files.coordinate_systems import (
    UNKNOWN,
    CoordinateSystem,
    Units,
    horizontal_part,
    name_of_keys,
    units_of_keys,
    units_of_text,
)
from hf_any3d.data.files.epsg_units import in_degrees, length_of_heights, length_of_unit
from hf_any3d.data.files.las import system_of
from tests.data.files.builders import las

US_FOOT = 1200 / 3937
DEGREES = Units(in_degrees=True)
# Written by pyproj 3.7.2, EPSG's tables v11.022.
STORED = json.loads((Path(__file__).parent / "coordinate_systems.json").read_text(encoding="utf-8"))
DIALECTS = ("WKT1_GDAL", "WKT1_ESRI", "WKT2_2015", "WKT2_2019")
FLAT = 'PROJCS["a",GEOGCS["b",UNIT["degree",0.0174532925199433]],UNIT["US survey foot",0.304800609601219]]'


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: f"{stored['system']} {stored['dialect']}")
def test_units_of_texts_that_pyproj_wrote(stored):
    expected = Units(stored["length"], stored["height"], stored["in_degrees"])
    assert units_of_text(stored["text"]) == expected


@pytest.mark.parametrize(
    ("text", "units"),
    [
        (FLAT, Units(US_FOOT)),
        (FLAT.replace("[", "(").replace("]", ")"), Units(US_FOOT)),
        (FLAT.lower().replace("us survey foot", "Foot_US") + "\0\0", Units(US_FOOT)),
        # Rounded, as many programs write it; a foot stays one.
        (FLAT.replace("0.304800609601219", "0.3048006"), Units(US_FOOT)),
        (FLAT.replace("0.304800609601219", "0.3048"), Units(0.3048)),
        # Brackets and quotes in names
        (FLAT.replace('"a"', '"a ]] ""UNIT[""m"",1]"""'), Units(US_FOOT)),
        # Heights behind the system, as Esri's programs write them, inside of it, and before it
        (FLAT + ',VERTCS["h",VDATUM["v"],PARAMETER["Direction",1.0],UNIT["Meter",1.0]]', Units(US_FOOT, 1.0)),
        (FLAT[:-1] + ',VERT_CS["h",UNIT["meter",1]]]', Units(US_FOOT, 1.0)),
        (f'COMPD_CS["c",VERT_CS["h",UNIT["meter",1]],{FLAT}]', Units(US_FOOT, 1.0)),
        # The unit of an extent or a remark is not that of the coordinates.
        (
            'PROJCRS["a",CS[Cartesian,2],AXIS["e",east],AXIS["n",north],LENGTHUNIT["foot",0.3048],USAGE[SCOPE["s"],'
            'VERTICALEXTENT[-10,20,LENGTHUNIT["meter",1]]],ID["EPSG",2994],REMARK["LENGTHUNIT[""meter"",1]"]]',
            Units(0.3048),
        ),
        # Units of each axis, of which the third is heights
        (
            'PROJCRS["a",CS[Cartesian,3],AXIS["e",east,LENGTHUNIT["foot",0.3048]],AXIS["n",north,LENGTHUNIT["foot",'
            '0.3048]],AXIS["h",up,LENGTHUNIT["meter",1]]]',
            Units(0.3048, 1.0),
        ),
        (
            'DERIVEDPROJCRS["d",BASEPROJCRS["b",LENGTHUNIT["meter",1]],DERIVINGCONVERSION["c",PARAMETER["p",1,'
            'LENGTHUNIT["meter",1]]],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["foot",0.3048]]',
            Units(0.3048),
        ),
        ('LOCAL_CS["site",LOCAL_DATUM["d",0],UNIT["foot",0.3048],AXIS["x",EAST],AXIS["y",NORTH]]', Units(0.3048)),
        ('ENGCRS["site",EDATUM["d"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["m",1]]', Units(1.0)),
        ('COORDINATEMETADATA[GEOGCRS["g",CS[ellipsoidal,2],ANGLEUNIT["degree",0.017]],EPOCH[2016.47]]', DEGREES),
        ('PROJCS["a",AUTHORITY["EPSG","2225"]]', Units(US_FOOT)),
        # Nothing is guessed from what is cut off, says that it does not know, or is no such text.
        (FLAT[:-1], UNKNOWN),
        (FLAT + "]", UNKNOWN),
        (FLAT.replace('"US survey foot",0.304800609601219', '"unknown",1'), UNKNOWN),
        (FLAT.replace("0.304800609601219", "-1"), UNKNOWN),
        ("EPSG:2225", UNKNOWN),
        ("A[" * 30_000, UNKNOWN),
        ('VERT_CS["h",UNIT["foot",0.3048]]', Units(None, 0.3048)),
    ],
)
def test_units_of_texts(text, units):
    assert units_of_text(text) == units


@pytest.mark.parametrize(
    ("keys", "units"),
    [
        ({1024: 1, 3072: 32632}, Units(1.0)),
        ({3072: 2225, 4096: 5703}, Units(US_FOOT, 1.0)),
        # The unit that a file gives counts before that of EPSG's number.
        ({1024: 1, 3072: 2225, 3076: 9002, 4099: 9003}, Units(0.3048, US_FOOT)),
        ({1024: 1, 3072: 32767, 3076: 32767, 3077: 0.304800609601}, Units(US_FOOT)),
        ({1024: 1, 3072: 32767}, UNKNOWN),
        ({1024: 2, 2048: 4326, 4096: 5773}, Units(None, 1.0, in_degrees=True)),
        ({2048: 4326}, DEGREES),
        ({3072: 4326}, DEGREES),
        ({1024: 3, 2048: 4978}, Units(1.0)),
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


METRIC = FLAT.replace('"US survey foot",0.304800609601219', '"meter",1')


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


@pytest.mark.slow
def test_texts_of_many_systems_in_four_dialects():
    """Not one unit of 200 and more texts is another one than pyproj's."""
    pyproj = pytest.importorskip("pyproj")
    from pyproj.crs import BoundCRS, CompoundCRS
    from pyproj.crs.coordinate_operation import ToWGS84Transformation
    from pyproj.database import query_crs_info

    numbers = {kind: [] for kind in ("PROJECTED_CRS", "COMPOUND_CRS", "VERTICAL_CRS")}
    for found in query_crs_info(auth_name="EPSG"):
        numbers.get(found.type.name, []).append(int(found.code))
    projected = [pyproj.CRS.from_epsg(number) for number in numbers["PROJECTED_CRS"][::200]]
    heights = [pyproj.CRS.from_epsg(number) for number in numbers["VERTICAL_CRS"][::12]]
    systems = [*projected, *(pyproj.CRS.from_epsg(number) for number in numbers["COMPOUND_CRS"][::30])]
    # Any x and y with any heights, and each bound to another system by seven parameters
    systems += [CompoundCRS("both", pair) for pair in zip(projected, heights, strict=False)]
    way = ToWGS84Transformation
    systems += [BoundCRS(flat, "WGS 84", way(flat.geodetic_crs, 1, 2, 3)) for flat in projected[::2]]
    texts = 0
    for system in systems:
        inner = system.source_crs if system.is_bound else system
        axes = {axis.direction in ("up", "down"): axis.unit_conversion_factor for axis in inner.axis_info}
        if any("degree" in axis.unit_name for axis in inner.axis_info):
            axes.pop(False)
        for dialect in DIALECTS:
            # Not every system can be said in every dialect.
            text = None
            with suppress(pyproj.exceptions.CRSError):
                text = system.to_wkt(dialect)
            if text:
                texts += 1
                found = units_of_text(text)
                assert (found.length or 0, found.height or 0) == pytest.approx(
                    (axes.get(False, 0), axes.get(True, 0)), rel=2e-7
                ), text
    assert texts >= 200


@pytest.mark.slow
def test_units_of_epsg_are_those_of_pyproj():
    pyproj = pytest.importorskip("pyproj")
    from docs.tools import epsg_units

    flat, heights, degrees = epsg_units.units_of_systems()
    lengths = {number: meters for number, (_, meters) in epsg_units.lengths().items()}
    if pyproj.database.get_database_metadata("EPSG.VERSION") in epsg_units.PATH.read_text(encoding="utf-8"):
        assert epsg_units.PATH.read_text(encoding="utf-8") == epsg_units.module()
    known = [number for number in flat if length_of_unit(number) is not None]
    # A later release knows further systems.
    assert len(known) > 0.95 * len(flat) and sum(lengths[flat[number]] == 1 for number in known) > 4000
    for number in known:
        assert length_of_unit(number) == pytest.approx(lengths[flat[number]], rel=1e-12), number
    assert all(length_of_heights(number) in (None, pytest.approx(lengths[heights[number]])) for number in heights)
    assert not any(in_degrees(number) for number in flat) and sum(map(in_degrees, degrees)) > 0.95 * len(degrees)


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: f"{stored['system']} {stored['dialect']}")
def test_the_part_of_x_and_y_has_the_same_units_and_no_others(stored):
    part = horizontal_part(stored["text"])
    assert part is not None and not part.startswith(("COMPD_CS", "COMPOUNDCRS", "BOUNDCRS", "VERT"))
    expected = Units(stored["length"], in_degrees=stored["in_degrees"])
    assert replace(units_of_text(part), height=None) == expected
    if not stored["text"].startswith(("COMPD_CS", "COMPOUNDCRS", "BOUNDCRS")):
        assert stored["text"].startswith(part)


def test_the_part_of_x_and_y_is_found_in_any_order_and_none_in_what_is_no_system():
    heights = 'VERT_CS["h",UNIT["meter",1]]'
    assert horizontal_part(f'COMPD_CS["c",{heights},{FLAT}]\0\0') == FLAT
    assert horizontal_part(f'BOUNDCRS[SOURCECRS[COMPOUNDCRS["c",{FLAT},{heights}]],TARGETCRS[{heights}]]') == FLAT
    assert horizontal_part(f"{FLAT},{heights}") == FLAT
    for text in ("", heights, FLAT[:-1], "EPSG:2154", f'COMPD_CS["c",{heights}]'):
        assert horizontal_part(text) is None


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
    text = f'COMPD_CS["c",{FLAT},VERT_CS["h",UNIT["meter",1]]]'
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

    assert written(6, text_record) == FLAT
    assert written(6, text_record, after=True) == FLAT
    assert written(1, keys_record) == "EPSG:2154"
    # The text counts from format 6 on, and keys before, unless a bit says otherwise.
    assert written(6, keys_record, text_record) == FLAT
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
