"""Large JSON arrays read entry by entry, in memory that does not grow with the file."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hf_any3d.data.files import PointCloudFileError

CHUNK_BYTES = 4 << 20
LONGEST_ENTRY = 1 << 20
"""Characters of an entry; a longer one counts as damage."""

_SPACE = re.compile(r"[ \t\n\r\ufeff]*")


class Entry(NamedTuple):
    """An entry of an array.

    Attributes:
        number: its place in the array, from 0.
        start: the byte of the file where it begins.
        stop: the byte behind it.
        value: what it holds.
    """

    number: int
    start: int
    stop: int
    value: object


def scan_entries(path: Path) -> Iterator[Entry]:
    """Give the entries of a file that holds one JSON array, one after the other.

    Raises:
        PointCloudFileError: no such file, no UTF-8 text, no array, or damage; says in which entry and at which byte.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below, while entries are given
    except FileNotFoundError:
        raise PointCloudFileError(f"{path}: no such file") from None
    with file:
        window = _Window(file, path)
        window.skip_space()
        if window.next() != "[":
            raise window.error(f"starts with {window.next()!r}; expected [, a JSON array")
        window.advance(1)
        window.skip_space()
        number = 0
        while number or window.next() != "]":
            start = window.offset
            value = window.decode(number)
            yield Entry(number, start, window.offset, value)
            window.skip_space()
            if window.next() == "]":
                break
            if window.next() != ",":
                raise window.error(f"{window.next()!r} behind entry {number}; expected a comma or ]")
            window.advance(1)
            window.skip_space()
            number += 1
        window.advance(1)
        window.skip_space()
        if window.next():
            raise window.error(f"{window.next()!r} behind the array; expected the end of the file")


def read_entry(path: Path, start: int, stop: int) -> object:
    """Read one entry again.

    Args:
        path: the file.
        start: as `Entry` says.
        stop: as `Entry` says.

    Raises:
        PointCloudFileError: the file has changed.
        FileNotFoundError: the file is gone.
    """
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(stop - start)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise PointCloudFileError(f"{path}: no entry at byte {start:,}; the file has changed since") from None


class _Window:
    """The part of a file that is being looked at, as text; at least an entry long, up to the end of the file."""

    def __init__(self, file: BinaryIO, path: Path):
        self.offset = 0  # bytes of the file before `_place`
        self._file, self._path = file, path
        self._text, self._place = "", 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._ended = False
        self._json = json.JSONDecoder()

    def next(self) -> str:
        """The next character; nothing at the end."""
        self._fill()
        return self._text[self._place : self._place + 1]

    def advance(self, count: int) -> None:
        passed = self._text[self._place : self._place + count]
        self.offset += len(passed.encode())
        self._place += len(passed)

    def skip_space(self) -> None:
        while self.next() and (found := _SPACE.match(self._text, self._place)).end() > self._place:
            self.advance(found.end() - self._place)

    def decode(self, number: int) -> object:
        self._fill()
        try:
            value, end = self._json.raw_decode(self._text, self._place)
        except json.JSONDecodeError as error:
            self.advance(error.pos - self._place)
            raise self.error(f"entry {number} is no sound JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:
            raise self.error(f"entry {number} is no sound JSON ({str(error)[:60]})") from None
        self.advance(end - self._place)
        return value

    def error(self, text: str) -> PointCloudFileError:
        return PointCloudFileError(f"{self._path}: byte {self.offset:,}: {text}")

    def _fill(self) -> None:
        if self._ended or len(self._text) - self._place >= LONGEST_ENTRY:
            return
        parts = [self._text[self._place :]]
        size = len(parts[0])
        while not self._ended and size < LONGEST_ENTRY:
            data = self._file.read(CHUNK_BYTES)
            self._ended = not data
            try:
                parts.append(self._utf8.decode(data, final=self._ended))
            except UnicodeDecodeError as error:
                byte = self._file.tell() - len(error.object) + error.start
                raise PointCloudFileError(f"{self._path}: byte {byte:,} is no UTF-8 text") from None
            size += len(parts[-1])
        self._text, self._place = "".join(parts), 0
