"""Rows of numbers as text: .xyz, .txt, .pts, .csv."""

import re

import numpy as np

from hf_any3d.data.files.attributes import by_name, by_number
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import first_data_line, normalized_lines, numbers, reject_binary

_NUMBER = re.compile(rb"[-+]?(\d|\.\d|nan|inf)", re.IGNORECASE)


def read(source: Source) -> PointCloudData:
    """Read one point per line, its numbers separated by spaces, tabs, commas or semicolons.

    Comments start with # or //. A first line with x, y and z (also after # or //) names the columns, such as
    `x y z red green blue nx ny nz label`; without it, see `attributes.by_number`. A first line with a single whole
    number is the number of points.

    Raises:
        PointCloudError: rows with different numbers of columns, something that is not a number, or fewer rows than
            the first line declares.
    """
    reject_binary(source.data)
    text = normalized_lines(source.data)
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
