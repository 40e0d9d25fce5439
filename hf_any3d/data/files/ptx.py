"""PTX, the text format of Leica's scanners: all scans in one frame, moved by the transforms in their headers."""

from typing import Any

import numpy as np

from hf_any3d.data.files.attributes import as_bytes, join_scans, usable_colors, usable_numbers
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.poses import finite, linear_part
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import count_of, normalized_lines, numbers

# Columns and rows; position and three axes of the scanner; four rows of the transform.
_HEADER_LINES = 10
# x y z and an intensity, perhaps with a color.
_WIDTHS = (4, 7)
# Bytes of a point in the table of numbers and the arrays made of it.
_POINT_SIZE = 7 * 8 + 2 * 24


def read(source: Source) -> PointCloudData:
    """Read all scans of a file as one cloud in their common frame, in meters, z up.

    Each scan is moved by the transform of its header, or by the position and axes there if all numbers of the
    transform are 0. Directions without a return, stored as 0 0 0, are left out with a warning. Colors and intensities,
    from 0 to 1, are kept where all scans have them; those that are 0 everywhere are none.
    """
    text = normalized_lines(source.data)
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    if not text.endswith(b"\n"):
        ends = np.append(ends, len(text))
    starts = np.concatenate([[0], ends])  # of each line, and the end of the last
    lines = len(ends)
    at = 0
    scans: list[dict[str, Any]] = []
    without_return = total = 0
    while at < lines:
        if not text[starts[at] : starts[at + 1]].strip():
            at += 1
            continue
        body = at + _HEADER_LINES
        head = [text[starts[n] : starts[n + 1]] for n in range(at, min(body, lines))]
        columns, rows = (
            count_of(line.strip(), f"line {at + number}, the number of {name} of a scan,")
            for number, (line, name) in enumerate(zip(head[:2], ("columns", "rows"), strict=True), 1)
        )
        # The scanner's position and axes say the same as the transform, which programs apply.
        axes = numbers(b"".join(head[2:6]), first_line=at + 3, columns=3)
        transform = numbers(b"".join(head[6:]), first_line=at + 7, columns=4)
        if transform.shape != (4, 4):
            raise PointCloudError(f"no transform of 4 x 4 numbers from line {at + 7} on; it may be cut off")
        if transform.any():
            pose = _pose(transform[:3, :3], transform[3, :3], f"from line {at + 7} on")
        else:
            pose = _pose(axes[1:], axes[0], f"from line {at + 3} on")
        count = columns * rows
        total += count
        source.check(points=total, decoded=_POINT_SIZE * total)
        at = body + count
        if at > lines:
            raise PointCloudError(
                f"the scan of line {body - _HEADER_LINES + 1} has {count} points, but {lines - body} lines follow; "
                "the file may be cut off"
            )
        if count:
            table = numbers(text[starts[body] : starts[at]], first_line=body + 1)
            scan, missing = _scan(table, count, pose, source)
            without_return += missing
            scans += [scan] if len(scan["points"]) else []
    if without_return:
        source.warn(f"{without_return:,} of {total:,} directions of the scans have no return and are skipped")
    joined = join_scans(scans or [{"points": np.zeros((0, 3))}], source)
    return PointCloudData(**joined, up_axis="z", meters_per_unit=1.0)


def _pose(axes: np.ndarray, place: np.ndarray, lines: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the axes of a scan (3, 3), by which rows of points are multiplied from the left, and its place (3,)."""
    turn = linear_part(axes, f"the rotation {lines}", is_rigid=True)
    return turn, finite(place, f"the position {lines}")


def _scan(
    table: np.ndarray, count: int, pose: tuple[np.ndarray, np.ndarray], source: Source
) -> tuple[dict[str, Any], int]:
    """Return the points of a scan with what belongs to them, and how many directions have none."""
    if len(table) != count or table.shape[1] not in _WIDTHS:
        raise PointCloudError(
            f"a scan of {count} points has {len(table)} rows of {table.shape[1]} numbers; expected 4 or 7"
        )
    # NaN compares as unequal, so that it is reported.
    returned = (table[:, :3] != 0).any(axis=1)  # (points,)
    table = table[returned]
    points = table[:, :3]
    turn, place = pose
    if place.any() or not np.array_equal(turn, np.eye(3)):  # which keeps the decimals by which the step is told
        points = points @ turn + place
    scan: dict[str, Any] = {"points": points, "scanner": place}
    intensity = usable_numbers(table[:, 3], "intensities", source)
    if intensity is not None:
        scan["intensity"] = intensity
    if table.shape[1] > 4 and len(table) and (colors := usable_colors(as_bytes(table[:, 4:]), source)) is not None:
        scan["colors"] = colors
    return scan, int((~returned).sum())
