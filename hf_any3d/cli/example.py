"""`hf-any3d data example`: files to try commands on, without a checkout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.caches import use_writable_cache
from hf_any3d.cli.errors import print_note
from hf_any3d.cli.options import output_option
from hf_any3d.cli.progress import hide_bars_of_datasets
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
    from hf_any3d.data.generated.examples import GENERATED, OF_DATASETS, Example

    launched = {path.name: path for path in sorted((RECIPES / "accelerate").glob("*.yaml"))}
    files = {path.name: path for path in sorted(ASSETS.glob("*.ply"))} | launched
    available = [*files, *GENERATED]
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
        example = GENERATED[name]() if name in GENERATED else Example({"": files[name].read_bytes()})
        path = output / name
        if not path.exists():
            for inner, content in example.files.items():
                (path / inner).parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path / inner, content)
        elif _is_same(path, example.files):
            print_note(f"{path}: kept, it is there already")
        else:
            print_note(f"warning: {path}: kept, it differs from the example; --output FOLDER writes that elsewhere")
            continue
        print_line(f"{path}: {example.what}" if example.what else path)


def _is_same(path: Path, files: Mapping[str, bytes]) -> bool:
    """Return whether a file, or a folder, has the contents of an example and no other files."""
    found = {"": path}
    if path.is_dir():
        found = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if not file.is_dir()}
    if found.keys() != files.keys():
        return False
    # The own file of a user may be large.
    sizes = {name: file.stat().st_size if file.is_file() else None for name, file in found.items()}
    if sizes != {name: len(content) for name, content in files.items()}:
        return False
    return all(found[name].read_bytes() == content for name, content in files.items())
