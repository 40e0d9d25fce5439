"""Depth images with the camera's intrinsics, and perhaps a color image, as clouds."""

import io
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, PointCloudFileError, ReadLimits, file_errors, open_source
from hf_any3d.data.files.text_numbers import listed
from hf_any3d.data.options import at_least, package
from hf_any3d.utils.messages import cut

_IMAGES = ("png", "jpg", "jpeg")
# Modes of Pillow for 16 bits: little and big endian, and what older versions widen them to.
_DEPTH_MODES = ("I;16", "I;16L", "I;16B", "I")
_FORMS = (
    "intrinsic_matrix with width and height (Open3D), K with w and h (Record3D), fx, fy, cx, cy with width and height "
    "(Polycam), intrinsics with nine numbers (ARKit), k or K (ROS), or fx, fy, ppx, ppy (RealSense)"
)
# The names of these forms: of the matrix, of the principal point, of the size and of the distortion.
_MATRICES = ("intrinsic_matrix", "K", "k", "intrinsics", "camera_matrix")
_CENTERS = (("cx", "cy"), ("ppx", "ppy"))
_SIZES = (("width", "height"), ("w", "h"), ("image_width", "image_height"))
_DISTORTIONS = ("d", "D", "coeffs", "distortion_coefficients")
# Sizes of color and depth images of phones are rounded, so their shapes differ slightly.
_SHAPE_TOLERANCE = 0.02


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera: focal lengths and principal point in pixels, and the size of its images, if it is known."""

    fx: float
    fy: float
    cx: float  # from the center of the first pixel
    cy: float
    size: tuple[int, int] | None = None  # width, height

    def __post_init__(self):
        if not min(self.fx, self.fy) > 0:
            raise PointCloudError(f"focal lengths {self.fx} and {self.fy}; expected pixels, above 0")

    @classmethod
    def of(cls, content: Any) -> "Intrinsics":
        """Read a JSON file's content in the forms of Open3D, Record3D, Polycam, ARKit, ROS (1 and 2) and RealSense.

        A distortion is left out, with a warning.
        """
        content = content if isinstance(content, Mapping) else {}
        matrix = next((content[name] for name in _MATRICES if name in content), None)
        # Some programs put the single numbers in a group under such a name.
        if isinstance(matrix, Mapping) and "data" not in matrix:
            content = matrix
            matrix = None
        if matrix is None:
            centers = next((names for names in _CENTERS if names[0] in content), _CENTERS[0])
            names = ("fx", "fy", *centers)
            if not all(name in content for name in names):
                raise PointCloudError(f"no intrinsics; found {listed(sorted(map(str, content)))}; expected {_FORMS}")
            fx, fy, cx, cy = (float(content[name]) for name in names)
            camera = fx, fy, cx, cy
        else:
            # The calibration of ROS says the shape of the matrix beside its data.
            rows = np.asarray((matrix["data"] if isinstance(matrix, Mapping) else matrix), np.float64).reshape(3, 3)
            # By rows, the last one is 0 0 1; others are by columns. Skewed axes are no pinhole camera.
            rows = rows if rows[2].tolist() == [0, 0, 1] else rows.T
            if rows[2].tolist() != [0, 0, 1] or rows[1, 0] or rows[0, 1]:
                raise PointCloudError(f"a matrix {rows.tolist()}; expected fx 0 cx 0 fy cy 0 0 1, or its transpose")
            camera = float(rows[0, 0]), float(rows[1, 1]), float(rows[0, 2]), float(rows[1, 2])
        for name in _DISTORTIONS:
            values = content.get(name)
            if isinstance(values, Mapping):
                values = values.get("data")
            if isinstance(values, (list, tuple)) and any(values):
                warnings.warn(f"the lens distortion {name} of the camera is ignored", stacklevel=3)
        for wide, high in _SIZES:
            if wide in content and high in content:
                return cls(*camera, (int(content[wide]), int(content[high])))
        return cls(*camera)

    def scaled_to(self, width: int, height: int) -> "Intrinsics":
        """Return the intrinsics of the same view in an image of another size."""
        if self.size == (width, height):
            return self
        if self.size is None or abs(self.size[0] / self.size[1] / (width / height) - 1) > _SHAPE_TOLERANCE:
            raise PointCloudError(f"intrinsics of size {self.size}; the depth image has {width} x {height}")
        across = width / self.size[0]
        down = height / self.size[1]
        # The center of the first pixel is half a pixel inside of the image.
        cx = (self.cx + 0.5) * across - 0.5
        cy = (self.cy + 0.5) * down - 0.5
        return Intrinsics(self.fx * across, self.fy * down, cx, cy, (width, height))


def read_rgbd(
    depth: str | os.PathLike,
    intrinsics: str | os.PathLike | Intrinsics,
    color: str | os.PathLike | None = None,
    *,
    depth_scale: float | None = None,
    depth_truncation: float | None = None,
    limits: ReadLimits | None = None,
) -> PointCloudData:
    """Read a depth image as a cloud in the frame of the camera: x to the right, y down, z away from it, in meters.

    Points stay in the order of the pixels, row by row. Pixels without a depth are left out: those with 0, and of EXR
    those with negative numbers, NaN and infinity.

    Args:
        depth: PNG of 16 bits, or EXR with one channel, one that is called Z, depth or V, or several equal ones. Images
            of 8 bits are pictures of a depth, not measured ones.
        intrinsics: JSON as Open3D writes it (camera_intrinsic.json), Record3D (metadata.json), Polycam (a file of
            cameras), ARKit's recorders, ROS (a CameraInfo) or RealSense; or `Intrinsics`. Phones give those of the
            color image: they are scaled to the depth image, if both have the same shape.
        color: PNG or JPEG of the same view, of any size.
        depth_scale: numbers of the depth image in a meter: 1000 for millimeters, 5000 in TUM's data; by default 1000
            for PNG and 1 for EXR.
        depth_truncation: points that are farther away, in meters, are left out; None keeps all.
        limits: limits of the pixels; by default `ReadLimits.current()`.

    Raises:
        PointCloudFileError: An image or the intrinsics are missing, damaged, beyond the limits or do not fit together.
        ImportError: Pillow, or OpenEXR for .exr, is not installed.
    """
    at_least(1e-3, depth_scale=depth_scale, depth_truncation=depth_truncation)
    limits = ReadLimits.current() if limits is None else limits
    is_exr = Path(depth).suffix.lower() == ".exr"
    pixels = _exr(depth, limits) if is_exr else _image(depth, limits, is_depth=True)  # (height, width)
    height, width = pixels.shape
    camera = intrinsics
    with file_errors("intrinsics" if isinstance(camera, Intrinsics) else camera, "JSON file"):
        if not isinstance(camera, Intrinsics):
            camera = Intrinsics.of(json.loads(open_source(camera, None, ("json",), limits).data))
        camera = camera.scaled_to(width, height)
    meters = pixels.astype(np.float64) / (depth_scale or (1 if is_exr else 1000))
    valid = (pixels > 0) & (meters <= (depth_truncation or np.inf))
    row, column = np.nonzero(valid)  # (points,) each, row by row
    z = meters[row, column]
    # A pinhole camera sees x / z and y / z in proportion to the distance of the pixel from the principal point.
    x = (column - camera.cx) * z / camera.fx
    y = (row - camera.cy) * z / camera.fy
    colors = None
    if color is not None:
        picture = _image(color, limits, is_depth=False)  # (height', width', 3)
        high, wide, _ = picture.shape
        if abs(wide / high / (width / height) - 1) > _SHAPE_TOLERANCE:
            raise PointCloudFileError(f"{color}: {wide} x {high}; the depth image has {width} x {height}")
        # By the centers of the pixels, which are half a pixel after their numbers.
        across = ((column + 0.5) * wide / width).astype(int)
        down = ((row + 0.5) * high / height).astype(int)
        colors = picture[down, across].astype(np.float32) / 255  # (points, 3)
    with file_errors(depth):
        # Seen from the camera, which is the origin.
        return PointCloudData(np.stack([x, y, z], axis=1), colors, scanner=np.zeros(3))


def _image(path: str | os.PathLike, limits: ReadLimits, *, is_depth: bool) -> np.ndarray:
    Image = package("PIL.Image", "files")  # noqa: N806
    endings = ("png",) if is_depth else _IMAGES
    # These decoders alone: Pillow would try every format that it knows.
    decoders = ("PNG",) if is_depth else ("PNG", "JPEG")
    data = open_source(path, None, endings, limits).data
    with file_errors(path, "image"), Image.open(io.BytesIO(data), formats=decoders) as image:
        width, height = image.size
        limits.check(points=width * height, decoded=4 * width * height, stored=len(data))
        # Pillow cuts such numbers to 255, so that a depth image given for the colors would be white.
        if is_depth != (image.mode in _DEPTH_MODES):
            expected = "a depth of 16 bits in one channel" if is_depth else "colors of 8 bits, not a depth"
            raise PointCloudError(f"an image of mode {image.mode}; expected {expected}")
        if not is_depth:
            image = image.convert("RGB")
        return np.asarray(image)


def _exr(path: str | os.PathLike, limits: ReadLimits) -> np.ndarray:
    """Read the depth of an EXR image, (height, width) float32, 0 where there is none."""
    OpenEXR = package("OpenEXR", "files")  # noqa: N806
    stored = len(open_source(path, None, ("exr",), limits).data)
    with file_errors(path, "EXR image"):
        # The size that the file claims is checked before anything is decoded.
        with OpenEXR.File(os.fspath(path), header_only=True) as file:
            first, last = (corner.tolist() for corner in file.header()["dataWindow"])
            count = len(file.header()["channels"])
        width = last[0] - first[0] + 1
        height = last[1] - first[1] + 1
        limits.check(points=width * height, decoded=4 * width * height * count, stored=stored)
        with OpenEXR.File(os.fspath(path), separate_channels=True) as file:
            channels = {name: channel.pixels for name, channel in file.channels().items()}
        # A depth has a name of its own, for which names of layers come before a dot; without one alone, all channels
        # have to be equal, as in a gray picture.
        named = [name for name in channels if name.rpartition(".")[2].lower() in ("z", "depth", "v")]
        depth = channels[named[0]] if len(named) == 1 else next(iter(channels.values()))
        if len(named) != 1 and not all(np.array_equal(depth, other, equal_nan=True) for other in channels.values()):
            found = cut(", ".join(channels), 80)
            raise PointCloudError(f"channels {found}; expected one, or one called Z, depth or V")
        pixels = depth.astype(np.float32)
        return np.where(np.isfinite(pixels) & (pixels > 0), pixels, 0)
