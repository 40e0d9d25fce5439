"""Units of scans: names that users can give, meters as the default, and the check for degrees."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hf_any3d.data.files import PointCloudData, PointCloudError
from hf_any3d.data.files.coordinate_systems import FOOT, US_SURVEY_FOOT
from hf_any3d.data.options import one_of
from hf_any3d.utils.messages import listed

LENGTHS = {"meters": 1.0, "feet": FOOT, "us-feet": US_SURVEY_FOOT}
"""Units that can be given for files without one, and their lengths in meters."""
TAKEN_FOR_METERS = "no coordinate system: assuming meters"
"""Warning about files without a unit."""
_LAS = (".las", ".laz")
# Scans in degrees are less than a degree wide, which is 100 km, away from the origin, and many times higher than wide,
# as heights are in meters: a tile of 100 m has 0.001 degrees. Few things in meters are as thin.
_LARGEST, _WIDEST, _NEAREST, _THINNEST = 360.0, 1.0, 20.0, 50.0
_MOST_NAMED = 3
# Feet of both kinds, rounded in files, are told apart by nothing that is measured here.
_SAME = 1e-5


def with_unit(cloud: PointCloudData, unit: str | None) -> PointCloudData:
    """Return a cloud with the given unit, one of `LENGTHS`, if its file states none.

    The unit that a file states counts; a warning tells of another one that was given.

    Raises:
        ValueError: `unit` is another word.
    """
    if unit is None:
        return cloud
    length = LENGTHS[one_of("unit", unit, tuple(LENGTHS))]
    if cloud.meters_per_unit is None and not cloud.in_degrees:
        # Who gives it needs nothing else that says it.
        return replace(cloud, meters_per_unit=length, no_map=None)
    if cloud.meters_per_unit is not None and abs(cloud.meters_per_unit / length - 1) > _SAME:
        warnings.warn(f"the file states a unit of {cloud.meters_per_unit:g} m, so {unit} is ignored", stacklevel=3)
    return cloud


def length_of_unit(cloud: PointCloudData) -> float | None:
    """Return the length of a unit in meters: that of the file, else 1 for scans with z up, such as LAS."""
    if cloud.meters_per_unit is None and cloud.up_axis == "z" and not cloud.in_degrees and not cloud.no_map:
        return 1.0
    return cloud.meters_per_unit


def is_taken_for_meters(name: str, cloud: PointCloudData) -> bool:
    """Return whether a file is LAS or LAZ and states no unit."""
    says_none = cloud.meters_per_unit is None and not cloud.in_degrees and not cloud.no_map
    return name.lower().endswith(_LAS) and says_none


def taken_for_meters(names: Sequence[str], total: int) -> str:
    """Return a remark that names the files without a unit."""
    return f"{TAKEN_FOR_METERS} ({len(names)} of {total}: {listed(names, _MOST_NAMED)})"


def remark_on_ground(cloud: PointCloudData) -> str | None:
    """Return a remark on a map whose lengths are not those on the ground; None if they are."""
    if cloud.ground_scale is None:
        return None
    return (
        f"{1 / cloud.ground_scale:.3g} m on the map are 1 m on the ground: lengths and areas are those on the ground"
    )


def check_projected(cloud: PointCloudData) -> None:
    """Check that x and y are lengths on the ground: degrees beside heights in meters would make everything a wall.

    Raises:
        PointCloudError: x and y are degrees, by the coordinate system, or without one by their extent; or the file
            says why they are no lengths on the ground, such as geocentric coordinates.
    """
    why = why_not_projected(cloud)
    if why is not None:
        raise PointCloudError(why)


def why_not_projected(cloud: PointCloudData) -> str | None:
    """Return why x and y are no lengths on the ground, such as degrees; None if they are."""
    if cloud.no_map is not None:
        return cloud.no_map
    by = None
    if cloud.in_degrees:
        by = "the coordinate system of the file"
    elif cloud.meters_per_unit is None and not cloud.is_mesh:
        offset = np.zeros(3) if cloud.offset is None else cloud.offset
        # Axis by axis: numpy takes ten times as long to reduce short rows.
        low, high = (np.array([end(axis) for axis in cloud.points.T]) + offset for end in (np.min, np.max))
        largest = np.abs([low[:2], high[:2]]).max()
        width = (high - low)[:2].max()
        is_there = _NEAREST * width < largest <= _LARGEST and width < _WIDEST
        if is_there and high[2] - low[2] > _THINNEST * width:
            extent = np.ptp(cloud.points, axis=0)
            by = f"their extent of {extent[0]:.3g} by {extent[1]:.3g}"
    if by is None:
        return None
    return (
        f"coordinates are in degrees, by {by}; reproject to meters or feet, for example with pdal's "
        "filters.reprojection"
    )
