"""Layout of LAS: the header, the records before the points, and the descriptions of extra bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

import numpy as np

HEADER_SIZE = 227
"""Bytes of the shortest header."""
LONGEST_HEADER = 375
"""Bytes of the header of LAS 1.4."""
SIZES = (20, 28, 26, 34, 57, 63, 30, 36, 38, 59, 67)
"""Bytes of a record by point format, before extra bytes."""
RECORD_HEADER = 54
"""Bytes of the header of a record before the points."""
EXTRA_BYTES = (b"LASF_Spec", 4)
"""User and number of the record that describes extra bytes."""
EXTRA_SIZE = 192
"""Bytes of the description of a dimension of extra bytes."""
EXTRA_TYPES = ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4", "<f8")
"""Numpy types of extra bytes, of the code 1 and those after it."""
_PACKED = 128  # added to the point format of LAZ


@dataclass(frozen=True)
class Header:
    """Sizes, places and counts in the header, of the points and of the records before them; none is checked."""

    size: int  # bytes of the header
    start: int  # byte of the first point
    num_records: int  # before the points
    point_format: int
    is_packed: bool  # as LAZ
    point_size: int  # bytes of a point
    count: int  # number of points

    @classmethod
    def of(cls, data: bytes | mmap) -> Header:
        """Read the first bytes of a file, `HEADER_SIZE` or more."""
        size, start, num_records, kind, point_size, count = struct.unpack_from("<HIIBHI", data, 94)
        # From version 1.4 on, the number of points has 64 bits, and the old field may be 0.
        if data[25] >= 4 and len(data) >= 255:
            count = max(count, int.from_bytes(data[247:255], "little"))
        return cls(size, start, num_records, kind & 63, kind >= _PACKED, point_size, count)


def records_before(data: bytes | mmap, header: Header) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield user, number and content of the whole records between the header and the points."""
    at = header.size
    for _ in range(header.num_records):
        if at + RECORD_HEADER > header.start:
            break
        user, number, size = struct.unpack_from("<2x16sHH", data, at)
        at += RECORD_HEADER + size
        if at <= header.start:
            # Some writers leave other bytes after the end of the name.
            yield user.split(b"\0")[0], number, data[at - size : at]


@dataclass(frozen=True)
class ExtraDimension:
    """Description of a dimension of extra bytes."""

    data: bytes  # `EXTRA_SIZE` of them

    @property
    def name(self) -> str:
        """The name."""
        return self.data[4:36].split(b"\0")[0].decode("utf-8", "replace").strip()

    @property
    def kind(self) -> int:
        """The code of its type; 0 stands for bytes without a meaning."""
        return self.data[2]

    @property
    def options(self) -> int:
        """Bits for the numbers that follow; for bytes without a meaning, their number."""
        return self.data[3]

    @property
    def dtype(self) -> str:
        """Numpy type of its numbers; codes 11 to 20 are arrays of two, 21 to 30 of three numbers."""
        return EXTRA_TYPES[(self.kind - 1) % len(EXTRA_TYPES)]

    @property
    def is_number(self) -> bool:
        """True for one number, False for arrays and for bytes without a meaning."""
        return 0 < self.kind <= len(EXTRA_TYPES)

    @property
    def size(self) -> int:
        """Bytes that it takes in a point."""
        if self.kind == 0:
            return self.options
        numbers = (self.kind - 1) // len(EXTRA_TYPES) + 1
        return numbers * np.dtype(self.dtype).itemsize


def extra_dimensions(body: bytes) -> list[ExtraDimension]:
    """Return the descriptions in a record of extra bytes; a rest that is no whole one is left out."""
    whole = len(body) // EXTRA_SIZE * EXTRA_SIZE
    return [ExtraDimension(body[at : at + EXTRA_SIZE]) for at in range(0, whole, EXTRA_SIZE)]
