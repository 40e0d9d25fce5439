"""LZF decompression, as binary_compressed PCD files need it."""

from hf_any3d.data.files.errors import PointCloudError

# A reference of three bytes gives at most 264, the best that LZF can do.
MAX_RATIO = 88


def decompress(data: bytes, size: int) -> bytearray:
    """Undo LZF compression.

    A control byte below 32 is followed by that many plain bytes plus one. Others refer back: three bits are the
    length minus two (seven means that a byte to be added follows), the other five and the next byte the distance
    minus one.

    Args:
        data: the compressed bytes.
        size: how many bytes they must give.

    Returns:
        `size` bytes.

    Raises:
        PointCloudError: if the data is damaged or gives another number of bytes.
    """
    if size > len(data) * MAX_RATIO:
        raise PointCloudError(f"{len(data)} compressed bytes cannot give {size}")
    out = bytearray()
    at, stop = 0, len(data)
    while at < stop and len(out) <= size:
        control = data[at]
        at += 1
        if control < 32:
            out += data[at : at + control + 1]
            at += control + 1
            continue
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
            raise PointCloudError("the compressed data refers to bytes before its start")
        piece = out[start : start + length]
        # A reference may overlap what it writes; then the piece repeats.
        out += piece if len(piece) == length else (piece * (length // len(piece) + 1))[:length]
    if len(out) != size or at != stop:
        raise PointCloudError(f"the compressed data does not give the declared {size} bytes; the file may be cut off")
    return out
