"""Tables that people fill in or that spreadsheets save: answers about points, labels of files.

One reader for all: commas, semicolons, tabs or bars between columns, decimal commas, UTF-8, UTF-16 or the letters of
Windows, and errors that name the line.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

DELIMITERS = ",;\t|"
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# Bytes of the start of a text by which UTF-16 without a mark is known
_START = 256
# Before what a spreadsheet would take for a formula; tables of this package are written with it.
_ESCAPED = ("'=", "'+", "'-", "'@")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        path: The file.
        line: Number of its line, from 1; the last one of a row of several lines.
        cells: Text by the names of columns, without blanks around it; "" where the row is shorter.
    """

    path: Path
    line: int
    cells: dict[str, str]

    def number(self, name: str) -> float:
        """Return the number in a column, which may have a decimal comma.

        Raises:
            ValueError: There is none.
        """
        text = self.cells.get(name, "")
        plain = text.replace(" ", "")
        if "." not in plain and plain.count(",") == 1:
            plain = plain.replace(",", ".")
        try:
            value = float(plain)
        except ValueError:
            value = float("nan")
        if not abs(value) < float("inf") or "_" in plain:
            raise self.error(f"{name} is {text[:40]!r}; expected a number")
        return value

    def whole(self, name: str) -> int:
        """Return the whole number in a column, such as 12, or 12.0 of a spreadsheet.

        Raises:
            ValueError: There is none.
        """
        value = self.number(name)
        if value != int(value) or abs(value) >= 2**53:
            raise self.error(f"{name} is {self.cells[name][:40]!r}; expected a whole number")
        return int(value)

    def error(self, reason: str) -> ValueError:
        """Return an error that names file and line."""
        return ValueError(f"{self.path}: line {self.line}: {reason}")


def read_text(path: str | os.PathLike) -> str:
    """Read a text in UTF-8, UTF-16 or UTF-32, else in the letters of Windows (cp1252)."""
    return decoded(Path(path).read_bytes())


def decoded(data: bytes) -> str:
    """Return bytes as text; see `read_text`."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    start = data[:_START]
    # Letters of Western languages have a zero byte each.
    for encoding, zeros in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):
        if len(zeros) > 1 and zeros.count(0) > len(zeros) / 2:
            return data.decode(encoding, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        # Five bytes mean nothing there.
        return data.decode("cp1252", "replace")


def delimiter_of(text: str, wanted: Collection[str] = ()) -> str:
    """Return what separates the columns of a table: what gives most of the wanted names, and then most columns."""
    line = _header_line(text)[1]

    def found(delimiter: str) -> tuple[int, int]:
        names = [plain_name(name) for name in next(csv.reader([line], delimiter=delimiter), [])]
        return len({*names} & {*wanted}), len(names)

    return max(DELIMITERS, key=found)


def column_names(path: Path) -> list[str]:
    """Return the names of the columns of a table, in lower case; none of a file that is empty."""
    with open(path, "rb") as file:
        # Enough for any line of names
        text = decoded(file.read(1 << 16))
    line = _header_line(text)[1]
    return [plain_name(name) for name in next(csv.reader([line], delimiter=delimiter_of(text)), [])]


def read_rows(path: Path, wanted: Collection[str]) -> Iterator[Row]:
    """Yield the rows of a table that have any text.

    Args:
        path: The file.
        wanted: Names of the columns that it must have, in lower case.

    Raises:
        ValueError: A column is missing or there twice, or a row has more cells than there are columns.
    """
    text = read_text(path)
    before, _ = _header_line(text)
    delimiter = delimiter_of(text, wanted)
    # Lines end as in any program.
    table = csv.reader(io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n")), delimiter=delimiter)
    try:
        for _ in range(before):
            next(table)
        header = [plain_name(name) for name in next(table, [])]
        for name in wanted:
            if name not in header:
                raise ValueError(f"{path}: no column {name!r}; expected {', '.join(wanted)}")
            if header.count(name) > 1:
                raise ValueError(f"{path}: column {name!r} occurs twice; rename one")
        for cells in table:
            stripped = [_plain_cell(cell) for cell in cells]
            if not any(stripped):
                continue
            row = Row(path, table.line_num, dict(zip(header, stripped + [""] * len(header), strict=False)))
            if any(stripped[len(header) :]):
                hint = ": of decimal commas, separate columns by semicolons" if delimiter == "," else ""
                raise row.error(f"{len(cells)} cells in {len(header)} columns{hint}")
            yield row
    except csv.Error as error:
        raise ValueError(f"{path}: line {table.line_num}: {error}") from None


def plain_name(name: str) -> str:
    """Return a name without differences that nobody sees or means: case, kinds and numbers of blanks, underscores."""
    plain = unicodedata.normalize("NFKC", name).replace("_", " ").casefold()
    return " ".join(plain.replace("\ufeff", "").split())


def _plain_cell(cell: str) -> str:
    text = " ".join(unicodedata.normalize("NFC", cell).split())
    return text[1:] if text.startswith(_ESCAPED) else text


def lines_before_names(text: str) -> int:
    """Return how many lines a table has before that with the names of columns."""
    return _header_line(text)[0]


def _header_line(text: str) -> tuple[int, str]:
    """Return how many lines are before the one with the names of columns, and that line.

    Empty lines may be before it, and the line "sep=;" that some spreadsheets need.
    """
    lines = text[: 1 << 16].splitlines()
    for number, line in enumerate(lines):
        if line.strip() and not line.strip().strip('"').lower().startswith("sep="):
            return number, line
    return len(lines), ""
