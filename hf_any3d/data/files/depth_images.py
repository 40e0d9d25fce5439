"""Find depth images, and the files of intrinsics and colors that belong to them."""

from __future__ import annotations

import glob
from pathlib import Path

from hf_any3d.hub.names import similar_path

_DEPTHS = (".png", ".exr")


def depth_images(place: Path) -> list[Path]:
    """Return an image, or those of a folder or glob by name."""
    if place.is_file():
        return [place]
    names = place.iterdir() if place.is_dir() else map(Path, glob.glob(str(place), recursive=True))
    # Hidden files, such as those that macOS adds to archives, are no images.
    images = sorted(name for name in names if name.suffix.lower() in _DEPTHS and not name.name.startswith("."))
    if not images:
        raise FileNotFoundError(f"{place}: no depth image{similar_path(place)}; expected {' or '.join(_DEPTHS)}")
    return images


def file_beside(place: Path, image: Path, endings: tuple[str, ...]) -> Path:
    """Return a file, or the one in a folder that has the name of an image."""
    if not place.is_dir():
        return place
    names = [f"{image.stem}{ending}" for ending in endings]
    # Without such a file the first name is returned, which the error of the reader then names.
    return next((place / name for name in names if (place / name).is_file()), place / names[0])
