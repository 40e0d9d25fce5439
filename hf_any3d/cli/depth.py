"""`hf-any3d data from-depth`: depth images of cameras and phones as clouds."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.common import SOME_FAILED, option, print_error
from hf_any3d.cli.outputs import CLOUDS
from hf_any3d.utils.messages import one_line, print_line

_DEPTHS = (".png", ".exr")


def from_depth(
    depth: Annotated[
        list[Path],
        typer.Argument(
            metavar="DEPTH…",
            help="Depth images, PNG of 16 bits or EXR; folders and globs of them.",
            show_default=False,
        ),
    ],
    intrinsics: Annotated[
        Path,
        option(
            "JSON with the intrinsics of the camera, of Open3D, Record3D, Polycam, ARKit, ROS or RealSense; or a "
            "folder with one for each image, by its name."
        ),
    ],
    output: Annotated[Path, option("File of a cloud (.ply, .obj, .npz), or for several images a folder.")],
    color: Annotated[
        Path | None, option("Color image of the same view; or a folder with one for each depth image, by its name.")
    ] = None,
    depth_scale: Annotated[
        float | None,
        option("Numbers of the depth images in a meter; by default 1000 for PNG, millimeters, and 1 for EXR.", min=0),
    ] = None,
    depth_truncation: Annotated[
        float | None, option("Leave out points that are farther away, in meters; by default none.", min=0)
    ] = None,
) -> None:
    """Write depth images as upright clouds, in meters, seen from the camera: x right, y up, z towards it."""
    from hf_any3d.data.files import write_point_cloud
    from hf_any3d.data.files.rgbd import read_rgbd

    depth = _images(depth)
    many = len(depth) > 1 or not output.suffix
    if len(depth) > 1 and output.suffix.lower() in CLOUDS:
        raise ValueError(f"--output: {output} for {len(depth)} images; expected a folder")
    places = [output / f"{image.stem}.ply" if many else output for image in depth]
    if twice := [place for place in places if places.count(place) > 1]:
        images = ", ".join(str(image) for image, place in zip(depth, places, strict=True) if place == twice[0])
        raise ValueError(f"{images}: all would be written to {twice[0]}; expected images with different names")
    failed = 0
    for image, target in zip(depth, places, strict=True):
        try:
            cloud = read_rgbd(
                image,
                _beside(intrinsics, image, (".json",)),
                None if color is None else _beside(color, image, (".jpg", ".jpeg", ".png")),
                depth_scale=depth_scale,
                depth_truncation=depth_truncation,
            )
        except (ValueError, OSError) as error:
            if len(depth) == 1:
                raise
            print_error(one_line(error))
            failed += 1
            continue
        # Half a turn about x: cameras count pixels downwards, and y is up in files of clouds.
        cloud.points *= (1, -1, -1)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_point_cloud(target, cloud)
        print_line(f"{target}: {len(cloud):,} points")
    if failed:
        print_error(f"{failed} of {len(depth)} images could not be used")
        raise typer.Exit(SOME_FAILED)


def _images(places: list[Path]) -> list[Path]:
    """Return images in the order given, those of folders and globs by name.

    Raises:
        FileNotFoundError: A folder or glob has none.
    """
    images: list[Path] = []
    for place in places:
        if not place.is_dir() and (place.exists() or not glob.has_magic(str(place))):
            images.append(place)
            continue
        names = place.iterdir() if place.is_dir() else map(Path, glob.glob(str(place), recursive=True))
        inside = sorted(name for name in names if name.suffix.lower() in _DEPTHS and not name.name.startswith("."))
        if not inside:
            raise FileNotFoundError(f"{place}: no depth image; expected {' or '.join(_DEPTHS)}")
        images += inside
    return images


def _beside(place: Path, image: Path, endings: tuple[str, ...]) -> Path:
    """Return a file, or the one in a folder that has the name of an image.

    Raises:
        FileNotFoundError: The folder has none.
    """
    if not place.is_dir():
        return place
    found = [place / f"{image.stem}{ending}" for ending in endings]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{place}: no {' or '.join(path.name for path in found)} for {image}")
    return path
