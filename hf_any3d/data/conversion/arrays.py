"""Arrays out of the files of benchmarks, without guessing what their columns mean."""

from pathlib import Path

import numpy as np

from hf_any3d.data.files import PointCloudError, PointCloudFileError
from hf_any3d.data.files.npy import parse_array
from hf_any3d.data.files.source import open_source
from hf_any3d.data.files.tables import normalized_lines, numbers, reject_binary

LONGEST_LINE = 1000


def read_lines(path: Path) -> list[str]:
    """Read the lines of a short text file, without those that are empty and without white space around them.

    Raises:
        PointCloudFileError: no such file, no text, or lines too long to be names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PointCloudFileError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise PointCloudFileError(f"{path}: no list of names; byte {error.start} is no UTF-8 text") from None
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST_LINE or "\0" in line:
            raise PointCloudFileError(f"{path}: line {number} is {line[:40]!r}…; expected a name")
    return [line for line in lines if line]


def read_npy(path: Path) -> np.ndarray:
    """Read an array that numpy.save has written; nothing is unpickled.

    Raises:
        PointCloudFileError: no such file, or a damaged one.
    """
    source = open_source(path, "npy", ("npy",))
    try:
        return parse_array(source.data)
    except PointCloudError as error:
        raise PointCloudFileError(f"{path}: {error}") from None


def read_table(path: Path, columns: int) -> np.ndarray:
    """Read lines of numbers with spaces or commas between them, (lines, columns) float64.

    Raises:
        PointCloudFileError: no such file, or a line that does not hold so many numbers; names the line.
    """
    return parse_table(open_source(path, "txt", ("txt",)).data, path, columns)


def parse_table(data: bytes, path: Path, columns: int) -> np.ndarray:
    """Do what `read_table` does with bytes that were read from `path`."""
    try:
        reject_binary(data)
        return numbers(normalized_lines(data), columns=columns)
    except PointCloudError as error:
        raise PointCloudFileError(f"{path}: {error}") from None
