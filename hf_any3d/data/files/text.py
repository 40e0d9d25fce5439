"""Rows of numbers as text: .xyz, .txt, .pts, .csv."""

import csv
import io
import re
from pathlib import Path
from typing import Any

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
_MOST_TITLES = 100
# Before names in a comment, as in `# Format: x y z`; a unit after a name, where spaces separate names.
_MARK, _UNIT = re.compile(r"^[#/\s]+([^,;:=]*[:=]\s+)?"), re.compile(r"[\[(][^\])]*[\])]")
# Where a cell between two commas or semicolons, or before the first, has nothing in it.
_EMPTY_CELL = re.compile(rb"(?m)(?:(?<=[,;])|^)[ \t]*(?=[,;])")
NOT_READ = "numbers of rows without a name; an alpha that is the same everywhere"


def is_prose(path: Path) -> bool:
    """Return whether a file with an ending of text formats has words where a cloud has rows of numbers."""
    if FORMATS.get(path.suffix[1:].lower()) != "text" or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(8192)
    except OSError:
        return False
    if b"\0" in start:
        return False
    lines = [line.strip() for line in start.decode("latin1").splitlines() if line.strip()]
    if len(start) == 8192 and len(lines) > 1:
        lines.pop()  # cut off
    rows = [_words(line) for line in lines if not line.startswith(_COMMENT)][:50]
    if not rows or "points" in fields_of(_words(lines[0].lstrip("/#"))):
        return bool(lines) and not rows  # comments alone
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
    rows, worded = _cells(text[size:], titles)
    source.leave_out(worded, "words, not numbers")
    empty_cell = _empty_cell(rows)
    text = normalized_lines(_EMPTY_CELL.sub(b"nan", rows) if empty_cell else rows)
    if b"//" in text:
        text = re.sub(rb"//[^\n]*", b"", text)
    if declared is not None and text.count(b"\n") > declared:
        # Scans of several stations: blocks that all start with their number of points.
        declared += sum(map(int, COUNT_LINE.findall(text)))
        text = COUNT_LINE.sub(b"", text)
    source.check(points=max(declared or 0, text.count(b"\n")))
    table = numbers(text, first_line=lines + 1)  # (points, columns)
    if declared is not None and declared != len(table):
        cut = "; the file may be cut off" if len(table) < declared else ""
        raise PointCloudError(f"{len(table)} points where {declared} are declared{cut}")
    if names := column_names(titles, table):
        cloud = by_name({name: table[:, i] for i, name in enumerate(names) if name not in worded}, source)
    else:
        cloud = by_number(np.ascontiguousarray(table), source)
    if empty_cell and not leaves_out_invalid_points() and np.isnan(cloud["points"]).any():
        line = lines + 1 + rows.count(b"\n", 0, empty_cell.start())
        raise PointCloudError(f"line {line} has an empty cell; expected a number")
    return PointCloudData(**cloud)


def _empty_cell(rows: bytes) -> re.Match[bytes] | None:
    """Find the first empty cell; without blanks, much faster than the expression alone would."""
    if b" " not in rows and b"\t" not in rows:
        edges = (b",,", b";;", b",;", b";,", b"\n,", b"\n;")
        if not rows.startswith((b",", b";")) and not any(edge in rows for edge in edges):
            return None
    elif b"," not in rows and b";" not in rows:
        return None
    return _EMPTY_CELL.search(rows)


def _cells(text: bytes, titles: list[tuple[int, str, bool]]) -> tuple[bytes, list[str]]:
    """Return rows without quotes, with zeros in columns of words, such as names of points, and these columns."""
    line = next((line for _, line, is_comment in reversed(titles) if not is_comment and names_in_line(line)), None)
    if line is None:
        return without_quotes(text), []
    form: Any = {"delimiter": next((mark for mark in ",;\t" if mark in line), " "), "skipinitialspace": True}
    names = [name.strip() for name in next(csv.reader([line], **form))]
    first = text[: text.find(b"\n") % (len(text) + 1)].decode("latin1").strip(" ")
    worded = _places_of_words(next(csv.reader([first], **form), []), names)
    if not worded:
        return without_quotes(text), []
    # Zeros take the place of words, so that lines and columns stay where they are.
    kept = io.StringIO()
    writer = csv.writer(kept, delimiter=form["delimiter"], lineterminator="\n")
    for row in csv.reader(io.StringIO(text.decode("latin1")), **form):
        writer.writerow("0" if i in worded else cell for i, cell in enumerate(row))
    return without_quotes(kept.getvalue().encode("latin1")), [names[i] for i in worded]


