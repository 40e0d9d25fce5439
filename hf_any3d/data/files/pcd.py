"""PCD, the format of the Point Cloud Library: ASCII, binary and compressed binary."""

import re
from math import prod

import numpy as np

from hf_any3d.data.files.attributes import by_name, missing_rows, with_stand_ins
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.poses import rotations
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.stated_units import unit_of_comments
from hf_any3d.data.files.text_numbers import count_of, integers, normalized_lines, numbers, shorten
from hf_any3d.data.options import one_of

_KINDS = {"F": "f", "I": "i", "U": "u"}
_VIEWPOINT = 7  # numbers of the place of the sensor, and of the quaternion w x y z of its turn
NOT_READ = "padding, that is, fields named `_`"
_HEADER = re.compile(rb"^[ \t]*DATA[ \t]+(\S+)[ \t]*(\r\n|\n|$)", re.MULTILINE)


def read(source: Source) -> PointCloudData:
    """Read x y z, rgb or rgba (packed, as float or integer), and the fields that `attributes.by_name` knows.

    Others are left out with a warning, and so is the place of the sensor (VIEWPOINT), by which no points are moved. In
    organized clouds (HEIGHT above 1) NaN points are pixels without a measurement and are left out with a warning.
    """
    header, kind, start = read_header(source.data)
    width, height = (count_of(" ".join(header[key]), key) for key in ("WIDTH", "HEIGHT"))
    if "POINTS" in header:
        count_of(" ".join(header["POINTS"]), "POINTS")
    columns = _columns(source, header, kind, start, width * height)
    # Fields of several numbers for each point, such as descriptors.
    several = zip(header["FIELDS"], header.get("COUNT", ()), strict=False)
    source.leave_out(name for name, length in several if length not in ("0", "1") and name != "_")
    scanner = _scanner(header.get("VIEWPOINT", []), source)
    for name in ("rgb", "rgba"):
        if name in columns:
            columns |= _unpacked_colors(columns.pop(name), name)
    if height > 1 and {"x", "y", "z"} <= columns.keys():
        # An organized cloud is the image of a depth camera, with pixels that are NaN by design.
        measured = np.asarray(np.isfinite(np.stack([columns[axis] for axis in "xyz"])).all(axis=0))
        if measured.any() and not measured.all():
            source.warn(f"{(~measured).sum()} of {len(measured)} points have no measurement (NaN) and are skipped")
            columns = {name: column[measured] for name, column in columns.items()}
    comments = re.findall(r"(?m)^[ \t]*#+(.*)", source.data[:start].decode("latin1"))
    cloud = {**unit_of_comments(comments, source), **by_name(columns, source)}
    if scanner is not None:
        cloud["scanner"] = scanner
    elif height > 1:
        # An image is seen from the origin of its camera.
        cloud["scanner"] = np.zeros(3)
    return PointCloudData(**cloud)


def _scanner(viewpoint: list[str], source: Source) -> np.ndarray | None:
    """Return the place of the sensor (3,), None where it has neither moved nor turned, or its pose has no numbers."""
    try:
        numbers = np.array([float(word) for word in viewpoint])
    except ValueError:
        return None
    if len(numbers) != _VIEWPOINT:
        return None
    # Points are not moved by it, so they stay what they are where it is NaN.
    is_known = np.isfinite(numbers).all()
    if is_known and not numbers[:3].any() and np.allclose(rotations(numbers[None, 3:], "VIEWPOINT"), np.eye(3)):
        return None
    source.leave_out(["VIEWPOINT"], "points are not moved by the place of the sensor")
    return numbers[:3] if np.isfinite(numbers[:3]).all() else None


def _columns(source: Source, header: dict[str, list[str]], kind: str, start: int, count: int) -> dict[str, np.ndarray]:
    """Read the fields with one value for each point."""
    names, row = row_type(header)
    source.note_columns(names_of(header))
    if one_of("DATA", kind, ("ascii", "binary", "binary_compressed")) == "ascii":
        keys = row.names or ()
        sizes = [prod(row[key].shape) for key in keys]
        first_line = source.data.count(b"\n", 0, start) + 1
        lines = numbers(normalized_lines(source.data[start:]), first_line=first_line, columns=sum(sizes))
        if len(lines) != count:
            raise PointCloudError(f"{len(lines)} points; the header declares {count}, so the file may be cut off")
        # The first column of each field: one with COUNT n has n columns.
        places = dict(zip(keys, np.cumsum([0, *sizes])[:-1].tolist(), strict=True))
        columns = {name: lines[:, places[key]] for name, key in names.items()}
        for name in {"rgb", "rgba"} & columns.keys():
            columns |= _colors_of_text(columns.pop(name), name, row[names[name]].base)
    elif kind == "binary":
        # Named fields have one value per point, but numpy gives each an axis for its COUNT.
        table = np.frombuffer(source.data, row, count, start)  # a view: nothing is copied
        columns = {name: table[key][:, 0] for name, key in names.items()}
        source.warn_of_rest(source.data[start + count * row.itemsize :])
    else:
        # At least the three float32 coordinates that each point becomes.
        source.check(decoded=count * max(row.itemsize, 12))
        size = int.from_bytes(source.data[start : start + 4], "little")
        data = decompress(source.data[start + 8 : start + 8 + size], count * row.itemsize)
        # Compressed files store one field after the other.
        starts: dict[str, int] = {key: count * field[1] for key, field in (row.fields or {}).items()}
        columns = {name: np.frombuffer(data, row[key].base, count, starts[key]) for name, key in names.items()}
    source.check(points=count)
    return columns


