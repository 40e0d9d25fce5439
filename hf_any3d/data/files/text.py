"""Rows of numbers as text: .xyz, .txt, .pts, .csv."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_any3d.data.files.attributes import NAMES_OF_AXES, by_name, by_number, fields_of, plain_name
from hf_any3d.data.files.point_cloud import PointCloudData, leaves_out_invalid_points
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import normalized_lines, numbers, shorten, unix_lines, without_quotes
from hf_any3d.registry import FORMATS

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf)", re.IGNORECASE)
COUNT_LINE = re.compile(rb"(?m)^[ \t]*(\d{1,18})[ \t]*$")
"""A line that declares how many points follow."""
_COMMENT = ("#", "//")
# Lines before the rows in which names are looked for, from the last on.
_MOST_TITLES = 100
_LOOKED_AT = 8192  # bytes that tell prose from rows
# Before names in a comment, as in `# Format: x y z`; a unit after a name, where spaces separate names.
_MARK = re.compile(r"^[#/\s]+([^,;:=]*[:=]\s+)?")
_UNIT = re.compile(r"[\[(][^\])]*[\])]")
# Where a cell between two commas or semicolons, or before the first, has nothing in it.
_EMPTY_CELL = re.compile(rb"(?m)(?:(?<=[,;])|^)[ \t]*(?=[,;])")
NOT_READ = "numbers of rows without a name; an alpha that is the same everywhere"


class Title(NamedTuple):
    """A comment or a line of words before the first row of numbers."""

    line: int  # within the file, from 1
    text: str
    is_comment: bool


def is_prose(path: Path) -> bool:
    """Return whether a file with an ending of text formats has words where a cloud has rows of numbers."""
    if FORMATS.get(path.suffix[1:].lower()) != "text" or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(_LOOKED_AT)
    except OSError:
        return False
    if b"\0" in start:
        return False
    lines = [line.strip() for line in start.decode("latin1").splitlines() if line.strip()]
    if len(start) == _LOOKED_AT and len(lines) > 1:
        lines.pop()  # cut off
    rows = [_words(line) for line in lines if not line.startswith(_COMMENT)][:50]
    if not rows:
        return bool(lines)  # comments alone
    # A line that names the columns is none of prose, whatever follows.
    if "points" in fields_of(_words(lines[0].lstrip("/#"))):
        return False
    numeric = sum(all(map(_NUMBER.fullmatch, words)) for words in rows)
    return 2 * numeric < len(rows)


def read(source: Source) -> PointCloudData:
    """Read one point per line, its numbers separated by spaces, tabs, commas or semicolons.

    Where semicolons, tabs or spaces separate them, numbers may have decimal commas instead of points.

    Comments start with # or //. A line of names before the first row, also in a comment, names the columns, such as
    `x y z red green blue nx ny nz label` or `"X [m]","Y [m]","Z [m]"`; without it, see `attributes.by_number`. A line
    with a single whole number before the first row is the number of points; further ones begin further blocks.
    """
    text = unix_lines(source.data)
    titles, declared, size, lines = read_header(text)
    rows, worded = cells(text[size:], titles)
    source.leave_out(worded, "words, not numbers")
    empty_cell = _empty_cell(rows)
    text = plain_rows(rows)
    if declared is not None and text.count(b"\n") > declared:
        # Scans of several stations: blocks that all start with their number of points.
        declared += sum(map(int, COUNT_LINE.findall(text)))
        text = COUNT_LINE.sub(b"", text)
    # Before the numbers are parsed: each line may be a point.
    source.check(points=max(declared or 0, text.count(b"\n")))
    table = numbers(text, first_line=lines + 1)  # (points, columns)
    if declared is not None and declared != len(table):
        cut = "; the file may be cut off" if len(table) < declared else ""
        raise PointCloudError(f"{len(table)} points where {declared} are declared{cut}")
    if names := column_names(titles, table):
        columns = {name: table[:, place] for place, name in enumerate(names) if name not in worded}
        cloud = by_name(columns, source)
    else:
        cloud = by_number(np.ascontiguousarray(table), source)
    # Of columns that are not read, empty cells do not matter.
    if empty_cell and not leaves_out_invalid_points() and np.isnan(cloud["points"]).any():
        line = lines + 1 + rows.count(b"\n", 0, empty_cell.start())
        raise PointCloudError(f"line {line} has an empty cell; expected a number")
    return PointCloudData(**cloud)


def plain_rows(rows: bytes) -> bytes:
    """Return rows of numbers that spaces separate, without comments, with NaN where a cell has nothing in it."""
    # Spaces will take the place of commas, and would close the gap that an empty cell is.
    text = normalized_lines(_EMPTY_CELL.sub(b"nan", rows) if _empty_cell(rows) else rows)
    return re.sub(rb"//[^\n]*", b"", text) if b"//" in text else text


def _empty_cell(rows: bytes) -> re.Match[bytes] | None:
    """Find the first empty cell; without blanks, much faster than the expression alone would."""
    if b" " not in rows and b"\t" not in rows:
        edges = (b",,", b";;", b",;", b";,", b"\n,", b"\n;")
        if not rows.startswith((b",", b";")) and not any(edge in rows for edge in edges):
            return None
    elif b"," not in rows and b";" not in rows:
        return None
    return _EMPTY_CELL.search(rows)


def cells(text: bytes, titles: list[Title]) -> tuple[bytes, list[str]]:
    """Return rows without quotes, with zeros in columns of words, such as names of points, and these columns."""
    header = next(
        (title.text for title in reversed(titles) if not title.is_comment and names_in_line(title.text)), None
    )
    if header is None:
        return without_quotes(text), []
    delimiter = next((mark for mark in ",;\t" if mark in header), " ")
    names = [name.strip() for name in next(_parsed([header], delimiter))]
    first_row = text[: text.find(b"\n") % (len(text) + 1)].decode("latin1").strip(" ")
    worded = _places_of_words(next(_parsed([first_row], delimiter), []), names)
    if not worded:
        return without_quotes(text), []
    # Zeros take the place of words, so that lines and columns stay where they are.
    numeric = io.StringIO()
    writer = csv.writer(numeric, delimiter=delimiter, lineterminator="\n")
    for row in _parsed(io.StringIO(text.decode("latin1")), delimiter):
        writer.writerow("0" if place in worded else cell for place, cell in enumerate(row))
    return without_quotes(numeric.getvalue().encode("latin1")), [names[place] for place in worded]


def _parsed(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Yield the cells of lines, which may have quotes."""
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def _places_of_words(cells: list[str], names: list[str]) -> list[int]:
    """Return the columns of words in a row; none if the cloud is made of one of them, which is an error later."""
    if len(cells) != len(names):
        return []
    worded = []
    for place, cell in enumerate(cells):
        if re.search(r"[^\W\d_]", cell) and not _NUMBER.fullmatch(cell.strip()):
            worded.append(place)
    used = sum(fields_of(names).values(), [])
    if any(names[place] in used for place in worded):
        return []
    return worded