def _places_of_words(cells: list[str], names: list[str]) -> list[int]:
    """Return the columns of words in a row; none if the cloud is made of one of them, which is an error later."""
    if len(cells) != len(names):
        return []
    worded = []
    for place, cell in enumerate(cells):
        if re.search(r"[^\W\d_]", cell) and not _NUMBER.fullmatch(cell.strip()):
            worded.append(place)
    used = sum(fields_of(names).values(), [])
    return [] if any(names[place] in used for place in worded) else worded


def read_header(text: bytes) -> tuple[list[tuple[int, str, bool]], int | None, int, int]:
    """Read the lines before the first row of numbers.

    Returns comments and other lines of words, each with its number within the file and whether it is a comment; the
    number of points that is declared, or None; bytes and number of these lines.
    """
    titles, declared, at, number = [], None, 0, 0
    while at < len(text):
        end = text.find(b"\n", at) + 1 or len(text)
        # Not the tab before the names that follow an index without a name.
        line = text[at:end].decode("utf-8", "replace").strip(" \n")
        is_comment = line.startswith(_COMMENT)
        if declared is None and COUNT_LINE.fullmatch(text[at:end].rstrip(b"\n")):
            declared = int(line)
        elif line.strip() and not is_comment and (_NUMBER.fullmatch(_words(line)[0]) or _is_row(line, titles)):
            break
        elif line.strip():
            if not is_comment and not names_in_line(line):
                raise PointCloudError(
                    f"starts with {shorten(line)}; expected numbers, or names of columns such as {NAMES_OF_AXES}"
                )
            titles.append((number + 1, line, is_comment))
        at, number = end, number + 1
    return titles, declared, at, number


def _is_row(line: str, titles: list[tuple[int, str, bool]]) -> bool:
    """Return whether a line after one of names begins with a word, such as the name of a point."""
    follows_names = bool(titles) and not titles[-1][2] and bool(names_in_line(titles[-1][1]))
    return follows_names and sum(map(bool, map(_NUMBER.fullmatch, _words(line)))) >= 3


def _words(line: str) -> list[str]:
    return [word for word in re.split(r"[\s,;\"]+", line) if word] or [""]


def names_in_line(line: str) -> list[list[str]]:
    """Return the names in a line, for each way to separate them that gives x, y and z."""
    line = _MARK.sub("", line) if line.startswith(_COMMENT) else line
    split = [line.replace('"', "").split(separator) for separator in ",;\t" if separator in line]
    split.append([word.strip('"') for word in re.findall(r'"[^"]*"|[^\s"]+', _UNIT.sub("", line))])
    return [[name.strip() for name in names] for names in split if "points" in fields_of(names)]


def column_names(titles: list[tuple[int, str, bool]], table: np.ndarray) -> list[str] | None:
    """Return the names of the columns from the last line that has as many, or None if there is no such line."""
    width, other = table.shape[1], None
    for number, line, is_comment in reversed(titles[-_MOST_TITLES:]):
        for names in names_in_line(line):
            while len(names) > width and not names[-1]:
                names.pop()
            # R writes the numbers of rows in a column without a name.
            if len(names) == width - 1 and (table[:, 0] == np.arange(1, len(table) + 1)).all():
                names.insert(0, "")
            if len(names) == width:
                plain = [plain_name(name) for name in names]
                for name in map(plain_name, sum(fields_of(names).values(), [])):
                    if plain.count(name) > 1:
                        raise PointCloudError(f"line {number} names {shorten(name)} twice; expected each name once")
                return names
            # Words of a comment, such as "x y z in meters", matter only if there are columns to name.
            if not is_comment or width > 3 and "points" in fields_of(names[:3]):
                other = other or f"{width} columns, but line {number} names {len(names)}"
    if other:
        raise PointCloudError(other)
    return None
