"""NPY: arrays saved by numpy.save."""

import io
import warnings

import numpy as np

from hf_any3d.data.files.attributes import by_name, by_number
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import listed
from hf_any3d.messages import printable

_MAX_DIMENSIONS = 32  # numpy itself can hold 64
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read(source: Source) -> PointCloudData:
    """Read an array (points, 3 and more) or a structured array with fields x, y, z and others.

    Args:
        source: the file.

    Returns:
        A cloud.

    Raises:
        PointCloudError: another shape, values that are not numbers, or a file that is cut off.
    """
    return cloud_from_array(parse_array(source.data), source)


def cloud_from_array(array: np.ndarray, source: Source) -> PointCloudData:
    """Interpret the columns of an array; see `attributes.by_number` and `attributes.by_name`."""
    if array.dtype.names:
        if array.ndim != 1:
            raise PointCloudError(f"an array of named columns of shape {array.shape}; expected (points,)")
        source.limits.check(points=len(array))
        columns = {name.lower(): array[name] for name in array.dtype.names if array[name].ndim == 1}
        columns = {name: column for name, column in columns.items() if column.dtype.kind in "fiub"}
        return PointCloudData(**by_name(columns, source))
    if array.dtype.kind not in "fiub":
        raise PointCloudError(f"an array of type {array.dtype}; expected numbers")
    if array.ndim != 2 or array.shape[1] < 3:
        raise PointCloudError(f"an array of shape {array.shape}; expected (points, 3 or more)")
    if not len(array):
        raise PointCloudError("there are no points; expected at least 1 row")
    source.limits.check(points=len(array))
    return PointCloudData(**by_number(array, source))


def parse_array(data: bytes) -> np.ndarray:
    """Parse an .npy file without unpickling and without allocating more than its size.

    Raises:
        PointCloudError: not an .npy file, Python objects, or a file that is cut off.
    """
    file = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of files written by Python 2
            version = np.lib.format.read_magic(file)
            shape, by_columns, dtype = _HEADERS[version](file)
    # The header is a Python literal; a damaged one can fail anywhere in numpy's or Python's parser.
    except Exception as error:
        raise PointCloudError(
            f"not a valid .npy header ({type(error).__name__}: {printable(str(error)[:80])})"
        ) from None
    if dtype.hasobject:
        raise PointCloudError(f"an array of Python objects ({dtype}); it would have to be unpickled, which is refused")
    if dtype.subdtype is not None:
        raise PointCloudError(f"an array of type {listed([str(dtype)])}; expected numbers or named columns of them")
    if len(shape) > _MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise PointCloudError(f"an array of shape {listed([str(shape)])}; expected (points, 3 or more)")
    count = 1
    for size in shape:
        count *= int(size)
    start = file.tell()
    if count * dtype.itemsize > len(data) - start:
        raise PointCloudError(
            f"{len(data) - start} bytes after the header; shape {shape} of {dtype} needs {count * dtype.itemsize}, "
            "so the file may be cut off"
        )
    if not count or not dtype.itemsize:
        raise PointCloudError(f"an array of shape {shape} and type {dtype} has no numbers")
    return np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if by_columns else "C")
