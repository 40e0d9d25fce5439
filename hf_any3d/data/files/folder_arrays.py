"""Files of a folder that are no clouds themselves: arrays beside points, and images beside meshes."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from hf_any3d.registry import FORMATS

OF_POINTS = "colors, normals, labels or intensities of the points beside them; an .npz holds both as one cloud"
"""Why arrays beside points are left out of a folder."""

IMAGES = (".png", ".jpg", ".jpeg", ".tga", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".exr", ".heic")

_ARRAYS = (".npy", ".npz", ".txt", ".csv")
# Words for what points have, perhaps after the name of what they belong to
_VALUES = re.compile(
    r"(?P<base>.*?)[ _.-]?(colou?rs?|rgba?|normals?|intensit(y|ies)|strengths?|reflectances?|labels?|segment(20|200)?|"
    r"segs?|segmentations?|semantics?|semantic_?(gt|labels?)(20|200)?|instances?|instance_?(gt|labels?|ids?)|classes)",
    re.IGNORECASE,
)
_POINTS = re.compile(
    r"(?P<base>.*?)[ _.-]?(points?|xyz|coords?|coordinates|pos|positions?|pcs?|pcd|(point_?)?clouds?|vert(s|ices))",
    re.IGNORECASE,
)
# Files that name images as their textures.
_TEXTURED = (".obj", ".mtl", ".gltf", ".glb")


def arrays_beside_points(names: Iterable[str]) -> dict[str, str]:
    """Find arrays whose names say that they belong to the points of another file of the same folder.

    These are `room_colors.npy` beside `room_points.npy` or `room.npy`, `color.npy` beside `coord.npy`, and
    `colors/room.npy` beside `points/room.npy`.

    Args:
        names: paths with slashes.

    Returns:
        Name of an array -> name of its points.
    """
    names = list(names)
    # Folder and name without a word for points -> file of points
    points: dict[tuple[PurePosixPath, str], str] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix[1:].lower() not in FORMATS or _VALUES.fullmatch(path.stem):
            continue
        points.setdefault((path.parent, path.stem), name)
        match = _POINTS.fullmatch(path.stem)
        if match:
            points.setdefault((path.parent, match["base"]), name)
        if _is_named_by(_POINTS, path.parent):
            # A slash marks the key of pairs of folders, such as points/room.npy and colors/room.npy.
            points.setdefault((path.parent.parent, f"/{path.stem}"), name)
    points_of_arrays = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() not in _ARRAYS:
            continue
        match = _VALUES.fullmatch(path.stem)
        if match and (path.parent, match["base"]) in points:
            points_of_arrays[name] = points[path.parent, match["base"]]
        elif _is_named_by(_VALUES, path.parent) and (path.parent.parent, f"/{path.stem}") in points:
            points_of_arrays[name] = points[path.parent.parent, f"/{path.stem}"]
    return points_of_arrays


def _is_named_by(pattern: re.Pattern[str], folder: PurePosixPath) -> bool:
    """Return whether a folder has the name of a kind of values and nothing else."""
    match = pattern.fullmatch(folder.name)
    return match is not None and not match["base"]


def photos(names: Iterable[str]) -> list[str]:
    """Find images in folders in which no file, there or directly above, could have them as its texture."""
    suffixes: dict[PurePosixPath, set[str]] = defaultdict(set)
    images = []
    for name in names:
        path = PurePosixPath(name)
        suffixes[path.parent].add(path.suffix.lower())
        if path.suffix.lower() in IMAGES:
            images.append(path)
    # Textures lie beside their mesh, or in a folder below it.
    around = [suffixes[path.parent] | suffixes.get(path.parent.parent, set()) for path in images]
    return [str(path) for path, others in zip(images, around, strict=True) if others.isdisjoint(_TEXTURED)]
