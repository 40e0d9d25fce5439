"""`hf-any3d data example`: files to try commands on, without a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.common import hide_bars_of_datasets, output_option, use_writable_cache
from hf_any3d.utils.atomic_files import write_bytes
from hf_any3d.utils.messages import print_line
from hf_any3d.utils.shipped import ASSETS, RECIPES


def example(
    examples: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="chair.ply, lamp.ply and the like: meshes. scans: a folder for each of four classes, with five "
            "scans. tiles: four generated tiles with the class of each point; new.las: a fifth, without. room.ply: a "
            "generated room. stairs.ply: no household object. ddp_cpu.yaml and the like: configurations of "
            "accelerate launch. Without a name the names are printed.",
        ),
    ] = None,
    output: Annotated[Path, output_option("Folder to write to.")] = Path("."),
) -> None:
    """Write files to try: meshes, a folder of labeled scans, labeled tiles, a room, configurations of accelerate.

    Meshes, scans and configurations come with the package, tiles and the room are drawn. A file or folder that is
    there already is not replaced.
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
        if (output / name).exists():
            raise FileExistsError(f"{output / name} exists; expected a new name, or another folder for --output")
    if not examples:
        for name in available:
            print_line(name)
        return
    use_writable_cache()
    output.mkdir(parents=True, exist_ok=True)
    for name in examples:
        if name in WRITERS:
            if name in OF_DATASETS:
                hide_bars_of_datasets()
            print_line(WRITERS[name](output / name))
        else:
            write_bytes(output / name, files[name].read_bytes())
            print_line(str(output / name))
