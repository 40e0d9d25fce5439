"""Parse numbers in text, for all text formats, and quote pieces of files in errors."""

import io
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from hf_any3d.data.files.source import PointCloudError
from hf_any3d.utils.messages import counted, cut

# NaN and infinity of programs that Visual C++ before 2015 built, whole or rounded: -1.#IND, 1.#QNAN, 1.#INF00, 1.#J;
# and of later ones: -nan(ind). In text formats # begins a comment, which would leave -1 or 1.
_INFINITE = re.compile(rb"(?<![\w.])([-+]?)\d[.,]#INF\d*(?!\w)")
_NOT_A_NUMBER = re.compile(rb"(?<![\w.])[-+]?(?:\d[.,]#(?:[IQSN][A-Z]{0,3}|[JR])\d*(?!\w)|(?i:nan)\(\w*\))")


def unix_lines(data: bytes) -> bytes:
    """Convert line endings to newlines, and remove the byte order mark with which some programs begin a text."""
    if b"\0" in data[:4096]:
        raise PointCloudError("has binary data, not text")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    # One byte is found many times faster than two.
    if b"#" in data and (b".#" in data or b",#" in data) or b"(" in data and b"nan(" in data.lower():
        data = _NOT_A_NUMBER.sub(b"nan", _INFINITE.sub(rb"\1inf", data))
    return data.removeprefix(b"\xef\xbb\xbf")


# 5,432,109.10 or 5.432.109,10, and what may as well be a number with three decimals.
_THOUSANDS = re.compile(rb"[-+]?\d{1,3}(?:(?:,\d{3})+\.\d*|(?:,\d{3}){2,}|(?:\.\d{3})+,\d*|(?:\.\d{3}){2,})")
_SPACED = re.compile(rb"(?m)(?:^|[;\t])[ ]*([-+]?\d{1,3}(?: \d{3})+(?:[.,]\d*)?)[ ]*(?:[;\t]|$)")
_QUOTED_SPACES = re.compile(rb'"[ ]*([-+]?\d+(?: \d+)+[.,\d]*)[ ]*"')
_STARTS = 1 << 20
_QUOTED_COMMA = re.compile(rb'"[ ]*([-+]?\d[\d.]*,[\d.,]*(?:[eE][-+]?\d+)?)[ ]*"')


def without_quotes(text: bytes) -> bytes:
    """Remove quotes; a comma within them belongs to the number, as spreadsheets write `"412,345.67"` or `"1,5"`.

    Raises:
        PointCloudError: Three digits follow each comma and nothing tells thousands from decimals.
    """
    if b'"' not in text:
        return text
    spaced = _QUOTED_SPACES.search(text)
    if spaced:
        raise PointCloudError(f"numbers have thousands separators, such as {shorten(spaced[1])}; expected none")
    quoted = _QUOTED_COMMA.findall(text)
    if quoted:
        grouped = [value for value in quoted if _THOUSANDS.fullmatch(value)]
        is_clear = grouped or any(not re.fullmatch(rb"[-+]?\d{1,3},\d{3}", value) for value in quoted)
        if not is_clear:
            raise PointCloudError(
                f"{shorten(quoted[0])} may have a thousands separator or a decimal comma; write plain numbers"
            )
        has_points = any(value.rfind(b".") > value.rfind(b",") or value.count(b",") > 1 for value in grouped)
        if grouped and has_points:
            text = _QUOTED_COMMA.sub(lambda match: match[0].replace(b",", b""), text)
        else:
            text = _QUOTED_COMMA.sub(lambda match: match[0].replace(b".", b"").replace(b",", b"."), text)
    return text.replace(b'"', b"")


_DELIMITERS = bytes.maketrans(b",;\t", b"   ")
# A comma that is not the only one within the digits of a number.
_LIST_COMMA = re.compile(rb",[^;\s]*,|,(?!\d)|(?<!\d),")


def normalized_lines(text: bytes) -> bytes:
    """Convert line endings to newlines, decimal commas to points, and delimiters (comma, semicolon, tab) to spaces.

    A comma is a decimal one, as in `1,5;2,25;0`, if semicolons, tabs or spaces separate three numbers or more, none of
    which has more than one comma. Beside numbers with points they are refused.
    """
    text = unix_lines(text)
    # Nearly all files of commas and points are without comments.
    has_comments = b"#" in text or b"//" in text
    plain = re.sub(rb"(#|//)[^\n]*", b"", text) if has_comments and b"," in text else text
    # Numbers such as 412,345.67 beside other separators than commas would be cut in pieces. Where they first occur
    # later than this, rows differ in their number of columns, which is an error by itself.
    start = plain[:_STARTS]
    match = re.search(rb"\d,\d{3}", start) if b"," in start else None
    if match:
        row = start[start.rfind(b"\n", 0, match.start()) + 1 : start.find(b"\n", match.start()) % (len(start) + 1)]
        words = [word for word in re.split(rb"[;\s]+", row) if b"," in word]
        if re.search(rb"[;\t ]", row.strip()) and all(map(_THOUSANDS.fullmatch, words)):
            raise PointCloudError(f"numbers have thousands separators, such as {shorten(words[0])}; expected none")
    # 412 345,67;5 432 109,10
    if b" " in start and (b";" in start or b"\t" in start) and (spaced := _SPACED.search(start)):
        raise PointCloudError(f"numbers have thousands separators, such as {shorten(spaced[1])}; expected none")
    first = re.search(rb"(?m)^.*\d[,; \t].*$", plain) if b"," in plain else None
    if first and len(re.split(rb"[;\s]+", first.group().strip(b"; \t\r"))) >= 3 and not _LIST_COMMA.search(plain):
        if b"." in plain:
            decimal = re.findall(rb"[^;\s]*,[^;\s]*", plain)[0]
            raise PointCloudError(
                f"numbers use both decimal commas, such as {shorten(decimal)}, and decimal points; use one"
            )
        # Comments match first, so that commas in them stay.
        text = re.sub(rb"(#|//)[^\n]*|,", lambda match: b"." if match.group() == b"," else match.group(), text)
    return text.translate(_DELIMITERS)


