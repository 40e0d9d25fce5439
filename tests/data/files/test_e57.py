"""E57: a file of libE57Format with two scans, and files written here with other layouts and damage."""

import struct
import warnings

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, file_type_of, read_point_cloud

from .builders import e57, paged
from .conftest import FILES

# By libE57Format 3 through pye57: the first 300 points of chair.npz, divided by 20. One scan has scaled integers of 18
# bits and marks every hundredth point as invalid; the other has spherical coordinates and a pose.
SCANS = (FILES.parent / "data" / "files" / "scans.e57").read_bytes()


def test_scans_of_another_program_are_joined_in_their_common_frame():
    with pytest.warns(UserWarning, match="3 of 300 points of a scan are marked as invalid and are skipped"):
        cloud = read_point_cloud(SCANS, file_type="e57")
    with np.load(FILES / "chair.npz", allow_pickle=False) as archive:
        points, colors = archive["points"][:300].astype(np.float64) / 20, archive["colors"][:300]
    valid = np.arange(300) % 100 != 7
    sine, cosine = np.sin(0.6), np.cos(0.6)
    turned = points @ np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]).T + [1, 2, 3]
    np.testing.assert_allclose(cloud.points[:297], points[valid], atol=5.1e-5)  # as finely as they are scaled
    np.testing.assert_allclose(cloud.points[297:], turned, atol=1e-6)
    np.testing.assert_allclose(cloud.colors * 255, np.concatenate([colors[valid], colors]), atol=1e-4)
    intensity = np.arange(300) * 1000 // 300
    assert (cloud.intensity == np.concatenate([intensity[valid], intensity])).all()
    assert file_type_of(SCANS) == "e57"


@pytest.mark.parametrize("bits", [1, 7, 8, 13, 16, 31, 32, 47, 64])
def test_integers_of_any_width_are_those_written(bits):
    least = -(2 ** (bits - 1))
    values = np.random.default_rng(bits).integers(least, 2 ** (bits - 1), (200, 3), dtype=np.int64)
    fields = [(f"cartesian{axis}", least, 2 ** (bits - 1) - 1, values[:, i]) for i, axis in enumerate("XYZ")]
    cloud = read_point_cloud(e57(fields), file_type="e57")
    found = cloud.points if cloud.offset is None else cloud.points + cloud.offset
    np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'recordCount="40"', b'recordCount="99"'),
        (b'recordCount="40"', b'recordCount="x "'),
        (b"cartesianZ", b"cartesianQ"),
        (b'"Float"', b'"Blurb"'),
        (b"<data3D", b"<data4D"),
        (b"<e57Root", b"<!ENTITY"),
        (b'fileOffset="48"', b'fileOffset="0" '),
    ],
)
def test_a_wrong_layout_is_explained(old, new):
    logical = e57(is_paged=False)
    assert old in logical
    with pytest.raises(PointCloudFileError):
        read_point_cloud(paged(logical.replace(old, new, 1)), file_type="e57")


def changed(logical: bytes, old: str, new: str) -> bytes:
    """Replace a text of the XML section, whose size is in the header."""
    assert old.encode() in logical
    size = struct.unpack_from("<Q", logical, 32)[0] + (len(new) - len(old)) * logical.count(old.encode())
    made = logical.replace(old.encode(), new.encode())
    return made[:32] + struct.pack("<Q", size) + made[40:]


XYZ = np.random.default_rng(0).normal(size=(40, 3))


_COLORS = ("Red", "Green", "Blue")
_LIMITS = "".join(
    f'<color{name}Minimum type="Float"/><color{name}Maximum type="Float">TOP</color{name}Maximum>' for name in _COLORS
)


