"""Sweeps of laser scanners on cars, rows of float32 without a header: .bin of KITTI and nuScenes."""

from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np

from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source

# File type -> numbers in a row: x, y, z and intensity, in nuScenes also the ring of the scanner.
_WIDTHS = {"kitti": 4, "nuscenes": 5}
_MARKED = (".pcd.bin", 5)
_CHOICES = 'pass file_type="kitti" (x y z intensity) or file_type="nuscenes" (x y z intensity ring)'


def read(source: Source) -> PointCloudData:
    """Read coordinates in meters, z up, and the intensity of each point, in nuScenes also its ring.

    Intensities stay as the sensor gives them: 0 to 1 in KITTI, 0 to 255 in nuScenes. The kind of a file follows
    from the file type "kitti" or "nuscenes", or else from a name that ends with .pcd.bin, or else from its size and
    numbers: intensities are not negative, and rings are whole numbers.

    Raises:
        PointCloudError: a file that holds no whole number of rows, or could be of both kinds or of neither.
    """
    data = source.data
    if source.file_type in _WIDTHS:
        width = _WIDTHS[source.file_type]
    elif source.name.lower().endswith(_MARKED[0]):
        width = _MARKED[1]
    else:
        width = _width_of(data)
    row = 4 * width
    if len(data) % row:
        raise PointCloudError(
            f"{len(data)} bytes; expected rows of {row} ({width} float32), so the file may be cut off"
        )
    source.check(points=len(data) // row)
    table = np.frombuffer(data, "<f4").reshape(-1, width)
    # Invalid intensities are errors here: without a header they are the only sign of another format.
    ring = table[:, 4] if width == _WIDTHS["nuscenes"] else None
    return PointCloudData(table[:, :3], intensity=table[:, 3], ring=ring, up_axis="z", meters_per_unit=1.0)


def _width_of(data: bytes) -> int:
    fitting = [width for width in _WIDTHS.values() if len(data) % (4 * width) == 0]
    if not fitting:
        raise PointCloudError(f"{len(data)} bytes; expected rows of 16 or 20, so the file may be cut off")
    numbers = np.frombuffer(data, "<f4")
    plausible = [width for width in fitting if _is_plausible(numbers.reshape(-1, width))]
    if len(plausible) != 1:
        seen = "of both kinds" if plausible else f"not of rows of {' or '.join(map(str, fitting))} numbers"
        raise PointCloudError(f"{len(data)} bytes that look {seen}; {_CHOICES}")
    return plausible[0]


def _is_plausible(table: np.ndarray) -> bool:
    """Return whether column 4 can be intensities and column 5 rings: read in wrong rows, both hold coordinates."""
    rest = table[:, 3:]
    return bool(np.isfinite(table).all() and (rest >= 0).all() and (rest[:, 1:] == np.floor(rest[:, 1:])).all())


def without_buffers(names: Iterable[str]) -> list[str]:
    """Return the files of a list that are no buffers of glTF: .bin beside a .gltf.

    Args:
        names: paths with `/` between their parts.
    """
    names = list(names)
    folders = {PurePosixPath(name).parent for name in names if name.lower().endswith(".gltf")}
    return [name for name in names if not name.lower().endswith(".bin") or PurePosixPath(name).parent not in folders]