def _unpacked_colors(packed: np.ndarray, name: str) -> dict[str, np.ndarray]:
    if packed.dtype.kind == "f":
        # The bits of the float are the color, 0x00RRGGBB.
        packed = np.ascontiguousarray(packed, np.float32).view(np.uint32)
    channels = {"red": 16, "green": 8, "blue": 0} | ({"alpha": 24} if name == "rgba" else {})
    if packed.dtype.itemsize == 4:
        # The bytes of the number are the channels, the lowest first.
        bytes_ = np.ascontiguousarray(packed, packed.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, 4)
        return {channel: bytes_[:, shift // 8] for channel, shift in channels.items()}
    packed = packed.astype(np.int64)
    return {channel: (packed >> shift & 255).astype(np.uint8) for channel, shift in channels.items()}


def read_header(data: bytes) -> tuple[dict[str, list[str]], str, int]:
    """Parse the header: its entries as words, the kind of data, and the offset of the data."""
    end = _HEADER.search(data)
    if not end:
        raise PointCloudError(f"incomplete PCD header (no 'DATA' line); the file starts with {shorten(data[:24])}")
    header = {}
    for line in data[: end.start()].decode("latin1").splitlines():
        words = line.split("#")[0].split()
        if words:
            header[words[0].upper()] = words[1:]
    # The older name, which the Point Cloud Library reads too.
    if "COLUMNS" in header:
        header["FIELDS"] = header.pop("COLUMNS")
    return header, end.group(1).decode("latin1").lower(), end.end()


def names_of(header: dict[str, list[str]]) -> list[str]:
    """Return the names of the fields with one value per point, each as often as it is there."""
    counts = header.get("COUNT", ["1"] * len(header["FIELDS"]))
    pairs = zip(map(str.lower, header["FIELDS"]), counts, strict=False)
    return [name for name, count in pairs if count == "1" and name != "_"]


def row_type(header: dict[str, list[str]]) -> tuple[dict[str, str], np.dtype]:
    """Return the name in the row type of each field with one value per point, and the row type."""
    fields = []
    columns = {}
    counts = header.get("COUNT", ["1"] * len(header["FIELDS"]))
    for i, (name, size, kind, count) in enumerate(
        zip(map(str.lower, header["FIELDS"]), header["SIZE"], header["TYPE"], counts, strict=True)
    ):
        # Numbered, as padding may have one name many times, which numpy refuses.
        fields.append((f"f{i}", f"<{_KINDS[kind.upper()]}{count_of(size, 'SIZE')}", (count_of(count, "COUNT"),)))
        if count != "1" or name == "_":  # padding is called "_" and may occur often
            continue
        # Of two of one name neither is read, which `names_of` tells.
        columns[name] = f"f{i}"
    return columns, np.dtype(fields)


def _colors_of_text(packed: np.ndarray, name: str, kind: np.dtype) -> dict[str, np.ndarray]:
    """Return the channels of packed colors (points,) of a type in the file, NaN where a point has none."""
    missing = missing_rows(packed)
    if missing.all():
        return dict.fromkeys(("red", "green", "blue"), packed)
    packed = with_stand_ins(packed, missing)
    # They are bits, so the declared type matters.
    packed = packed.astype(kind) if kind.kind == "f" else integers(packed, "a color is")
    channels = _unpacked_colors(packed, name)
    if not missing.any():
        return channels
    return {channel: np.where(missing, np.nan, values) for channel, values in channels.items()}


def decompress(data: bytes, size: int) -> bytearray:
    """Decompress LZF to `size` bytes.

    A control byte below 32 is followed by that many plain bytes plus one. Others refer back: three bits are the
    length minus two (seven: add the next byte), the other five and the next byte the distance minus one.
    """
    out = bytearray()
    at = 0
    stop = len(data)
    # Not beyond the declared size: a few bytes can stand for many.
    while at < stop and len(out) <= size:
        control = data[at]
        at += 1
        if control < 32:
            out += data[at : at + control + 1]
            at += control + 1
            continue
        # A reference: three bits of length, thirteen of distance; length 7 says that one more byte is added.
        length = control >> 5
        if length == 7 and at < stop:
            length += data[at]
            at += 1
        if at >= stop:
            break
        start = len(out) - ((control & 31) << 8) - data[at] - 1
        at += 1
        length += 2
        if start < 0:
            break  # damaged
        piece = out[start : start + length]
        # A reference may overlap its own output; then the piece repeats.
        out += piece if len(piece) == length else (piece * (length // len(piece) + 1))[:length]
    if len(out) != size or at != stop:
        raise PointCloudError(f"the compressed data does not give the declared {size} bytes; the file may be cut off")
    return out
