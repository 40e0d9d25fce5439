"""Sweeps of automotive laser scanners, as in KITTI and nuScenes: .bin, rows of float32 without a header."""

import numpy as np

from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source

# File type -> numbers in a row: x, y, z and intensity, in nuScenes also the ring of the scanner.
_WIDTHS = {"kitti": 4, "nuscenes": 5}
_NAMED = {".kitti.bin": 4, ".nuscenes.bin": 5, ".pcd.bin": 5}
_CHOICES = (
    'pass file_type="kitti" (x y z intensity) or file_type="nuscenes" (x y z intensity ring), '
    "or end the name with .kitti.bin or .nuscenes.bin; for other columns, pass an array"
)
# Meters from the scanner that no laser reaches, and the least extent of what is around a car.
_FARTHEST, _LEAST_EXTENT = 500.0, 2.0
# Whole numbers and text that are read as float32 have numbers below.
_TINY = 1e-30
# Widths of rows that a file may have instead, and how far their columns differ: largest distance of distributions.
_OTHER_PERIODS, _DIFFERENT, _FEWEST = (2, 3, 5, 7), 0.6, 50


def read(source: Source) -> PointCloudData:
    """Read coordinates in meters, z up, and the intensity of each point, in nuScenes also its ring.

    Intensities stay as the sensor gives them: 0 to 1 in KITTI, 0 to 255 in nuScenes. The kind of a file follows from
    the file type "kitti" or "nuscenes", or from a name that ends with .kitti.bin, .nuscenes.bin or .pcd.bin. Without
    them the numbers must be those of a sweep of one kind alone: a scanner in the middle of its points, intensities
    from 0 to 1 or whole numbers up to 255, and rings that are whole numbers.
    """
    data = source.data
    # How many numbers a row has is told by the file type, or else by the name.
    if source.file_type in _WIDTHS:
        stated = _WIDTHS[source.file_type]
    else:
        name = source.name.lower()
        stated = next((width for ending, width in _NAMED.items() if name.endswith(ending)), None)
    sizes = [4 * width for width in ([stated] if stated else _WIDTHS.values())]
    if all(len(data) % size for size in sizes):
        rows = " or ".join(map(str, sizes))
        raise PointCloudError(f"{len(data)} bytes; expected rows of {rows} bytes, so it may be cut off; {_CHOICES}")
    width = stated
    if width is None:
        # The one width with which the bytes are a sweep
        doubts = {}
        for each in _WIDTHS.values():
            if len(data) % (4 * each) == 0:
                doubts[each] = _doubt(np.frombuffer(data, "<f4").reshape(-1, each))
        likely = [each for each, doubt in doubts.items() if doubt is None]
        if len(likely) != 1:
            reasons = [f"not of rows of {each} numbers ({doubt})" for each, doubt in doubts.items()]
            look = "of both kinds" if likely else " and ".join(reasons)
            raise PointCloudError(f"{len(data)} bytes that look {look}; {_CHOICES}")
        width = likely[0]
    source.check(points=len(data) // (4 * width))
    table = np.frombuffer(data, "<f4").reshape(-1, width)  # (points, width)
    # Invalid intensities are errors here: without a header they are the only sign of another format.
    ring = table[:, 4] if width == _WIDTHS["nuscenes"] else None
    # Sweeps are measured from the origin of their coordinates.
    place = {"scanner": np.zeros(3), "up_axis": "z", "meters_per_unit": 1.0}
    return PointCloudData(table[:, :3], intensity=table[:, 3], ring=ring, **place)


def _doubt(table: np.ndarray) -> str | None:
    """Return why rows of numbers (points, width) are no sweep of a scanner, None if they may be one."""
    size = np.abs(table)
    if not np.isfinite(table).all():
        return "NaN or infinite"
    if size.max() > _FARTHEST or ((size < _TINY) & (size > 0)).any():
        return "too large or small for meters"
    plane = table[:, :2]  # x and y, all around the scanner
    if not (plane.min() < 0 < plane.max() and np.ptp(plane, axis=0).min() >= _LEAST_EXTENT):
        return "not around a scanner"
    intensity = table[:, 3]
    # Intensities are shares in KITTI, and bytes in nuScenes.
    are_shares = intensity.min() >= 0 and intensity.max() <= 1
    if not are_shares and not _are_bytes(intensity):
        return "no intensities"
    if not _are_bytes(table[:, 4:]):
        return "no rings"
    for period in _OTHER_PERIODS:
        if len(table) >= _FEWEST * period and _is_mixed(plane, period):
            return f"another kind of numbers in every {period}. row"
    return None


def _is_mixed(plane: np.ndarray, period: int) -> bool:
    """Return whether x and y (points, 2) hold several kinds of numbers that alternate with a period.

    They do if rows are wider or narrower in truth: each of these columns then holds several, one after the other.
    """
    parts = [np.sort(plane[start::period], axis=0) for start in range(period)]
    if any((part[0] == part[-1]).any() for part in parts):
        return True
    # By the largest difference of the distribution functions of sorted numbers (Kolmogorov and Smirnov).
    for part in parts[1:]:
        for first, second in zip(parts[0].T, part.T, strict=True):
            values = np.concatenate([first, second])
            shares_of_first = first.searchsorted(values, side="right") / len(first)
            shares_of_second = second.searchsorted(values, side="right") / len(second)
            if np.abs(shares_of_first - shares_of_second).max() > _DIFFERENT:
                return True
    return False


def _are_bytes(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 255) & (values == np.floor(values))).all())
