"""`hf-any3d data convert`: point files and meshes in another format."""

from __future__ import annotations

import os
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.inputs import Files
from hf_any3d.cli.options import FileType, option, output_option
from hf_any3d.cli.runs import Job, RunOptions, run_job
from hf_any3d.data.files.input_files import Cloud
from hf_any3d.many_files.work import Opened


class FileFormat(StrEnum):
    """Formats that clouds are written in."""

    PLY = "ply"
    OBJ = "obj"
    NPZ = "npz"


def convert_clouds(
    files: Files,
    output: Annotated[Path, output_option("Output folder for the files and results.jsonl.")],
    runs: RunOptions,
    file_type: FileType = None,
    to: Annotated[FileFormat, typer.Option(help="Output format.")] = FileFormat.PLY,
    points: Annotated[int | None, option("Sample this many points from the surface of each mesh.", min=1)] = None,
) -> None:
    """Convert point clouds and meshes to another format; rerun the command to resume."""
    settings = {"output": str(output), "to": to.value, "points": points}
    job = Job("convert", settings, _open, uses_model=False, copy_ending=f".{to.value}", file_type=file_type)
    run_job(job, files, output / "results.jsonl", runs)


def _open(settings: dict[str, Any], device: str | None, batch_size: int | None) -> Opened:
    del device, batch_size
    # Cloud by cloud, as there is no model that would be faster for several.
    return Opened(partial(_convert, **settings), 1)


def _convert(clouds: list[Cloud], output: str, to: str, root: str, points: int | None) -> list[dict[str, Any]]:
    """Write clouds in another format, in the folders that they have below the folder that all share."""
    from hf_any3d.data.files import write_point_cloud

    rows = []
    for cloud in clouds:
        data = cloud.data
        # Only meshes are drawn from: points of a scan are all kept.
        if points is not None and data.is_mesh:
            data = data.sample_surface(points)
        # The ending stays in the name: chair.obj and chair.stl are two files.
        path = Path(output) / f"{os.path.relpath(os.path.abspath(cloud.name), root)}.{to}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_point_cloud(path, data)
        rows.append({"output": str(path), "points": len(data)})
    return rows
