"""The body of a PLY file: elements, which are rows of scalars and of lists."""

from dataclasses import dataclass

import numpy as np

from .errors import PointCloudError
from .tables import blocks_of_lines, integers, normalized_lines, numbers, shorten

# A scalar property gives its column; a list property gives the lengths of its rows and all its values in a row.
Values = dict[str, "np.ndarray | tuple[np.ndarray, np.ndarray]"]


@dataclass
class Element:
    """An element of the header.

    Attributes:
        name: such as "vertex".
        count: how many rows it declares.
        properties: name, numpy type of the values, and numpy type of the length for a list, else None.
    """

    name: str
    count: int
    properties: list[tuple[str, str, str | None]]

    def add(self, name: str, kind: str, length: str | None) -> None:
        """Declare one more property.

        Raises:
            PointCloudError: if there is one of that name.
        """
        if any(name == known for known, _, _ in self.properties):
            raise PointCloudError(f"element {shorten(self.name)} declares property {shorten(name)} twice")
        self.properties.append((name, kind, length))

    @property
    def has_lists(self) -> bool:
        """Whether rows can differ in size."""
        return any(length for _, _, length in self.properties)

    def row(self, order: str, lengths: list[int]) -> np.dtype:
        """Give the numpy type of a row whose lists have these lengths."""
        fields, sizes = [], iter(lengths)
        for i, (_, kind, length) in enumerate(self.properties):
            if length:
                fields.append((f"length{i}", order + length))
                fields.append((f"value{i}", order + kind, (next(sizes),)))
            else:
                fields.append((f"value{i}", order + kind))
        return np.dtype(fields)


def read_binary(data: bytes, start: int, elements: list[Element], order: str) -> list[Values]:
    """Read all elements from their bytes.

    Args:
        data: the file.
        start: where the body starts.
        elements: what the header declares.
        order: "<" or ">".

    Returns:
        The values of each element.

    Raises:
        PointCloudError: if the file ends too early or a length is negative.
    """
    found = []
    for element in elements:
        if not element.properties:
            found.append({})
            continue
        left = len(data) - start
        smallest = element.row(order, [0] * len(element.properties)).itemsize
        if element.count * smallest > left:
            raise PointCloudError(
                f"holds {left} bytes for element {shorten(element.name)}; {element.count} rows of at least "
                f"{smallest} bytes are declared, so the file may be cut off"
            )
        values, start = _equal_rows(data, start, element, order) or _unequal_rows(data, start, element, order)
        found.append(values)
    return found


def _equal_rows(data: bytes, start: int, element: Element, order: str) -> tuple[Values, int] | None:
    lengths = []
    if element.has_lists and element.count:
        lengths = [len(part) for part in _one_row(data, start, element, order)[0] if part is not None]
    row = element.row(order, lengths or [0] * len(element.properties))
    stop = start + element.count * row.itemsize
    if stop > len(data):
        return None
    table = np.frombuffer(data, row, element.count, start)
    values, sizes = {}, iter(lengths)
    for i, (name, _, length) in enumerate(element.properties):
        column = table[f"value{i}"]
        if length and element.count:
            size = next(sizes)
            if (table[f"length{i}"] != size).any():
                return None
            values[name] = (np.full(element.count, size), column.reshape(-1))
        else:
            values[name] = (np.zeros(0, int), column.reshape(-1)) if length else column
    return values, stop


def _unequal_rows(data: bytes, start: int, element: Element, order: str) -> tuple[Values, int]:
    lists = {i: ([], []) for i, (_, _, length) in enumerate(element.properties) if length}
    scalars = {i: [] for i, (_, _, length) in enumerate(element.properties) if not length}
    for _ in range(element.count):
        parts, stop = _one_row(data, start, element, order, scalars)
        for i, (lengths, pieces) in lists.items():
            lengths.append(len(parts[i]))
            pieces.append(parts[i])
        start = stop
    values = {}
    for i, (name, kind, length) in enumerate(element.properties):
        if length:
            lengths, pieces = lists[i]
            values[name] = (np.array(lengths), np.concatenate(pieces) if pieces else np.zeros(0, kind))
        else:
            values[name] = np.frombuffer(b"".join(scalars[i]), order + kind)
    return values, start


