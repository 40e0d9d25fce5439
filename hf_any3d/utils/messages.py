"""Terminal output without control characters, and errors in one line.

Class names, file names, model answers and error messages are untrusted. All output of commands and programs is
printed here.
"""

import csv
import io
import json
import logging
import numbers
import os
import re
import shlex
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from hf_any3d.utils.progress import bars_put_aside

_MAX_REASON = 500
_MAX_MESSAGE = 1200
_WIDTH = 100
# Marks that change the text direction, so that a text is displayed differently from what it contains.
_DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object, keep: str = "") -> str:
    r"""Escape control characters, lone surrogates and direction marks as in JSON, such as `\u001b`.

    Args:
        text: Any object.
        keep: Characters to keep, such as line breaks of an answer.
    """
    shown = []
    for char in str(text):
        # To Python, joiners in emoji, wide spaces, private characters and new ones are not printable.
        is_shown = char.isprintable() or unicodedata.category(char) in ("Cf", "Zs", "Co", "Cn")
        is_harmless = is_shown and char not in _DIRECTION_MARKS
        shown.append(char if is_harmless or char in keep else f"\\u{ord(char):04x}")
    return "".join(shown)


def as_text(name: str) -> str:
    """Return a file name as UTF-8 can hold it: bytes that are none are escaped, as `printable` does it."""
    return name.encode(errors="backslashreplace").decode()


def as_name(text: str) -> str:
    """Return the file name that `as_text` has escaped."""
    return re.sub(r"\\u(dc[89a-f][0-9a-f])", lambda escape: chr(int(escape[1], 16)), text)


def listed(names: Sequence[object], most: int = 5, separator: str = ", ") -> str:
    """Return the first names and how many more there are: "a, b and 7 more", with semicolons "a; b; and 7 more"."""
    shown = separator.join(map(str, names[:most]))
    if len(names) <= most:
        return shown
    joint = " " if separator == ", " else separator
    return f"{shown}{joint}and {len(names) - most:,} more"


def percent(share: float, decimals: int = 0) -> str:
    """Format a share as a percentage, without the sign; shares below 1 never round to 100."""
    shown = f"{100 * share:.{decimals}f}"
    # The upper end of an interval may be 1 up to rounding.
    if share < 1 - 1e-9 and float(shown) >= 100:
        shown = f"{100 - 10**-decimals:.{decimals}f}"
    return shown


def spaced_percents(text: str) -> str:
    """Put a space before each percent sign, which formats such as `{:.0%}` leave out."""
    return re.sub(r"(?<=\d)%", " %", text)


def shown_path(path: str | os.PathLike) -> str:
    """Return a path as pages show it: of an absolute one, whose folders tell other people nothing, the last part.

    A name on the Hub and a relative path stay as they are.
    """
    path = os.fspath(path)
    return os.path.basename(os.path.normpath(path)) if os.path.isabs(path) else path


def shown_command(words: Sequence[str]) -> str:
    """Return a command line as pages show it, with the last parts of absolute paths."""
    shown = []
    for word in words:
        option, sign, value = word.partition("=") if word.startswith("-") else ("", "", word)
        shown.append(f"{option}{sign}{shown_path(value)}")
    return shlex.join(shown)


def cut(text: str, most: int) -> str:
    """Return a text of about `most` characters at most; a longer one ends with a whole word and an ellipsis."""
    if len(text) <= most:
        return text
    # A single long word, such as a path, has no better place.
    words = re.match(rf"(?s)(.{{1,{most}}})(?=\s)", text)
    return f"{words[1].rstrip()} …" if words else f"{text[:most]}…"


