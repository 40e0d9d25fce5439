"""Text files with a row of numbers for each point: .xyz, .txt, .pts, .csv, .asc."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_any3d.data.files.attributes import by_name, by_number
from hf_any3d.data.files.column_names import (
    IN_DEGREES,
    NAMES_OF_AXES,
    fields_of,
    is_unit,
    names_in_degrees,
    plain_name,
    wanted_fields,
)
from hf_any3d.data.files.label_words import numbered
from hf_any3d.data.files.point_cloud import PointCloudData, leaves_out_invalid_points
from hf_any3d.data.files.source import NoPointsError, PointCloudError, Source
from hf_any3d.data.files.stated_units import unit_of_comments
from hf_any3d.data.files.text_numbers import normalized_lines, numbers, shorten, unix_lines, without_quotes
from hf_any3d.registry import FORMATS

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf)", re.IGNORECASE)
COUNT_LINE = re.compile(rb"(?m)^[ \t]*(\d{1,18})[ \t]*$")
"""A line that declares how many points follow."""
GRID_START = rb"\s*(ncols|nrows|[xy]ll(corner|cent(er|re))|cellsize|nodata_value)[ \t]+-?[\d.]"
"""How a grid of ESRI begins, in any case: a line of its header, in any order."""
_COMMENT = ("#", "//", "%")
# NA, N/A, #N/A, null and none as whole cells: no value, as R, databases and spreadsheets write it. The first letter is
# looked for first, which is many times faster.
_NO_VALUE = re.compile(rb"(?m)[#Nn](?:(?<=[,;\s\"].)|(?<=^.))(?i:/A|A|ull|one|N/A)(?=[,;\s\"]|$)")
NOT_READ = "row numbers in a column without a name; alpha, if it is constant"


class Title(NamedTuple):
    """A comment or a line of words before the first row of numbers."""

    line: int  # within the file, from 1
    text: str
    is_comment: bool


_LOOKED_AT = 8192  # bytes that tell prose from rows


def is_prose(path: Path) -> bool:
    """Return whether a file with an ending of text formats has words, or a grid, where a cloud has rows of points."""
    if FORMATS.get(path.suffix[1:].lower()) != "text" or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(_LOOKED_AT)
    except OSError:
        return False
    if b"\0" in start:
        return False
    if re.match(GRID_START, start, re.IGNORECASE):
        return True
    lines = [line.strip() for line in start.decode("latin1").splitlines() if line.strip()]
    if len(start) == _LOOKED_AT and len(lines) > 1:
        lines.pop()  # cut off
    rows = [_words(line) for line in lines if not line.startswith(_COMMENT)][:50]
    if not rows:
        return bool(lines)  # comments alone
    # A line that names the columns is none of prose, whatever follows: the first one, or the last before the rows.
    first = next(place for place, line in enumerate(lines) if not line.startswith(_COMMENT))
    titles = (lines[0], *lines[max(first - 1, 0) : first + 1])
    if any("points" in fields_of(_words(line.lstrip("/#"))) for line in titles):
        return False
    numeric = sum(all(map(_NUMBER.fullmatch, words)) for words in rows)
    return 2 * numeric < len(rows)


_ROWS_OF_WORDS = 50  # in which words are looked for


def has_rows(start: bytes) -> bool:
    """Return whether the start of a file has rows of three numbers or more, perhaps below names or their count."""
    if b"\0" in start or re.match(GRID_START, start, re.IGNORECASE):
        return False
    lines = [line.strip() for line in start.decode("latin1").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(_COMMENT)]
    if len(start) >= _LOOKED_AT // 2 and len(lines) > 1:
        lines.pop()  # it may be cut off
    if lines and (COUNT_LINE.fullmatch(lines[0].encode("latin1")) or names_in_line(lines[0])):
        del lines[0]
    rows = [_words(line) for line in lines[:_ROWS_OF_WORDS]]
    are_alike = len({len(row) for row in rows}) == 1 and len(rows[0]) >= 3
    return are_alike and all(_NUMBER.fullmatch(word) for row in rows for word in row)


def read(source: Source) -> PointCloudData:
    """Read one point per line, its numbers separated by spaces, tabs, commas or semicolons.

    Where semicolons, tabs or spaces separate them, numbers may have decimal commas instead of points.

    Comments start with #, // or %; above the rows also with another mark of las2txt. A line of names before the first
    row, also in a comment, names the columns, such as `x y z red green blue nx ny nz label` or
    `"X [m]","Y [m]","Z [m]"`; without it, see `attributes.by_number`. Units may stand in a line of their own below the
    names. A line with a single whole number before the first row is the number of points; further ones begin further
    blocks. Cells without a number, or with NA or null, are missing values. Classes may be words, which become numbers
    with `label_names`.
    """
    text = with_hashes(unix_lines(source.data))
    titles, declared, size, lines = read_header(text)
    rows, worded, label_names = cells_of(text[size:], titles, source)
    source.leave_out(worded, "words, not numbers")
    text = plain_rows(rows, titles)
    if declared is not None and text.count(b"\n") > declared:
        # Scans of several stations: blocks that all start with their number of points.
        declared += sum(map(int, COUNT_LINE.findall(text)))
        text = COUNT_LINE.sub(b"", text)
    # Before the numbers are parsed: each line may be a point.
    source.check(points=max(declared or 0, text.count(b"\n")))
    table = numbers(text, first_line=lines + 1)  # (points, columns)
    if declared is not None and declared != len(table):
        cut = "; the file may be cut off" if len(table) < declared else ""
        raise PointCloudError(f"{len(table)} points, but the file declares {declared}{cut}")
    if not len(table):
        raise NoPointsError()
    names = column_names(titles, table)
    if names:
        columns = {name: table[:, place] for place, name in enumerate(names) if name not in worded}
        cloud = by_name(columns, source)
        cloud["label_names"] = label_names
    else:
        cloud = by_number(np.ascontiguousarray(table), source, is_counted=declared is not None)
    # Names of columns say it nearer to the numbers.
    cloud = unit_of_comments((title.text.strip("#/ ") for title in titles if title.is_comment), source) | cloud
    if not leaves_out_invalid_points() and np.isnan(cloud["points"]).any():
        # Name the line of the first point without coordinates, if a cell has nothing in it there.
        first_line = lines + 1
        place = int(np.isnan(cloud["points"]).any(axis=1).argmax())
        for number, line in enumerate(io.BytesIO(rows), first_line):
            if not line.strip() or line.lstrip().startswith((b"#", b"//")):
                continue
            if place == 0 and b"nan" not in line.lower():
                raise PointCloudError(f"line {number} has an empty cell; fill in a number")
            place -= 1
    return PointCloudData(**cloud)


_HASH = re.compile(rb"(?m)^([ \t]*)%")


def with_hashes(text: bytes) -> bytes:
    """Return text in which lines of comments after % begin with #, as parsers know it."""
    return _HASH.sub(rb"\1#", text) if b"%" in text else text


