"""Labeled copies of LAS and LAZ: the class of each point, and dimensions of extra bytes.

Everything else stays as it is, byte by byte: header, records before and after the points, and all that a point has.
Only what says where something is in the file moves along.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hf_any3d.data.files import las
from hf_any3d.data.files.labels.columns import Column, check_field, check_once
from hf_any3d.data.files.las_layout import (
    EXTRA_BYTES,
    EXTRA_SIZE,
    EXTRA_TYPES,
    HEADER_SIZE,
    LONGEST_HEADER,
    RECORD_HEADER,
    SIZES,
    ExtraDimension,
    Header,
    extra_dimensions,
)
from hf_any3d.data.files.source import ArgumentError, PointCloudError, ReadLimits
from hf_any3d.data.files.text_numbers import shorten
from hf_any3d.data.options import package
from hf_any3d.utils.messages import printable

_PLAIN = (".plain.laz", ".las")
"""Endings by which a copy of a COPC is asked for that is none."""


@dataclass(eq=False)
class _Record:
    """A record before the points: its bytes, of which the first 54 are a header."""

    data: bytes

    @property
    def key(self) -> tuple[bytes, int]:
        """User and number."""
        user, number = struct.unpack_from("<2x16sH", self.data)
        return user.split(b"\0")[0], number

    @property
    def body(self) -> bytes:
        """The content."""
        return self.data[RECORD_HEADER:]

    def with_body(self, body: bytes) -> "_Record":
        """Return the record with another content."""
        head = bytearray(self.data[:RECORD_HEADER])
        struct.pack_into("<H", head, 20, len(body))
        return _Record(bytes(head) + body)


@dataclass
class _Dimension:
    """A dimension of extra bytes that is written: where it is in a record, and its type."""

    column: Column
    at: int
    kind: str


def copy_of(
    file: BinaryIO, name: str, columns: list[Column], faces: Column | None, file_type: str, target: str
) -> "LasCopy":
    """Return the copy of a file, which has no faces, as "las" or "laz"."""
    del faces
    return LasCopy(file, name, columns, file_type == "laz", target)


_SINCE_14 = 6  # the first point format with 8 bits for the class
_LAZ = 128  # added to the point format
# Where the header says what follows: first record after the points, waveforms; and from which size of it on.
_PLACES = ((235, 247), (227, 235))
_IN_OTHER_FILE = 4  # bit of the global encoding: waveforms are in a .wdp file
# Programs would find their parts no more.
_COMPATIBLE, _COPC = b"lascompatible", b"copc"
_MOST_RECORDS = 1000  # after the points
_REST = "ExtraBytes"  # as laspy calls bytes that nothing describes
_HAS_RANGE, _IS_SCALED = 0b00110, 0b11000
_WIDE_ENOUGH = ("u1", "<u2", "<u4")
_WAVE_PACKET = 9  # item of LAZ, of whose versions LASzip reads the first
_BLOCK = 1 << 17


class LasCopy:
    """A labeled copy of a LAS or LAZ file, checked before anything is written.

    Args:
        file: The file.
        name: Its name, for what is said about it.
        columns: What the points get; a class without a name is the classification.
        compress: Whether the copy is LAZ.
        target: Name of the copy, for what is said about it.
    """

    def __init__(self, file: BinaryIO, name: str, columns: list[Column], compress: bool, target: str):
        self.file = file
        self.name = name
        self.compress = compress
        self.target = target
        self._read_head()
        self.class_column: Column | None = None
        self.dimensions: list[_Dimension] = []
        self.new_size = self.size
        for column in columns:
            # `classification` names the place that every record has for the class, not a dimension of extra bytes
            if column.is_class and (column.name or "classification").lower() == "classification":
                # Older formats keep the class in five bits, beside three flags.
                most = 255 if self.format >= _SINCE_14 else 31
                if column.most > most:
                    raise PointCloudError(
                        f"class {column.most:g}: point format {self.format} of LAS allows 0 to {most}; write "
                        "classes to another attribute (field=NAME, --field NAME)"
                    )
                self.class_column = column
            elif column.is_class:
                field = str(column.name)
                named = [one for one in self._descriptions()[0] if one.name == field]
                # Codes 9 and 10 are floats; scaled numbers have decimals, too.
                has_decimals = any(one.kind in (9, 10) or bool(one.options & _IS_SCALED) for one in named)
                check_field(field, (), has_decimals=has_decimals)
        self.columns = columns
        named = [column for column in columns if column is not self.class_column]
        if named:
            self._add_dimensions(named)
        # Last, since the compressor has to know the final size of a record
        self._replace_laszip()

    def _read_head(self) -> None:
        """Read the header and the records before the points, and check that the points are all there."""
        self.file.seek(0)
        head = self.file.read(LONGEST_HEADER)
        header = Header.of(head)
        self.head_size = header.size
        self.start = header.start
        self.size = header.point_size
        self.count = header.count
        self.format = header.point_format
        self.is_packed = header.is_packed
        self.end = self.file.seek(0, 2)
        is_sound = head.startswith(b"LASF") and HEADER_SIZE <= self.head_size <= self.start <= self.end
        is_known = self.format < len(SIZES) and self.size >= SIZES[self.format]
        is_cut = not self.is_packed and self.start + self.count * self.size > self.end
        if not is_sound or not is_known or is_cut:
            raise PointCloudError(
                f"cut off, damaged, or not LAS or LAZ: first bytes {shorten(head[:4])}, {self.count} points of format "
                f"{self.format}, {self.size} bytes each, from byte {self.start} of {self.end}"
            )
        self.file.seek(0)
        ReadLimits.current().check(points=self.count)
        before = self.file.read(self.start)
        self.head = bytearray(before[: self.head_size])
        self.records: list[_Record] = []
        at = self.head_size
        # A damaged number of records must not run on through the points.
        for _ in range(header.num_records):
            if at > self.start:
                break
            size = RECORD_HEADER + int.from_bytes(before[at + 20 : at + 22], "little")
            self.records.append(_Record(before[at : at + size]))
            at += size
        if at > self.start:
            raise PointCloudError(f"{header.num_records} records reach into the points; the file may be damaged")
        # Bytes between the last record and the first point, which the copy keeps
        self.gap = before[at:]
        users = {record.key[0] for record in self.records}
        if _COMPATIBLE in users:
            raise PointCloudError(
                "is LAS 1.4 in LASzip compatibility mode, which cannot be copied with labels; rewrite it as plain LAZ"
            )
        self.is_copc = _COPC in users
        if self.is_copc:
            if not self.target.lower().endswith(_PLAIN):
                raise PointCloudError(
                    "is COPC, whose octree a labeled copy cannot keep; name the copy .plain.laz or .las to write "
                    "plain points"
                )
            self.records = [record for record in self.records if record.key[0] != _COPC]

    def _add_dimensions(self, columns: list[Column]) -> None:
        """Find or append the dimensions of extra bytes, and describe new ones."""
        descriptions, left = self._descriptions()
        # Bytes that nothing describes come before new ones, so they need a description too.
        if left and any(self._find(column, descriptions) is None for column in columns):
            for start in range(0, left, 255):
                descriptions.append(_description(f"{_REST}{start or ''}", 0, min(255, left - start)))
        for column in columns:
            place = self._find(column, descriptions)
            if place is None:
                place = len(descriptions)
                kind = column.kind
                if column.is_class:
                    # Unsigned ones have no number for points without an answer but 0, which may be a class.
                    kind = "<i4" if column.has_gaps else next(kind for kind in _WIDE_ENOUGH if column.fits(kind))
                text = "class" if column.is_class else column.text
                descriptions.append(_description(str(column.name), EXTRA_TYPES.index(kind) + 1, 0, text))
                self.new_size += descriptions[-1].size
            # Dimensions follow the fixed fields of a record in the order of their descriptions.
            at = SIZES[self.format] + sum(one.size for one in descriptions[:place])
            self.dimensions.append(_Dimension(column, at, descriptions[place].dtype))
            # A least and a largest number would be those of the old numbers. Both take 24 bytes each, from byte 64 on.
            description = bytearray(descriptions[place].data)
            if description[3] & _HAS_RANGE:
                description[3] &= ~_HAS_RANGE
                description[64:112] = bytes(48)
            descriptions[place] = ExtraDimension(bytes(description))
        body = b"".join(one.data for one in descriptions)
        # Of several records, as some programs write them, readers such as laspy look at the first alone.
        first, *others = [record for record in self.records if record.key == EXTRA_BYTES] or [None]
        self.records = [record for record in self.records if record not in others]
        if first is not None:
            self.records[self.records.index(first)] = first.with_body(body)
        else:
            # Reserved bytes, user, number, size (set together with the body) and a text
            head = struct.pack("<H16sHH32s", 0, *EXTRA_BYTES, 0, b"Extra Bytes Record")
            self.records.append(_Record(head).with_body(body))

    def _descriptions(self) -> tuple[list[ExtraDimension], int]:
        """Return the descriptions of extra bytes, and how many bytes nothing describes."""
        records = [record.body for record in self.records if record.key == EXTRA_BYTES]
        body = b"".join(records)
        descriptions = extra_dimensions(body)
        left = self.size - SIZES[self.format] - sum(one.size for one in descriptions)
        # Where descriptions do not add up to the size of a record, the place of a new dimension cannot be told.
        is_unknown = len(body) % EXTRA_SIZE > 0 or left < 0
        if left and not is_unknown:
            # Or where a record after the points describes the others
            is_unknown = EXTRA_BYTES in [(user, kind) for user, kind, _, _ in self._extended_records()]
        if is_unknown:
            raise PointCloudError(
                f"the descriptions of its {self.size - SIZES[self.format]} extra bytes do not match them, or are "
                "stored after the points, so no attribute can be added"
            )
        return descriptions, left

    def _find(self, column: Column, descriptions: list[ExtraDimension]) -> int | None:
        """Return the place of a dimension that is there already, after checking that it takes the column."""
        for place, description in enumerate(descriptions):
            if description.name != column.name:
                continue
            # Bytes of no type, arrays and scaled numbers take no labels.
            is_plain = description.is_number and not description.options & _IS_SCALED
            column.check_fits(description.dtype if is_plain else "u1", "dimension", is_plain=is_plain)
            check_once(str(column.name), [one.name for one in descriptions])
            return place
        return None

    def _replace_laszip(self) -> None:
        """Set the record of the compressor, which only LAZ has."""
        laszip = next((record for record in self.records if record.key == las.LASZIP_RECORD), None)
        self.laszip: Any = None
        # Decompression needs the old one.
        self.packed_by = None if laszip is None else laszip.body
        if not self.compress:
            self.records = [record for record in self.records if record is not laszip]
            return
        lazrs = package("lazrs", "files")
        extra = self.new_size - SIZES[self.format]
        old = self.packed_by
        has_free_sizes = old is not None and lazrs.LazVlr(old).uses_variable_size_chunks()
        body = bytearray(lazrs.LazVlr.new_for_compression(self.format, extra, has_free_sizes).record_data())
        # An item has a type, a size and a version of 2 bytes each; LASzip reads waveforms of version 1 alone.
        for item in range(int.from_bytes(body[las.LASZIP_ITEMS - 2 : las.LASZIP_ITEMS], "little")):
            at = las.LASZIP_ITEMS + 6 * item
            if int.from_bytes(body[at : at + 2], "little") == _WAVE_PACKET:
                struct.pack_into("<H", body, at + 4, 1)
        if old is not None:
            body[12:32] = old[12:32]  # size of chunks, and where records of the compressor are
        self.laszip = lazrs.LazVlr(bytes(body))
        if laszip is None:
            head = struct.pack("<H16sHH32s", 0, *las.LASZIP_RECORD, 0, b"by laz-rs")
            self.records.append(_Record(head).with_body(bytes(body)))
        else:
            self.records[self.records.index(laszip)] = laszip.with_body(bytes(body))

    @property
    def number_written(self) -> int:
        """Number of the points of the copy."""
        return self.count

    def write(self, output: BinaryIO) -> None:
        """Write the copy, some hundred thousand points at a time."""
        # No point of LAS is left out by the reader, so another number of labels is an error, which `of_file` words.
        if self.columns and any(len(column.values) != self.number_written for column in self.columns):  # pyright: ignore
            for column in self.columns:
                column.of_file(self.count, None)
        self._tell_of_programs()
        before = sum(len(record.data) for record in self.records)
        new_start = self.head_size + before + len(self.gap)
        output.write(bytes(new_start))  # written at the end, when all places are known
        check = 0
        if not self.compress:
            for block in self._blocks(self._points()):
                output.write(block.data)
        elif self.laszip.uses_variable_size_chunks():
            check = self._write_chunks(output)
        else:
            check = self._write_packed(output)
        old_end = self._end_of_points()
        new_end = output.tell()
        if self.is_copc:
            # Copy the records after the points of a COPC, but not those of its octree.
            kept = [(at, size) for user, _, at, size in self._extended_records() if user != _COPC]
            # They follow the points, as in the file; 0 stands for no such records.
            struct.pack_into("<QI", self.head, 235, old_end if kept else 0, len(kept))
            for at, size in kept:
                self.file.seek(at)
                output.write(self.file.read(size))
        else:
            self.file.seek(old_end)
            while piece := self.file.read(1 << 22):
                output.write(piece)
        self._move(new_start, old_end, new_end)
        output.seek(0)
        output.write(self.head + b"".join(record.data for record in self.records) + self.gap)
        if self.compress and self.format in las.WITH_WAVEFORMS:
            self._check_written(output, new_start, check)

    def _write_packed(self, output: BinaryIO) -> int:
        """Write chunks of the usual size."""
        check = 0
        compressor = package("lazrs", "files").LasZipCompressor(output, self.laszip)
        for block in self._blocks(self._points()):
            check = zlib.crc32(block.data, check)
            compressor.compress_many(block.reshape(-1))
        compressor.done()
        output.seek(0, 2)
        return check

    def _write_chunks(self, output: BinaryIO) -> int:
        """Write chunks with as many points as those of the input have."""
        lazrs = package("lazrs", "files")
        check = 0
        self.file.seek(self.start)
        # The table of the input has the number of points and of bytes of each chunk.
        sizes = [count for count, _ in lazrs.read_chunk_table(self.file, lazrs.LazVlr(self.packed_by))]
        compressor = lazrs.LasZipCompressor(output, self.laszip)
        for number, block in enumerate(self._blocks(_cut(self._points(), sizes, self.size))):
            # The last chunk is finished by `done`, which would add an empty one.
            if number:
                compressor.finish_current_chunk()
            check = zlib.crc32(block.data, check)
            compressor.compress_many(block.reshape(-1))
        compressor.done()
        output.seek(0, 2)
        return check

    def _points(self) -> Iterator[np.ndarray]:
        """Yield the records of the input, (points, bytes of a record) uint8."""
        if not self.is_packed:
            self.file.seek(self.start)
            for first in range(0, self.count, _BLOCK):
                number = min(_BLOCK, self.count - first)
                data = self.file.read(number * self.size)
                yield np.frombuffer(data, np.uint8).reshape(number, self.size)
            return
        row = np.dtype((np.void, self.size))
        with _mapped(self.file) as data:
            for block in las.decompressed(data, self.start, row, self.count, self.file):
                yield block.view(np.uint8).reshape(-1, self.size)

    def _blocks(self, points: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield labeled records, (points, bytes of a record of the copy) uint8."""
        first = 0
        for old in points:
            # New dimensions come after the bytes that a point has.
            new = np.zeros((len(old), self.new_size), np.uint8)
            new[:, : self.size] = old
            stop = first + len(old)
            if self.class_column is not None:
                codes, answered = self.class_column.block(first, stop)
                # The class is byte 16 of a record from format 6 on, byte 15 before.
                if self.format >= _SINCE_14:
                    new[answered, 16] = codes[answered]
                else:
                    # The upper three bits are flags.
                    new[answered, 15] = (new[answered, 15] & 0xE0) | codes[answered].astype(np.uint8)
            for dimension in self.dimensions:
                at = dimension.at
                kind = dimension.kind
                column = dimension.column
                place = slice(at, at + np.dtype(kind).itemsize)
                values = column.filled(first, stop, kind)
                written = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
                if at < self.size and column.is_class:
                    # A dimension that was there keeps what it says of points without an answer.
                    has_answer = column.block(first, stop)[1]
                    new[has_answer, place] = written[has_answer]
                else:
                    new[:, place] = written
            yield new
            first = stop

    def _end_of_points(self) -> int:
        """Return where the points of the input end, with the table of chunks of LAZ."""
        if not self.is_packed:
            return self.start + self.count * self.size
        lazrs = package("lazrs", "files")
        vlr = lazrs.LazVlr(self.packed_by)
        self.file.seek(self.start)
        # Packed points begin with the place of the table of chunks, or -1 if it was not known when they were written.
        table = int.from_bytes(self.file.read(8), "little", signed=True)
        if table == -1:
            # Then the table, and where it is, end the file.
            return self.end
        # Nothing states the size of the table, so it is written once more to see how long it is.
        self.file.seek(self.start)
        written = io.BytesIO()
        lazrs.write_chunk_table(written, lazrs.read_chunk_table(self.file, vlr), vlr)
        expected = written.getvalue()
        self.file.seek(table)
        if self.file.read(len(expected)) == expected:
            return table + len(expected)
        # Of a table in another form, the end is where the header says that something else begins.
        places = [place for at, size in _PLACES if (place := self._place(at, size)) > table]
        return min(places, default=self.end)

    def _place(self, at: int, least: int) -> int:
        return int.from_bytes(self.head[at : at + 8], "little") if self.head_size >= least else 0

    def _move(self, new_start: int, old_end: int, new_end: int) -> None:
        """Set the places in the header to those of the copy."""
        for at, least in _PLACES:
            # 0 where there is nothing, or in another file.
            place = self._place(at, least)
            if place >= old_end:
                struct.pack_into("<Q", self.head, at, place - old_end + new_end)
        struct.pack_into("<II", self.head, 96, new_start, len(self.records))
        kind = (self.head[104] & ~_LAZ) | (_LAZ if self.compress else 0)
        struct.pack_into("<BH", self.head, 104, kind, self.new_size)
        for number, record in enumerate(self.records):
            if record.key == las.LASZIP_RECORD:
                body = bytearray(record.body)
                # Further records of the compressor, after the points, move along with what follows them.
                special, place = struct.unpack_from("<qq", body, 16)
                if special > 0 and place >= old_end:
                    struct.pack_into("<q", body, 24, place - old_end + new_end)
                    self.records[number] = record.with_body(bytes(body))

    def _extended_records(self) -> Iterator[tuple[bytes, int, int, int]]:
        """Yield user, number, place and bytes of the records after the points."""
        at = self._place(235, 247)
        number = int.from_bytes(self.head[243:247], "little")
        if self.head[25] < 4 or self.head_size < 375:
            return
        # A damaged number of them must not take forever.
        for _ in range(min(number, _MOST_RECORDS)):
            self.file.seek(at)
            head = self.file.read(las.EXTENDED_HEADER)
            if len(head) < las.EXTENDED_HEADER:
                break
            user, kind, size = struct.unpack_from("<2x16sHQ", head)
            size = min(las.EXTENDED_HEADER + size, self.end - at)
            yield user.split(b"\0")[0], kind, at, size
            at += size

    def _tell_of_programs(self) -> None:
        """Say what other programs do not find in the copy."""
        if self.format in las.WITH_WAVEFORMS and self.head[6] & _IN_OTHER_FILE:
            old = Path(self.name).with_suffix(".wdp").name
            new = Path(self.target).with_suffix(".wdp").name
            if old != new or Path(self.name).parent != Path(self.target).parent:
                text = f"{self.target}: its waveforms stay in {old}; copy that file to {new}"
                warnings.warn(printable(text), stacklevel=2)
        if self.is_copc:
            text = f"{self.target}: is plain LAS 1.4, not COPC; its points keep the order of {self.name}"
            warnings.warn(printable(text), stacklevel=2)
        added = [str(dimension.column.name) for dimension in self.dimensions if dimension.at >= self.size]
        if added and self.head[25] < 4:
            # Descriptions of extra bytes are part of the standard from 1.4 on.
            text = (
                f"{self.target}: {', '.join(added)}: extra bytes of LAS 1.{self.head[25]}, which PDAL reads only with"
            )
            warnings.warn(printable(f"{text} use_eb_vlr=true"), stacklevel=2)

    def _check_written(self, output: BinaryIO, start: int, expected: int) -> None:
        """Decompress points with waveforms again, since lazrs loses bits of some of them."""
        output.seek(start)
        decompressor = package("lazrs", "files").LasZipDecompressor(output, self.laszip.record_data())
        check = 0
        for first in range(0, self.count, _BLOCK):
            block = np.zeros(min(_BLOCK, self.count - first) * self.new_size, np.uint8)
            decompressor.decompress_many(block)
            check = zlib.crc32(block.data, check)
        if check != expected:
            raise PointCloudError("lazrs cannot write the waveform packets of this file to LAZ; write .las")


@contextmanager
def _mapped(file: BinaryIO) -> Iterator[Any]:
    """Yield the bytes of a file without reading all of them into memory."""
    try:
        number = file.fileno()
    except (OSError, AttributeError):
        file.seek(0)
        yield file.read()
        return
    with mmap(number, 0, access=ACCESS_READ) as data:
        yield data


def _cut(blocks: Iterator[np.ndarray], sizes: list[int], width: int) -> Iterator[np.ndarray]:
    """Cut blocks of records anew, into pieces of the given numbers of records."""
    left = np.zeros((0, width), np.uint8)
    for size in sizes:
        parts = [left]
        # Blocks have sizes of their own: gather enough of them for the next piece.
        while sum(map(len, parts)) < size and (block := next(blocks, None)) is not None:
            parts.append(block)
        joined = np.concatenate(parts)
        yield joined[:size]
        left = joined[size:]


def _description(name: str, kind: int, options: int = 0, text: str = "") -> ExtraDimension:
    encoded = name.encode()
    if len(encoded) > 32:
        raise ArgumentError(f"field is {name!r}; LAS allows 32 bytes")
    return ExtraDimension(struct.pack("<2xBB32s124x32s", kind, options, encoded, text.encode()))