def numbers(text: bytes, *, first_line: int = 1, columns: int | None = None) -> np.ndarray:
    """Read rows of numbers.

    Returns:
        (rows, columns) float64; (0, columns or 0) without rows.
    """
    if not re.search(rb"(?m)^[ ]*[^#\s]", text):
        return np.zeros((0, columns or 0))
    try:
        # Any byte is a letter in latin1, so that wrong ones are reported as no number.
        table = np.loadtxt(io.BytesIO(text), ndmin=2, encoding="latin1")
        return table if columns is None else table.reshape(len(table), columns)
    except ValueError as error:
        raise _at_line(text, first_line, columns, error) from None


def _at_line(text: bytes, first_line: int, columns: int | None, error: Exception) -> PointCloudError:
    if columns is None:
        # Most rows are right, and the first one may be the wrong one.
        widths = Counter(len(line.split(b"#")[0].split()) for line in io.BytesIO(text))
        del widths[0]
        columns = widths.most_common(1)[0][0]
    for number, line in enumerate(io.BytesIO(text), first_line):
        row = line.split(b"#")[0].split()
        if row and len(row) != columns:
            return PointCloudError(f"line {number} has {counted(len(row), 'column')}; expected {columns}")
        for value in row:
            try:
                float(value)
            except ValueError:
                return PointCloudError(f"line {number}: {shorten(value)} is not a number")
    return PointCloudError(f"the numbers cannot be read ({error})")


def integers(values: np.ndarray, what: str) -> np.ndarray:
    """Convert numbers to int64; refuse any that are not whole or exceed the precision of float64."""
    values = np.asarray(values)
    if values.dtype.kind == "f":
        # 2 ** 53 exceeds float16.
        values = values.astype(np.promote_types(values.dtype, np.float64), copy=False)
        with np.errstate(invalid="ignore"):
            bad = ~((np.abs(values) < 2**53) & (values == np.floor(values)))
        if bad.any():
            raise PointCloudError(f"{what} {values[bad][0]:g}; expected a whole number")
    return values.astype(np.int64, copy=False)


def count_of(value: bytes | str, what: str) -> int:
    """Parse a count in a header."""
    if not re.fullmatch(r"\d{1,18}", value if isinstance(value, str) else value.decode("latin1")):
        raise PointCloudError(f"{what} is {shorten(value)}; expected a whole number")
    return int(value)


def positive_number(value: str) -> float | None:
    """Parse a finite number above 0, None if the text is none."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None


def shorten(value: bytes | str) -> str:
    """Quote a piece of a file for an error, cut to 40 characters."""
    text = value.decode("latin1") if isinstance(value, bytes) else value
    return repr(cut(text, 40))


def listed(names: Iterable[str]) -> str:
    """List names in a file for an error: printable, and cut if many or long."""
    text = ", ".join(list(names)[:20]) or "none"
    return "".join(letter if letter.isprintable() else "?" for letter in cut(text, 200))


def blocks_of_lines(text: bytes, counts: list[int]) -> list[bytes]:
    """Cut text into blocks of the given numbers of lines, and one of all lines after them.

    Empty lines are not counted, and stay in the blocks, so that lines keep their numbers.
    """
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    if text and not text.endswith(b"\n"):
        ends = np.append(ends, len(text))
    if text.startswith((b"\n", b" ")) or b"\n\n" in text or b"\n " in text:
        filled = [bool(line.strip()) for line in text.split(b"\n")]
        ends = ends[np.array(filled[: len(ends)], bool)]
    if sum(counts) > len(ends):
        raise PointCloudError(f"ends after {len(ends)} of {sum(counts)} declared lines; the file may be cut off")
    bounds = [0, *(int(ends[line - 1]) if line else 0 for line in np.cumsum(counts).tolist())]
    return [text[start:stop] for start, stop in zip(bounds, [*bounds[1:], len(text)], strict=True)]
