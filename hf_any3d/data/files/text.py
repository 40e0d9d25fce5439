"""Rows of numbers as text: .xyz, .txt, .pts, .csv."""

import re
from pathlib import Path

import numpy as np

from hf_any3d.data.files.attributes import by_name, by_number
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import (
    first_data_line,
    normalized_lines,
    numbers,
    reject_binary,
    with_decimal_points,
)
from hf_any3d.registry import FORMATS

_NUMBER = re.compile(rb"[-+]?(\d|\.\d|nan|inf)", re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf)", re.IGNORECASE)


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
    lines = [re.split(r"[\s,;]+", line.strip()) for line in start.decode("latin1").splitlines() if line.strip()]
    if len(start) == 8192 and len(lines) > 1:
        lines.pop()  # cut off
    head = {word.lower().lstrip("/#") for word in lines[0]} if lines else set()
    rows = [words for words in lines if not words[0].startswith(("#", "//"))][:50]
    if not rows or {"x", "y", "z"} <= head:
        return bool(lines) and not rows  # comments alone
    numeric = sum(all(_WHOLE_NUMBER.fullmatch(word) for word in words if word) for words in rows)
    return 2 * numeric < len(rows)


def read(source: Source) -> PointCloudData:
    """Read one point per line, its numbers separated by spaces, tabs, commas or semicolons.

    Where semicolons, tabs or spaces separate them, numbers may have decimal commas instead of points.

    Comments start with # or //. A first line with x, y and z (also after # or //) names the columns, such as
    `x y z red green blue nx ny nz label`; without it, see `attributes.by_number`. A first line with a single whole
    number is the number of points.

    Raises:
        PointCloudError: rows with different numbers of columns, something that is not a number, or fewer rows than
            the first line declares.
    """
    reject_binary(source.data)
    text = normalized_lines(with_decimal_points(source.data) if b"," in source.data else source.data)
    line = 1
    head, _, rest = text.partition(b"\n")
    names = [name.decode("latin1").lower() for name in head.replace(b"//", b" ").replace(b"#", b" ").split()]
    if {"x", "y", "z"} <= set(names):
        text, line = rest, 2
    else:
        names = []
    if b"//" in text:
        text = re.sub(rb"//[^\n]*", b"", text)
    declared = None
    # PTS files start with the number of points.
    if re.fullmatch(rb"\s*\d{1,18}\s*", head):
        declared, text, line = int(head), rest, 2
    first = first_data_line(text)
    if not first:
        raise PointCloudError("there are no points; expected lines of at least 3 numbers")
    if not _NUMBER.match(first.split()[0]):
        raise PointCloudError(f"starts with {first[:40]!r}; expected numbers, or a line with the names x, y and z")
    source.check(points=max(declared or 0, text.count(b"\n")))
    table = numbers(text, first_line=line)  # (points, columns)
    if declared is not None and declared != len(table):
        raise PointCloudError(f"{len(table)} points where the first line declares {declared}; it may be cut off")
    if names:
        if len(names) != table.shape[1]:
            raise PointCloudError(f"{table.shape[1]} columns, but line 1 names {len(names)}")
        return PointCloudData(**by_name({name: table[:, i] for i, name in enumerate(names)}, source))
    if table.shape[1] < 3:
        raise PointCloudError(f"{table.shape[1]} columns; expected at least x, y and z")
    return PointCloudData(**by_number(np.ascontiguousarray(table), source))
