"""Files of a folder that have the ending of a cloud and belong to another one."""

from collections.abc import Iterable
from pathlib import PurePosixPath

# The other files of a sparse model of COLMAP, which hold no points.
_SPARSE_MODEL = frozenset({"cameras", "images", "rigs", "frames"})


def without_companions(names: Iterable[str]) -> list[str]:
    """Return the files of a list that are no part of another.

    Left out are buffers of glTF, .bin beside a .gltf; what COLMAP writes beside points3D.txt or .bin; and the classes
    of points that Label Cloud writes as labels/segmentation/NAME.bin.
    """
    names = list(names)
    paths = [PurePosixPath(name) for name in names]
    with_buffers = {path.parent for path in paths if path.suffix.lower() == ".gltf"}
    sparse = {path.parent for path in paths if path.name.lower() in ("points3d.txt", "points3d.bin")}

    def is_companion(path: PurePosixPath) -> bool:
        ending = path.suffix.lower()
        is_labels = path.parts[-3:-1] == ("labels", "segmentation")
        if ending == ".bin" and (is_labels or path.parent in with_buffers):
            return True
        return ending in (".bin", ".txt") and path.parent in sparse and path.stem in _SPARSE_MODEL

    return [name for name, path in zip(names, paths, strict=True) if not is_companion(path)]