@pytest.mark.parametrize(
    ("kind", "top", "ends", "limits"),
    [
        ("Float", 1, None, None),
        ("Float", 1, (0, 1), 1),
        ("Float", 255, None, None),
        ("Float", 255, (0, 255), None),
        ("Float", 255, None, 1),  # limits that are wrong
        ("Float", 4095, None, 4095),
        ("Integer", 255, None, None),
        ("Integer", 255, (0, 255), 1),
        ("Integer", 255, (0, 65535), 255),
        ("Integer", 4095, (0, 65535), 4095),
        ("Integer", 65535, (0, 65535), None),
        ("Integer", 65535, None, None),
    ],
)
def test_colors_range_within_the_limits_of_their_scan_or_field_or_by_their_values(kind, top, ends, limits):
    shares = np.random.default_rng(0).integers(0, 256, (30, 3)) / 255
    shares[0] = 1
    low, high = -(2**63), 2**63 - 1
    if kind == "Float":
        # Stored as their bits, which `e57` counts from the least integer.
        columns = [[int(bits) + low for bits in column] for column in (shares * top).T.copy().view(np.uint64)]
    else:
        low, high = ends or (low, high)
        columns = np.rint(shares * top).astype(np.int64).T
    fields = [(f"color{name}", low, high, column) for name, column in zip(_COLORS, columns, strict=True)]
    data = e57([*((f"cartesian{axis}", 0, 29, np.arange(30)) for axis in "XYZ"), *fields], is_paged=False)
    declared = "" if ends is None else f' minimum="{ends[0]}" maximum="{ends[1]}"'
    data = changed(data, f'"Integer" minimum="{low}" maximum="{high}"', f'"{kind}"{declared}')
    if limits is not None:
        text = f'<colorLimits type="Structure">{_LIMITS.replace("TOP", str(limits))}</colorLimits><points '
        data = changed(data, "<points ", text)
    cloud = read_point_cloud(paged(data), file_type="e57")
    np.testing.assert_allclose(cloud.colors, shares, atol=0.5 / top if kind == "Integer" else 1e-6)
    assert cloud.up_axis == "z"


def test_a_color_that_does_not_vary_has_limits_without_width():
    columns = (np.zeros(30, dtype=np.int64), np.arange(30), np.full(30, 255))
    fields = [(f"color{name}", 0, 255, column) for name, column in zip(_COLORS, columns, strict=True)]
    data = e57([*((f"cartesian{axis}", 0, 29, np.arange(30)) for axis in "XYZ"), *fields], is_paged=False)
    limits = _LIMITS.replace("TOP", "0", 1).replace("TOP", "255")
    data = changed(data, "<points ", f'<colorLimits type="Structure">{limits}</colorLimits><points ')
    cloud = read_point_cloud(paged(data), file_type="e57")
    np.testing.assert_allclose(cloud.colors, np.stack(columns, axis=1) / 255, atol=1e-6)


# By libE57Format through pye57 0.4.19: two scans of twelve points, one with intensities to 1, the other to 2047,
# as their `intensityLimits` say. The first has three colors that are marked as invalid and the second one intensity;
# of both, the last point is marked itself.
MARKED = (FILES.parent / "data" / "files" / "invalid_values.e57").read_bytes()


def test_scans_of_two_scales_are_joined_on_one_and_marked_values_are_0():
    with pytest.warns(UserWarning) as said:
        cloud = read_point_cloud(MARKED, file_type="e57")
    rows = np.arange(11)
    expected = np.tile((rows + 1) / 16, 2)
    expected[14] = 0
    np.testing.assert_allclose(cloud.intensity, expected, atol=1e-6)
    colors = np.tile(np.stack([10 * rows + 5, 20 * rows, 255 - rows], axis=1), (2, 1)) / 255
    colors[[2, 7]] = 0
    np.testing.assert_allclose(cloud.colors, colors, atol=1e-6)
    texts = [str(each.message).split("bytes>: ")[1] for each in said]
    assert texts == [
        "1 of 12 points of a scan are marked as invalid and are skipped",
        "scans declare different intensity limits; each scan is scaled to 0 to 1 by its own limits",
        "colors: 2 of 22 are marked as invalid, or NaN, the first at 2 (counted from 0); they are 0",
        "intensities: 1 of 22 are marked as invalid, or NaN, the first at 14 (counted from 0); they are 0",
    ]


def test_colors_and_intensities_that_are_0_everywhere_are_none():
    axes = [(f"cartesian{axis}", 0, 9, np.arange(5) + number) for number, axis in enumerate("XYZ")]
    dark = [(name, 0, 255, np.zeros(5, int)) for name in ("colorRed", "colorGreen", "colorBlue", "intensity")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cloud = read_point_cloud(e57([*axes, *dark]), file_type="e57")
    assert cloud.colors is None and cloud.intensity is None and len(cloud) == 5
