"""Telling the type of a file from its bytes, for bytes that come without a name."""

_STARTS = (
    (b"ply\n", "ply"),
    (b"ply\r", "ply"),
    (b"\x93NUMPY", "npy"),
    (b"PK\x03\x04", "npz"),
    (b"glTF", "glb"),
    (b"LASF", "las"),
    (b"# .PCD", "pcd"),
    (b"VERSION", "pcd"),
    (b"OFF", "off"),
    (b"solid ", "stl"),
)


def file_type_of(data: bytes) -> str | None:
    """Tell the type of a file from its first bytes.

    Text without a mark of its own (.obj, .xyz, .pts, .txt, .csv, .gltf) cannot be told.

    Args:
        data: the whole file.

    Returns:
        A type that `read_point_cloud` takes, or None.
    """
    for start, file_type in _STARTS:
        if data.startswith(start):
            return file_type
    # Binary STL has a free header of 80 bytes, then the number of triangles, 50 bytes each.
    if len(data) >= 84 and len(data) == 84 + 50 * int.from_bytes(data[80:84], "little"):
        return "stl"
    return None
