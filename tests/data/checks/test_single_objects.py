"""Clouds that show no single object: rooms, streets, a handful of points."""

import struct

import numpy as np
import pytest
from typer.testing import CliRunner

from hf_any3d import PointFeaturesConfig
from hf_any3d.cli import app
from hf_any3d.data.checks.single_objects import NoObjectWarning, why_no_object
from hf_any3d.data.files import PointCloudData, read_point_cloud
from hf_any3d.pipelines import default_model
from tests.data.files.builders import las
from tests.data.files.systems import FLAT, GEOGRAPHIC, HEIGHTS


def box_of(size, share=1.0, count=1000):
    """A cloud of a box's size, of whose points a share lies on its floor and the others in its middle."""
    points = np.random.default_rng(0).uniform(0.1, 0.9, size=(count, 3))
    points[: int(share * count), 1] = 0
    points[:2] = [[0], [1]]
    return PointCloudData(points * np.asarray(size))


@pytest.mark.parametrize(("count", "few"), [(31, True), (32, False)])
def test_a_handful_of_points_shows_no_shape_but_a_mesh_of_them_does(count, few):
    points = np.random.default_rng(0).normal(size=(count, 3))
    reason = why_no_object(PointCloudData(points), "y")
    assert reason == (f"{count} points are too few to show a shape, so the label is a guess" if few else None)
    assert why_no_object(PointCloudData(points, faces=np.array([[0, 1, 2]])), "y") is None


def street(length: float) -> np.ndarray:
    """Points of a street with intensities, as a laser scanner on a car writes them."""
    return np.random.default_rng(0).uniform(0, [length, min(length, 17), min(length, 12), 1], (400, 4)).astype("<f4")


@pytest.mark.parametrize(("length", "told"), [(120, True), (18, True), (3.5, False)])
def test_a_street_of_a_file_in_meters_is_told_by_command_and_pipeline(length, told, tmp_path, recwarn):
    from transformers import pipeline

    street(length).tofile(tmp_path / "street.kitti.bin")
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "street.kitti.bin")])
    assert done.exit_code == 0, done.output
    assert done.stderr.count("m, too large for the objects") == told
    pipeline("point-cloud-classification", model=str(default_model()))(str(tmp_path / "street.kitti.bin"))
    assert any(issubclass(warning.category, NoObjectWarning) for warning in recwarn) is told
    # The same points in a file of no known unit may be those of a toy.
    assert why_no_object(PointCloudData(street(length)[:, :3]), "z") is None


def test_an_airborne_scan_is_told_of_the_inventory():
    for codes, size, is_told in (("asprs", 150, True), ("asprs", 12, False), (None, 150, False)):
        cloud = box_of((size, 10, size), share=0)
        cloud.meters_per_unit, cloud.label_codes = 1.0, codes
        assert ("hf-any3d inventory" in str(why_no_object(cloud, "z"))) is is_told


def model_of(**settings):
    """What a model stores of the scans that it has learned."""
    return PointFeaturesConfig(features=["descriptors"], **settings)


@pytest.mark.parametrize(
    ("size", "unit", "config", "limit"),
    [
        (60, 0.3048, None, "4 m"),  # a house in feet
        (12, 0.3048, None, None),
        (5, 1.0, None, "4 m"),
        (60, None, None, None),  # nobody knows in what
        # Own scans of a model, in meters and in feet: things of the same kind may be twice as large.
        (18, 1.0, {"largest_scan": 10.0, "scan_unit": 1.0}, None),
        (21, 1.0, {"largest_scan": 10.0, "scan_unit": 1.0}, "20 m"),
        (60, 0.3048, {"largest_scan": 50.0, "scan_unit": 0.3048}, None),
        (3, 1.0, {"largest_scan": 0.1, "scan_unit": 1.0}, "0.2 m"),
        # Of scans without a unit nobody knows that they are not in meters.
        (28, 1.0, {"largest_scan": 14.0}, None),
        (29, 1.0, {"largest_scan": 14.0}, "28 m"),
        (5, 1.0, {"largest_scan": 1.5}, "4 m"),
    ],
)
def test_what_a_model_can_know_is_as_large_as_its_own_scans_or_four_meters(size, unit, config, limit):
    cloud = box_of((size, size / 8, size / 2), share=0)
    cloud.meters_per_unit = unit
    reason = why_no_object(cloud, "y", None if config is None else model_of(**config))
    assert (reason is None) is (limit is None)
    assert reason is None or f"m, too large for the objects this model was trained on (up to {limit})" in reason


def test_a_room_is_measured_in_meters_and_is_none_to_a_model_of_such_numbers():
    feet = box_of((12, 9, 12))
    feet.meters_per_unit = 0.3048
    assert "3.7 × 2.7 × 3.7, the size of a room" in why_no_object(feet, "y")
    parts = box_of((14.0, 5.1, 7.0))  # millimeters, which the file does not say
    assert "the size of a room" in why_no_object(parts, "y")
    assert why_no_object(parts, "y", model_of(largest_scan=14.0)) is None
    assert "the size of a room" in why_no_object(parts, "y", model_of(largest_scan=2.0))


def las_in(user: bytes, kind: int, record: bytes) -> bytes:
    """A LAS file with one record about its coordinates."""
    data = las(False, 0)[1]
    start = struct.unpack_from("<I", data, 96)[0]
    header = bytearray(data[: struct.unpack_from("<H", data, 94)[0]])
    more = struct.pack("<2x16sHH32x", user, kind, len(record)) + record
    struct.pack_into("<I", header, 96, len(header) + len(more))
    struct.pack_into("<I", header, 100, 1)
    return bytes(header) + more + data[start:]


@pytest.mark.parametrize(
    ("kind", "record", "meters"),
    [
        (34735, struct.pack("<8H", 1, 1, 0, 1, 3076, 0, 1, 9001), 1.0),
        (34735, struct.pack("<8H", 1, 1, 0, 1, 3076, 0, 1, 9002), 0.3048),
        (34735, struct.pack("<8H", 1, 1, 0, 1, 3076, 0, 1, 9003), 1200 / 3937),
        (34735, struct.pack("<8H", 1, 1, 0, 1, 1024, 0, 1, 2), None),
        (34735, struct.pack("<8H", 1, 1, 0, 1, 3076, 0, 1, 9102), None),
        (2112, FLAT.encode(), 1200 / 3937),
        (2112, f'COMPD_CS["c",{FLAT},{HEIGHTS}]'.encode(), 1200 / 3937),
        (2112, GEOGRAPHIC.encode(), None),
        (9, b"else", None),
    ],
)
def test_units_of_las_are_those_of_its_coordinate_system(kind, record, meters):
    cloud = read_point_cloud(las_in(b"LASF_Projection", kind, record), file_type="las")
    assert cloud.meters_per_unit == (None if meters is None else pytest.approx(meters))
