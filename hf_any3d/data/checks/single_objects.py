"""Clouds that show no single object: too few points, a whole room, a street, or what no thing of a model can be."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.frames.units import length_of_unit
from hf_any3d.extensions import missing_package

ROOM_HEIGHT, ROOM_WIDTH = (1.8, 6.0), 2.2
"""Meters, smallest and largest height and smallest side of what may be a whole room."""
ROOM_SHARE = 0.4
"""Share of the points of a room that lie on its floor, ceiling and walls."""
FEW_POINTS = 32
"""Points of a cloud below which it shows no shape."""
LARGEST_OBJECT = 4.0
"""Meters, largest extent of a single object for models of which nobody knows how large their things are."""
LARGER = 2.0
"""How many times as large as the largest scan of the training a thing of the same kind may be."""

WIDE = 20.0
"""Meters, extent from which on a LAS file is taken for a scan of a site."""


class NoObjectWarning(UserWarning):
    """A cloud that a model of objects was given shows no single object."""


def why_no_object(cloud: PointCloudData, up_axis: str, config: Any = None) -> str | None:
    """Return why a cloud shows no object: too few points, its size, or that it is a whole room; None if it may.

    `config` is that of the model; `largest_scan` and `scan_unit` in it, if any, say how large its own things are.
    """
    points = cloud.points
    if cloud.faces is None and len(points) < FEW_POINTS:
        return f"{len(points)} points are too few to show a shape, so the label is a guess"
    reason = why_too_large(cloud, config)
    if reason is not None:
        return reason
    low, size = points.min(axis=0), np.ptp(points, axis=0)  # (3,)
    largest = getattr(config, "largest_scan", None)
    if largest is not None:
        # No larger than the model's scans, in the units of both; where one is not known, the numbers are compared.
        longest = float(size.max())
        scan_unit = getattr(config, "scan_unit", None)
        if cloud.meters_per_unit is not None and scan_unit is not None:
            longest = longest * cloud.meters_per_unit / scan_unit
        if longest <= largest:
            return None
    # Files that do not say their unit are taken for meters.
    lengths = cloud.meters_per_axis
    meters = size if lengths is None else size * lengths
    height = meters["xyz".index(up_axis)]
    sides = np.delete(meters, "xyz".index(up_axis))
    if not (ROOM_HEIGHT[0] <= height <= ROOM_HEIGHT[1] and sides.min() >= ROOM_WIDTH):
        return None
    # What stands in the middle of its box is an object of this size.
    places = (points - low) / size
    if (np.abs(places - 0.5) > 0.47).any(axis=1).mean() < ROOM_SHARE:
        return None
    extent = " × ".join(f"{length:.1f}" for length in meters)
    return (
        f"measures {extent}, the size of a room if in meters; label its points (hf-any3d segment) or crop one object"
    )


def why_too_large(cloud: PointCloudData, config: Any = None) -> str | None:
    """Return why a cloud of known unit is too large for an object of the model with this config, None if it is not."""
    unit = length_of_unit(cloud)
    if unit is None:
        return None
    lengths = np.full(3, unit) if cloud.meters_per_axis is None else cloud.meters_per_axis
    extent = float((np.ptp(cloud.points, axis=0) * lengths).max())
    limit = LARGEST_OBJECT
    largest = getattr(config, "largest_scan", None)
    unit = getattr(config, "scan_unit", None)
    if largest is not None:
        # Scans of an unknown unit may be in meters.
        limit = LARGER * largest * unit if unit is not None else max(limit, LARGER * largest)
    if extent <= limit:
        return None
    shown = f"{extent:.0f}" if extent >= 10 else f"{extent:.2g}"
    steps = "label its points (hf-any3d segment) or crop one object"
    # Most LAS files of this size are airborne scans, for which no model has to be found.
    if cloud.label_codes is not None and extent >= WIDE:
        package = missing_package("inventory")
        of_package = "" if package is None else f", of {package}"
        steps = f"number its trees and buildings (hf-any3d inventory{of_package}), {steps}"
    # With the limit, by which a wrong unit of the file or the training can be seen
    return f"spans {shown} m, too large for the objects this model was trained on (up to {limit:.2g} m); {steps}"