def read_header(text: bytes) -> tuple[list[Title], int | None, int, int]:
    """Read the lines before the first row of numbers.

    Returns comments and other lines of words; the number of points that is declared, or None; bytes and number of
    these lines.
    """
    titles: list[Title] = []
    declared = None
    at = 0
    number = 0
    while at < len(text):
        end = text.find(b"\n", at) + 1 or len(text)
        # Not the tab before the names that follow an index without a name.
        line = text[at:end].decode("utf-8", "replace").strip(" \n")
        is_comment = line.startswith(_COMMENT)
        if declared is None and COUNT_LINE.fullmatch(text[at:end].rstrip(b"\n")):
            declared = int(line)
        elif line.strip():
            if not is_comment and _starts_rows(line, titles):
                break
            if not is_comment and not names_in_line(line):
                raise PointCloudError(
                    f"starts with {shorten(line)}; expected numbers, or names of columns such as {NAMES_OF_AXES}"
                )
            titles.append(Title(number + 1, line, is_comment))
        at = end
        number += 1
    return titles, declared, at, number


def _starts_rows(line: str, titles: list[Title]) -> bool:
    """Return whether a line is a row: it begins with a number, or with a word in a column that has a name."""
    words = _words(line)
    if _NUMBER.fullmatch(words[0]):
        return True
    # Such as the name of a point, before at least three numbers.
    follows_names = bool(titles) and not titles[-1].is_comment and bool(names_in_line(titles[-1].text))
    return follows_names and sum(map(bool, map(_NUMBER.fullmatch, words))) >= 3


def _words(line: str) -> list[str]:
    return [word for word in re.split(r"[\s,;\"]+", line) if word] or [""]


def names_in_line(line: str) -> list[list[str]]:
    """Return the names in a line, for each way to separate them that gives x, y and z."""
    if line.startswith(_COMMENT):
        line = _MARK.sub("", line)
    split = [line.replace('"', "").split(separator) for separator in ",;\t" if separator in line]
    # By spaces, which quoted names and units may have themselves.
    split.append([word.strip('"') for word in re.findall(r'"[^"]*"|[^\s"]+', _UNIT.sub("", line))])
    return [[name.strip() for name in names] for names in split if "points" in fields_of(names)]


def column_names(titles: list[Title], table: np.ndarray) -> list[str] | None:
    """Return the names of the columns from the last line that has as many, or None if there is no such line."""
    width = table.shape[1]
    mismatch = None
    for title in reversed(titles[-_MOST_TITLES:]):
        for names in names_in_line(title.text):
            _fit(names, table)
            if len(names) == width:
                _refuse_repeated(names, title)
                return names
            # Words of a comment, such as "x y z in meters", matter only if there are columns to name.
            matters = not title.is_comment or (width > 3 and "points" in fields_of(names[:3]))
            if matters and mismatch is None:
                mismatch = f"{width} columns, but line {title.line} names {len(names)}"
    if mismatch:
        raise PointCloudError(mismatch)
    return None


def _fit(names: list[str], table: np.ndarray) -> None:
    """Adjust names in place to the columns of a table, for programs that write more or fewer names."""
    width = table.shape[1]
    # A delimiter may end the line of names.
    while len(names) > width and not names[-1]:
        names.pop()
    # R writes the numbers of rows in a column without a name.
    if len(names) == width - 1 and (table[:, 0] == np.arange(1, len(table) + 1)).all():
        names.insert(0, "")


def _refuse_repeated(names: list[str], title: Title) -> None:
    """Refuse a name that is used and occurs twice, since either column may be meant."""
    plain = [plain_name(name) for name in names]
    for name in map(plain_name, sum(fields_of(names).values(), [])):
        if plain.count(name) > 1:
            raise PointCloudError(f"line {title.line} names {shorten(name)} twice; expected each name once")
