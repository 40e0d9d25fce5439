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
    not overwritten.
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
            raise FileExistsError(f"{output / name} exists; give a new name, or another folder as --output")
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