# Where a cell between two commas or semicolons, or before the first, has nothing in it; and one after the last.
_EMPTY_CELL = re.compile(rb"(?m)(?:(?<=[,;])|^)[ \t]*(?=[,;])")
_EMPTY_LAST_CELL = re.compile(rb"(?m)(?<=[,;])[ \t]*$")


def plain_rows(rows: bytes, titles: list[Title]) -> bytes:
    """Return rows of numbers that spaces separate, without comments, with NaN where a cell has no number.

    Such a cell has nothing in it, or a word for no value such as `NA`. Spaces take the place of delimiters, and would
    close the gaps.
    """
    if b"N" in rows or b"n" in rows:
        rows = _NO_VALUE.sub(b"nan", rows)
    header = titles[-1].text if titles else ""
    # Several tabs in a row may as well align the columns.
    if "\t" in header and rows[: rows.find(b"\n")].count(b"\t") == header.count("\t"):
        rows = rows.replace(b"\t", b";")
    if b"," in rows or b";" in rows:
        # Without blanks, many times faster than the expressions alone
        has_blanks = b" " in rows or b"\t" in rows
        edges = (b",,", b";;", b",;", b";,", b"\n,", b"\n;")
        if has_blanks or rows.startswith((b",", b";")) or any(edge in rows for edge in edges):
            rows = _EMPTY_CELL.sub(b"nan", rows)
        ends = (b",\n", b";\n", b" \n", b"\t\n")
        may_end_empty = rows.endswith((b",", b";", b" ", b"\t")) or any(end in rows for end in ends)
        if may_end_empty and _has_empty_last_cells(rows, header):
            rows = _EMPTY_LAST_CELL.sub(b"nan", rows)
    text = normalized_lines(rows)
    if b"//" in text:
        text = re.sub(rb"//[^\n]*", b"", text)
    return text


