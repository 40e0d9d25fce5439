"""`hf-any3d data example`: files to try commands on, without a checkout."""

from __future__ import annotations

import filecmp
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.common import hide_bars_of_datasets, output_option, print_note, use_writable_cache
from hf_any3d.utils.atomic_files import write_bytes
from hf_any3d.utils.messages import print_line
from hf_any3d.utils.shipped import ASSETS, RECIPES


def example(
    examples: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Example to write: a mesh (chair.ply, lamp.ply, …); scans (four classes, five scans each); tiles "
            "(four synthetic tiles with point classes) or new.las (a fifth, without classes); room.ply (a "
            "generated room); stairs.ply (not a household object); or an accelerate config (ddp_cpu.yaml, "
            "…). Without a name, lists all names.",
        ),
    ] = None,
    output: Annotated[Path, output_option("Output folder.")] = Path("."),
) -> None:
    """Write example files: meshes, a folder of labeled scans, labeled tiles, a room, accelerate configs.

    Meshes, scans and configs come with the package; tiles and the room are generated. Existing files and folders are
    kept, with a note if they differ from the example.
    """
    from hf_any3d.data.generated.examples import OF_DATASETS, WRITERS

    launched = {path.name: path for path in sorted((RECIPES / "accelerate").glob("*.yaml"))}
    files = {path.name: path for path in sorted(ASSETS.glob("*.ply"))} | launched
    available = [*files, *WRITERS]
    examples = list(dict.fromkeys(examples or ()))
    # All names are checked before the first is written.
    for name in examples:
        if name not in available:
            raise ValueError(f"NAME: {name}; expected one of {', '.join(available)}")
    if not examples:
        for name in available:
            print_line(name)
        return
    use_writable_cache()
    output.mkdir(parents=True, exist_ok=True)
    for name in examples:
        if name in OF_DATASETS:
            hide_bars_of_datasets()
        write = WRITERS.get(name) or partial(_copy, files[name])
        path = output / name
        if not path.exists():
            print_line(write(path))
            continue
        with tempfile.TemporaryDirectory() as folder:
            example = Path(folder) / name
            what = write(example).removeprefix(str(example))
            if _are_same(path, example):
                print_note(f"{path}: kept, it is there already")
                print_line(f"{path}{what}")
            else:
                print_note(f"warning: {path}: kept, it differs from the example; --output FOLDER writes that elsewhere")


def _copy(file: Path, path: Path) -> str:
    write_bytes(path, file.read_bytes())
    return str(path)


def _are_same(path: Path, other: Path) -> bool:
    """Return whether two files, or two folders with all that is in them, have the same contents."""
    if not (path.is_dir() and other.is_dir()):
        return path.is_file() and other.is_file() and filecmp.cmp(path, other, shallow=False)
    names, others = ({file.relative_to(place) for file in place.rglob("*")} for place in (path, other))
    return names == others and all(_are_same(path / name, other / name) for name in names)
