"""Some points of a LAS or LAZ file, as a file of their own with further dimensions."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hf_any3d.data.files.labels.columns import Column, class_column
from hf_any3d.data.files.labels.las import _SINCE_14, LasCopy
from hf_any3d.data.files.source import file_errors
from hf_any3d.utils.atomic_files import atomic_write

# Where the header has numbers of points: all, and by their return, with 32 bits, and with 64 bits since LAS 1.4.
_COUNT, _OF_RETURNS, _LONG_COUNT, _LONG_OF_RETURNS = 107, 111, 247, 255
_SCALES, _BOUNDS = 131, 179  # of scales and offsets, and of largest and smallest coordinates

# Descriptions of the dimensions of suggested points.
_TEXTS = {
    "TileRow": "number of the point in its tile",
    "Guess": "class that the model gives it",
    "Score": "probability of the guess",
}


def write_some_points(
    source: str | os.PathLike, path: str | os.PathLike, rows: np.ndarray, columns: Mapping[str, np.ndarray]
) -> None:
    """Write some points of a LAS or LAZ file, without a class and with dimensions of extra bytes.

    Everything else that these points have, the coordinate system and the other records stay as they are.

    Args:
        source: The file.
        path: What is written, .las or .laz.
        rows: (some,) numbers of the points; they are written in the order of the file.
        columns: (some,) numbers for each dimension, by its name: whole ones from 0, or in [0, 1].

    Raises:
        PointCloudFileError: The file is damaged, or COPC, whose octree the points cannot keep.
    """
    order = np.argsort(rows, kind="stable")
    written = [class_column(np.zeros(len(rows), np.int64), None, None)]
    for name, values in columns.items():
        of_row = np.asarray(values)[order]
        kind = "<f4" if of_row.dtype.kind == "f" else "<u4"
        text = _TEXTS.get(name, "")
        written.append(Column(name, kind, float(of_row.min()), float(of_row.max()), 0, of_row, text=text))
    compress = Path(path).suffix.lower() == ".laz"
    with open(source, "rb") as file, file_errors(source):
        part = _LasPart(file, str(source), np.asarray(rows)[order], written, compress, str(path))
        with atomic_write(path) as unfinished, open(unfinished, "w+b") as output:
            part.write(output)


class _LasPart(LasCopy):
    """A labeled copy of some points of a file; `rows` are sorted."""

    def __init__(
        self, file: BinaryIO, name: str, rows: np.ndarray, columns: list[Column], compress: bool, target: str
    ):
        super().__init__(file, name, columns, compress, target)
        self.rows = rows
        self.low = np.zeros(3)
        self.high = np.zeros(3)
        self.returns = np.zeros(15, np.int64)

    @property
    def number_written(self) -> int:
        """Number of the points of the copy."""
        return len(self.rows)

    def _points(self) -> Iterator[np.ndarray]:
        """Yield the records of the chosen points, and measure them for the header."""
        first = 0
        kept = []
        for block in super()._points():
            own = self.rows[(self.rows >= first) & (self.rows < first + len(block))]
            kept.append(block[own - first])
            first += len(block)
        records = np.concatenate(kept)
        whole = np.ascontiguousarray(records[:, :12]).view("<i4")
        scales, offsets = np.array(struct.unpack_from("<6d", self.head, _SCALES)).reshape(2, 3)
        # The header has the coordinates themselves.
        self.low = whole.min(axis=0) * scales + offsets
        self.high = whole.max(axis=0) * scales + offsets
        number = records[:, 14] & (15 if self.format >= _SINCE_14 else 7)
        self.returns = np.bincount(number, minlength=16)[1:16]
        yield records

    def _write_chunks(self, output: BinaryIO) -> int:
        """Write one chunk, as these are few points."""
        # Chunks of the input hold points that are left out.
        return self._write_packed(output)

    def _move(self, new_start: int, old_end: int, new_end: int) -> None:
        """Set the offsets in the header, and its counts and bounds of the points."""
        super()._move(new_start, old_end, new_end)
        count = len(self.rows)
        # Newer point formats leave the old numbers at 0.
        old_count = 0
        old_returns = [0] * 5
        if self.format < _SINCE_14:
            old_count = count
            old_returns = self.returns[:5].tolist()
        struct.pack_into("<I", self.head, _COUNT, old_count)
        struct.pack_into("<5I", self.head, _OF_RETURNS, *old_returns)
        # The largest and the smallest number of each axis
        bounds: list[float] = []
        for pair in zip(self.high, self.low, strict=True):
            bounds += pair
        struct.pack_into("<6d", self.head, _BOUNDS, *bounds)
        if self.head[25] >= 4 and self.head_size >= 375:
            struct.pack_into("<Q", self.head, _LONG_COUNT, count)
            struct.pack_into("<15Q", self.head, _LONG_OF_RETURNS, *self.returns.tolist())