def _has_empty_last_cells(rows: bytes, header: str) -> bool:
    """Return whether a delimiter at the end of rows stands before an empty cell; it may also end all rows."""
    ended = re.search(rb"(?m)^.*[,;][ \t]*$", rows)
    if ended is None:
        return False
    delimiter = ";" if b";" in rows else ","
    count = ended[0].count(delimiter.encode())
    # Another row, or the line of names, has a cell at this place.
    other = re.search(rb"(?m)^.*[^,;\s][ \t]*$", rows)
    if other is not None and other[0].count(delimiter.encode()) == count:
        return True
    return any(len(names) == count + 1 and names[-1] for names in names_in_line(header))


class Cells(NamedTuple):
    """Rows in which numbers stand for words."""

    rows: bytes
    left_out: list[str]  # names of columns of words that are no classes
    label_names: tuple[str, ...] | None  # words by the numbers that stand for them in the column of labels


# Before names in a comment, as in `# Format: x y z`; a unit after a name, where spaces separate names.
_MARK = re.compile(r"^[#/%\s]+([^,;:=]*[:=]\s+)?")
_UNIT = re.compile(r"\s*([\[(][^\])]*[\])])")


def cells_of(text: bytes, titles: list[Title], source: Source) -> Cells:
    """Return rows without quotes, with numbers for classes that are words, and zeros for words of other columns."""
    title = next((title for title in reversed(titles) if names_in_line(title.text)), None)
    if title is None:
        return Cells(without_quotes(text), [], None)
    header = title.text
    header = _MARK.sub("", header) if header.startswith(_COMMENT) else header
    delimiter = next((mark for mark in ",;\t" if mark in header), " ")
    names = [name.strip() for name in next(_parsed([header], delimiter))]
    source.note_columns(filter(None, names), f"line {title.line}: ")
    fields = wanted_fields(names, source)
    labels = fields.pop("labels", [""])[0]
    of_numbers: set[str] = set()
    for columns in fields.values():
        of_numbers.update(columns)
    # More than one row, as a row may have nothing in a column of words.
    end = text.rfind(b"\n", 0, _LOOKED_AT) + 1 or text.find(b"\n") + 1 or len(text)
    worded: set[int] = set()
    for row in islice(_rows(text[:end], delimiter, names), _ROWS_OF_WORDS):
        worded.update(_places_of_words(row, names, of_numbers))
    if not worded:
        return Cells(without_quotes(text), [], None)
    classes: list[int] | None = None
    label_names = None
    label_place = names.index(labels) if labels in names else -1
    if label_place in worded:
        # Of the bytes of the file, whose encoding is found for each word.
        words = []
        for row in _rows(text, delimiter, names):
            if row:
                words.append(row[label_place].encode("latin1") if label_place < len(row) else b"")
        try:
            numbers_of_words, label_names = numbered(words)
            classes = numbers_of_words.tolist()
        except PointCloudError:
            # Names of points, unless somebody says that they are classes
            if source.label_field is not None:
                raise
    left_out = [names[place] for place in sorted(worded) if classes is None or place != label_place]
    rows = _with_numbers(_rows(text, delimiter, names), delimiter, worded, label_place, classes)
    return Cells(rows, left_out, label_names)


