"""`hf-any3d data from-depth`: depth images of cameras and phones as clouds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.errors import SOME_FAILED, print_error
from hf_any3d.cli.options import option, output_option
from hf_any3d.cli.outputs import CLOUDS, check_output
from hf_any3d.utils.messages import one_line, print_line


def from_depth(
    depth: Annotated[
        list[Path],
        typer.Argument(metavar="DEPTH…", help="Depth images (16-bit PNG or EXR), folders or globs."),
    ],
    intrinsics: Annotated[
        Path,
        option(
            "Camera intrinsics as JSON from Open3D, Record3D, Polycam, ARKit, ROS or RealSense, or a folder "
            "with one file per image."
        ),
    ],
    output: Annotated[Path, output_option("Output file (.ply, .obj, .npz), or a folder for several images.")],
    color: Annotated[
        Path | None, option("Color image of the same view, or a folder of color images named like the depth images.")
    ] = None,
    depth_scale: Annotated[
        float | None,
        option("Depth value that equals one meter; by default 1000 for PNG (millimeters) and 1 for EXR.", min=0),
    ] = None,
    depth_truncation: Annotated[
        float | None, option("Discard points farther away than this, in meters.", min=0)
    ] = None,
) -> None:
    """Convert depth images to point clouds in meters, in camera axes: x right, y up, z toward the camera."""
    from hf_any3d.data.files import write_point_cloud
    from hf_any3d.data.files.depth_images import depth_images, file_beside
    from hf_any3d.data.files.rgbd import read_rgbd

    images = [image for place in depth for image in depth_images(place)]
    failed = 0
    # All places are found before anything is written.
    for image, place in _places(images, output).items():
        try:
            camera = file_beside(intrinsics, image, (".json",))
            colored = None
            if color is not None:
                colored = file_beside(color, image, (".jpg", ".jpeg", ".png"))
            cloud = read_rgbd(image, camera, colored, depth_scale=depth_scale, depth_truncation=depth_truncation)
        except (ValueError, OSError) as error:
            # The error of a single image ends the command; of several, the others are written.
            if len(images) == 1:
                raise
            print_error(one_line(error))
            failed += 1
            continue
        # Half a turn about x: cameras count pixels downwards, and y is up in files of clouds.
        cloud.points *= (1, -1, -1)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_point_cloud(place, cloud)
        print_line(f"{place}: {len(cloud):,} points")
    if failed:
        print_error(f"{failed} of {len(images)} images could not be used")
        raise typer.Exit(SOME_FAILED)


def _places(images: list[Path], output: Path) -> dict[Path, Path]:
    """Return the file that each image is written to."""
    are_many = len(images) > 1
    if not are_many or output.suffix.lower() in CLOUDS:  # any other name is a folder's
        check_output(output, (*CLOUDS, ""), num_files=len(images))
    # A name with an ending is that of the file, and any other that of a folder.
    if not are_many and output.suffix and not output.is_dir():
        return {images[0]: output}
    # Images of several folders may have one name.
    image_of: dict[Path, Path] = {}
    for image in images:
        place = output / f"{image.stem}.ply"
        if place in image_of:
            same = ", ".join(str(other) for other in images if other.stem == image.stem)
            raise ValueError(f"{same}: all would be written to {place}; expected images with different names")
        image_of[place] = image
    return {image: place for place, image in image_of.items()}
