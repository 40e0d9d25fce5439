"""`hf-any3d data example`: files to try commands on, without a checkout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.common import hide_bars_of_datasets, option, use_writable_cache
from hf_any3d.utils.messages import counted, print_line

# Training shapes for a first classifier: a folder for each class, its name the label.
_CLASSES = ("chair", "lamp", "sofa", "table")
_SCANS_PER_CLASS = 5
_LABELED_TILES = 4
_NEW_TILE = "new.las"


def example(
    examples: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="chair.ply, lamp.ply and the like: meshes. scans: a folder for each of four classes, with five "
            "scans. tiles: four generated tiles with the class of each point; new.las: a fifth, without. room.ply: a "
            "generated room. ddp_cpu.yaml and the like: configurations of accelerate launch. Without a name the "
            "names are printed.",
        ),
    ] = None,
    output: Annotated[Path, option("Folder to write to.")] = Path("."),
) -> None:
    """Write files to try: meshes, a folder of labeled scans, labeled tiles, a room, configurations of accelerate.

    Meshes, scans and configurations come with the package, tiles and the room are drawn. A file or folder that is
    there already is not replaced.
    """
    from hf_any3d.data.files import example_file

    folder = example_file().parent
    # These are drawn or put together here; all other names are files to copy.
    writers: dict[str, Callable[[Path], str]] = {
        "scans": _write_scans,
        "tiles": _write_tiles,
        _NEW_TILE: _write_new_tile,
        "room.ply": _write_room,
    }
    launched = {
        path.name: path for path in sorted((Path(__file__).parents[1] / "recipes" / "accelerate").glob("*.yaml"))
    }
    files = {path.name: path for path in sorted(folder.glob("*.ply"))} | launched
    available = [*files, *writers]
    examples = list(dict.fromkeys(examples or ()))
    # All names are checked before the first is written.
    for name in examples:
        if name not in available:
            raise ValueError(f"NAME: {name}; expected one of {', '.join(available)}")
        if (output / name).exists():
            raise FileExistsError(f"{output / name} exists; expected a new name, or another folder for --output")
    if not examples:
        for name in available:
            print_line(name)
        return
    use_writable_cache()
    output.mkdir(parents=True, exist_ok=True)
    for name in examples:
        if name in writers:
            print_line(writers[name](output / name))
        else:
            shutil.copyfile(files[name], output / name)
            print_line(str(output / name))


def _write_scans(folder: Path) -> str:
    """Write training shapes of the package as PLY files, in a folder for each class."""
    import numpy as np

    from hf_any3d.data import load_point_dataset
    from hf_any3d.data.files import PointCloudData, write_point_cloud

    hide_bars_of_datasets()
    shapes = load_point_dataset("shapes", split="train").with_format("numpy")
    labels = np.asarray(shapes["label"][:])
    for name in _CLASSES:
        (folder / name).mkdir(parents=True)
        # The first ones of a class, so that everyone has the same scans.
        rows = np.flatnonzero(labels == shapes.features["label"].names.index(name))[:_SCANS_PER_CLASS]
        for number, row in enumerate(rows):
            write_point_cloud(folder / name / f"{number}.ply", PointCloudData(shapes[int(row)]["points"]))
    files = counted(len(_CLASSES) * _SCANS_PER_CLASS, "scan")
    return f"{folder}: {files} in a folder for each class: {', '.join(_CLASSES)}"


def _write_tiles(folder: Path) -> str:
    """Write generated tiles with the class of each point, as LAS."""
    from hf_any3d.data.generated.tiles import draw_tile, las_bytes

    folder.mkdir()
    for number in range(_LABELED_TILES):
        # The number is the seed, by which everyone gets the same tile.
        (folder / f"{number}.las").write_bytes(las_bytes(draw_tile(number)))
    return f"{folder}: {counted(_LABELED_TILES, 'generated tile')} with ground, vegetation and buildings, z up"


def _write_new_tile(path: Path) -> str:
    """Write a generated tile whose points have no class."""
    from hf_any3d.data.generated.tiles import draw_tile, las_bytes

    # The first seed that none of the labeled tiles has.
    path.write_bytes(las_bytes(draw_tile(_LABELED_TILES), labeled=False))
    return f"{path}: a generated tile whose points have no class yet"


def _write_room(path: Path) -> str:
    """Write the points of a generated room, in meters with Z up."""
    import numpy as np

    from hf_any3d.data import load_point_dataset
    from hf_any3d.data.files import PointCloudData, write_point_cloud

    hide_bars_of_datasets()
    # No other room is drawn than the one that is written.
    rooms = load_point_dataset("rooms_with_layouts", train_rooms=0, validation_rooms=0, test_rooms=1)
    room = rooms["test"].with_format("numpy")[0]
    colors = np.asarray(room["colors"]) if "colors" in room else None
    # The file says which axis points up, so that viewers and models need not be told.
    write_point_cloud(path, PointCloudData(np.asarray(room["points"]), colors, up_axis="z", meters_per_unit=1.0))
    return f"{path}: a generated room in meters, z up"