def cut_middle(text: str, most: int) -> str:
    """Return a text of about `most` characters at most; of a longer one whole words in its middle are left out."""
    if len(text) <= most:
        return text
    # Backwards, the end is cut as the start is.
    end = cut(text[::-1], most // 2)[::-1]
    return f"{cut(text, most // 2)}{end[1:]}"


def one_line(error: object) -> str:
    """Return the message of an error in one line, or its type if it has none; long ones are cut in the middle."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return printable(cut_middle(text, _MAX_MESSAGE)) or type(error).__name__


def error_lines(error: object) -> list[str]:
    """Return the message of an error in one line, and below it, indented and wrapped, the lines of its notes."""
    notes = [line for note in getattr(error, "__notes__", ()) for line in str(note).splitlines()]
    wrap = partial(textwrap.wrap, width=_WIDTH, break_long_words=False, break_on_hyphens=False)
    # A line that fits keeps its columns.
    below = [piece for line in notes for piece in ([line] if len(line) <= _WIDTH else wrap(line))]
    return [one_line(error), *(f"  {printable(line)}" for line in below)]


def csv_text(table: Iterable[Sequence[object]]) -> str:
    """Return the text of a CSV file: control characters escaped, and nothing that a spreadsheet takes for a formula.

    Args:
        table: Rows of cells. Texts that begin with =, +, - or @ get an apostrophe, as OWASP advises; numbers do not,
            and None is empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in table:
        cells = ["" if value is None else printable(value) for value in row]
        for place, value in enumerate(row):
            if cells[place].lstrip().startswith(("=", "+", "-", "@")) and not isinstance(value, numbers.Number):
                cells[place] = f"'{cells[place]}"
        writer.writerow(cells)
    return text.getvalue()


def print_line(text: object = "", is_error: bool = False) -> None:
    """Print one line, with line breaks escaped."""
    # Characters that the terminal cannot display must not raise errors.
    stream = sys.stderr if is_error else sys.stdout
    line = printable(text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = line.encode(encoding, errors="backslashreplace").decode(encoding)
    with bars_put_aside(stream):
        print(shown, file=stream, flush=True)


def print_json(value: Any) -> None:
    """Print indented JSON."""
    for line in json.dumps(value, indent=2, ensure_ascii=False).split("\n"):
        print_line(line)


# What PEFT imports where it is installed; these libraries speak about kernels for other machines.
_LOADED_BY_PEFT = ("bitsandbytes", "torchao", "torch.utils._pytree")


@contextmanager
def without_remarks(names: Sequence[str] = _LOADED_BY_PEFT) -> Iterator[None]:
    """Leave out what libraries log below errors."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, logging.ERROR))
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def model_errors(model: object, failure: str = "cannot be opened") -> Iterator[None]:
    """Convert all errors of loading or running a model to errors that name it.

    Transformers, torch, PEFT and safetensors raise a dozen types, few of which name the directory. Inconsistent
    settings may be found only when the model is run.

    Raises:
        ValueError: With the name of the model and the reason. ValueError, OSError and ImportError are kept if they
            contain both.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        text = str(error)
        # If no class can load a model, `pipeline` lists all tracebacks; the first one ends with the reason.
        first = text.partition("while loading with")[2].partition("while loading with")[0]
        reasons = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception): .*", first, re.MULTILINE)
        if reasons:
            reason = reasons[-1].partition(": ")[2] if f" {model}: " in reasons[-1] else f"{model}: {reasons[-1]}"
        # transformers lists everything that it supports.
        elif isinstance(error, ValueError) and (str(model) not in text or len(text) > 3 * _MAX_REASON):
            reason = f"{model}: {_shorten(error)}"
        else:
            raise
        raise ValueError(_shorten(reason)) from error
    except Exception as error:
        raise ValueError(f"{model}: this model {failure} ({type(error).__name__}: {_shorten(error)})") from error


def _shorten(error: object) -> str:
    text = one_line(error)
    return text if len(text) <= _MAX_REASON else f"{text[: _MAX_REASON - 3]}..."


def counted(number: int, what: str) -> str:
    """Return a number with its noun, such as "1 file", "2 files", "2 boxes" or "2 meshes"."""
    if number == 1:
        ending = ""
    elif what.endswith(("x", "sh")):
        ending = "es"
    else:
        ending = "s"
    return f"{number:,} {what}{ending}"