def _with_numbers(
    rows: Iterable[list[str]], delimiter: str, worded: set[int], label_place: int, classes: list[int] | None
) -> bytes:
    """Return rows with numbers in the place of words, so that lines and columns stay where they are."""
    numeric = io.StringIO()
    writer = csv.writer(numeric, delimiter=delimiter, lineterminator="\n")
    numbers_of_rows = iter(classes or ())
    for row in rows:
        cells = ["0" if place in worded else cell for place, cell in enumerate(row)]
        if row and classes is not None:
            # A last cell without a word may be missing.
            cells += [""] * (label_place + 1 - len(cells))
            cells[label_place] = str(next(numbers_of_rows))
        writer.writerow(cells)
    return without_quotes(numeric.getvalue().encode("latin1"))


def _rows(text: bytes, delimiter: str, names: list[str]) -> Iterator[list[str]]:
    """Yield the cells of each line, none of empty ones and comments."""
    lines = (line.strip(" \n") for line in io.StringIO(text.decode("latin1")))
    for row in _parsed(("" if line.startswith(_COMMENT) else line for line in lines), delimiter):
        if delimiter == " " and len(row) > len(names) and not _NUMBER.fullmatch(row[-1]):
            # Blanks within the last word, which no quotes mark
            row = [*row[: len(names) - 1], " ".join(row[len(names) - 1 :])]
        yield row