def _one_row(data: bytes, start: int, element: Element, order: str, scalars: dict | None = None) -> tuple[list, int]:
    parts = []
    for i, (name, kind, length) in enumerate(element.properties):
        size = 1
        if length:
            size = int(_take(data, start, order + length, 1, element)[0])
            if size < 0:
                raise PointCloudError(f"a list {shorten(name)} of element {shorten(element.name)} has length {size}")
            start += int(length[1])
        values = _take(data, start, order + kind, size, element)
        start += size * int(kind[1])
        parts.append(values if length else None)
        if not length and scalars is not None:
            scalars[i].append(values.tobytes())
    return parts, start


def _take(data: bytes, start: int, kind: str, count: int, element: Element) -> np.ndarray:
    if start + count * int(kind[2]) > len(data):
        raise PointCloudError(f"ends within element {shorten(element.name)}; the file may be cut off")
    return np.frombuffer(data, kind, count, start)


def read_ascii(text: bytes, elements: list[Element]) -> list[Values]:
    """Read all elements from their lines, one row a line.

    Args:
        text: the file behind its header.
        elements: what the header declares.

    Returns:
        The values of each element.

    Raises:
        PointCloudError: if there are too few lines, or a line does not hold what it should.
    """
    filled = [element for element in elements if element.properties]
    blocks = iter(blocks_of_lines(normalized_lines(text), [element.count for element in filled]))
    return [_ascii_rows(next(blocks), element) if element.properties else {} for element in elements]


def _ascii_rows(block: bytes, element: Element) -> Values:
    if not element.has_lists:
        table = numbers(block, columns=len(element.properties))
        if len(table) != element.count:
            raise PointCloudError(
                f"element {shorten(element.name)} has {len(table)} rows; {element.count} are declared"
            )
        return {name: _typed(table[:, i], kind) for i, (name, kind, _) in enumerate(element.properties)}
    flat = numbers(block.replace(b"\n", b" "))  # (1, all numbers)
    flat = flat.reshape(-1)
    values = {name: ([], []) if length else [] for name, _, length in element.properties}
    at = 0
    for _ in range(element.count):
        for name, _, length in element.properties:
            if at >= len(flat):
                raise PointCloudError(f"ends within element {shorten(element.name)}; the file may be cut off")
            if not length:
                values[name].append(flat[at])
                at += 1
                continue
            size = int(integers(flat[at : at + 1], f"a list {shorten(name)} has length")[0])
            at += 1
            if size < 0 or at + size > len(flat):
                raise PointCloudError(
                    f"a list {shorten(name)} of element {shorten(element.name)} has length {size}, too long"
                )
            values[name][0].append(size)
            values[name][1].append(flat[at : at + size])
            at += size
    if at != len(flat):
        raise PointCloudError(f"the lines of element {shorten(element.name)} hold {len(flat)} numbers; expected {at}")
    return {
        name: (np.array(values[name][0], int), np.concatenate([*values[name][1], np.zeros(0)]))
        if length
        else _typed(np.array(values[name]), kind)
        for name, kind, length in element.properties
    }


def _typed(column: np.ndarray, kind: str) -> np.ndarray:
    # Colours of an integer type count to 255 or 65535, so the declared type must not be lost.
    if kind[0] in "iu" and np.isfinite(column).all() and (np.abs(column) < 2**31).all():
        whole = column.astype(np.int64)
        limits = np.iinfo(kind)
        if (whole == column).all() and (not len(whole) or limits.min <= whole.min() and whole.max() <= limits.max):
            return whole.astype(kind)
    return column