def _parsed(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Yield the cells of lines, which may have quotes."""
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def _places_of_words(cells: list[str], names: list[str], of_numbers: set[str]) -> list[int]:
    """Return the columns of words in a row; none if one of them has to have numbers, which is an error later."""
    if len(cells) != len(names):
        return []
    worded = []
    for place, cell in enumerate(cells):
        is_number = _NUMBER.fullmatch(cell.strip()) or _NO_VALUE.fullmatch(cell.strip().encode("latin1"))
        if re.search(r"[^\W\d_]", cell) and not is_number:
            worded.append(place)
    if any(names[place] in of_numbers for place in worded):
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
        is_comment = line.startswith(_COMMENT) or _has_rare_mark(line)
        if is_comment and not line.startswith(_COMMENT):
            line = f"#{line[1:]}"
        if declared is None and COUNT_LINE.fullmatch(text[at:end].rstrip(b"\n")):
            declared = int(line)
        elif line.strip():
            if not is_comment and _starts_rows(line, titles):
                if declared is None and re.fullmatch(r"\s*-\d+\s*", line):
                    raise PointCloudError(f"line {number + 1} declares {line.strip()} points; expected a whole number")
                break
            if not is_comment and not names_in_line(line):
                named = titles[-1] if titles and names_in_line(titles[-1].text) else None
                with_units = None if named is None else _with_units(named.text, line)
                if named is None or with_units is None:
                    raise _no_row(number + 1, line, named)
                # They belong to the names, whose line this stays.
                titles[-1] = named._replace(text=with_units)
            else:
                titles.append(Title(number + 1, line, is_comment))
        at = end
        number += 1
    return titles, declared, at, number


# Before words above the first row, as las2txt and others mark comments; as separators of names they are more than one.
_RARE_MARKS = ";,:*$!'"


def _has_rare_mark(line: str) -> bool:
    """Return whether a line above the rows is a comment by a mark that elsewhere separates numbers or names."""
    mark, rest = line[:1], line[1:].strip()
    if not mark or mark not in _RARE_MARKS or mark in rest or not rest:
        return False
    return not _NUMBER.fullmatch(_words(rest)[0])


def _with_units(names: str, units: str) -> str | None:
    """Return a line of names with the units of x, y and z that stand in the line below; None if that has none."""
    mark = next((mark for mark in ";,\t" if mark in names), None)
    text = _MARK.sub("", names) if names.startswith(_COMMENT) else names
    split_names, split_units = ([cell.strip(' "') for cell in line.split(mark)] for line in (text, units))
    axes = fields_of(split_names).get("points", [])
    places = [split_names.index(name) for name in axes]
    # What follows the last axis may have no unit.
    if not places or not max(places) < len(split_units) <= len(split_names):
        return None
    for place in places:
        unit = split_units[place].strip("[](){}<>")
        if not is_unit(unit):
            return None
        split_names[place] += f"[{unit}]"
    return (mark or " ").join(split_names)


def _no_row(number: int, line: str, named: Title | None) -> PointCloudError:
    """Return the error of a line of words where rows should begin."""
    degrees = next(filter(None, map(names_in_degrees, _cells_of_line(line))), None)
    if degrees:
        return PointCloudError(f"columns {' and '.join(degrees)} {IN_DEGREES}")
    expected = f"numbers, or names of columns such as {NAMES_OF_AXES}"
    if named is not None:
        expected = f"numbers or units below the names of line {named.line}"
    return PointCloudError(f"line {number} is {shorten(line)}; expected {expected}")


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
    return [names for names in _cells_of_line(line) if "points" in fields_of(names)]


def _cells_of_line(line: str) -> list[list[str]]:
    """Return the words of a line, for each way to separate them."""
    if line.startswith(_COMMENT):
        line = _MARK.sub("", line)
    split = [line.replace('"', "").split(separator) for separator in ",;\t" if separator in line]
    # By spaces, which quoted names and units may have themselves.
    joined = _UNIT.sub(lambda match: re.sub(r"\s", "", match[1]), line)
    split.append([word.strip('"') for word in re.findall(r'"[^"]*"|[^\s"]+', joined)])
    return [[name.strip() for name in names] for names in split]


# Lines before the rows in which names are looked for, from the last on.
_MOST_TITLES = 100


def column_names(titles: list[Title], table: np.ndarray) -> list[str] | None:
    """Return the names of the columns from the last line that has as many, or None if there is no such line."""
    width = table.shape[1]
    mismatch = None
    for title in reversed(titles[-_MOST_TITLES:]):
        for names in _cells_of_line(title.text):
            degrees = names_in_degrees(names) if len(names) == table.shape[1] else []
            if degrees and "points" not in fields_of(names):
                raise PointCloudError(f"columns {' and '.join(degrees)} {IN_DEGREES}")
        for names in names_in_line(title.text):
            # Programs write more or fewer names than there are columns.
            width = table.shape[1]
            # A delimiter may end the line of names.
            while len(names) > width and not names[-1]:
                names.pop()
            # R writes the numbers of rows in a column without a name.
            if len(names) == width - 1 and (table[:, 0] == np.arange(1, len(table) + 1)).all():
                names.insert(0, "")
            if len(names) == width:
                # Of a name that is used and occurs twice, either column may be meant.
                plain = [plain_name(name) for name in names]
                for name in map(plain_name, sum(fields_of(names).values(), [])):
                    if plain.count(name) > 1:
                        raise PointCloudError(f"line {title.line}: two columns are called {shorten(name)}; rename one")
                return names
            # Words of a comment, such as "x y z in meters", matter only if there are columns to name.
            matters = not title.is_comment or (width > 3 and "points" in fields_of(names[:3]))
            if matters and mismatch is None:
                mismatch = f"{width} columns, but line {title.line} names {len(names)}"
    if mismatch and not len(table):
        raise NoPointsError
    if mismatch:
        raise PointCloudError(mismatch)
    return None
