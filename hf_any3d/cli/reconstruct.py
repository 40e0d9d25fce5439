"""The command reconstruct: clouds as discrete codes and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import BatchSize, Device, FileOptions, Model, open_pipeline, option
from hf_any3d.cli.inputs import Files, Inputs, finish
from hf_any3d.cli.outputs import CLOUDS, DATA, VIEWS, Row, answer_inputs, file_cells, find_all
from hf_any3d.many_files.files import Cloud
from hf_any3d.many_files.work import answerer, usual_batch_size

_SCORES = ("chamfer_l1", "chamfer_l2", "f_score")


def reconstruct(
    files: Files,
    options: FileOptions,
    model: Model = None,
    output: Annotated[
        Path | None,
        option("A page or picture, the points of one cloud, a table, or a folder for points and a page of each."),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Distance within which points match for the F-score.")] = 0.01,
    batch_size: BatchSize = None,
    device: Device = None,
) -> None:
    """Encode point files and meshes as discrete codes, decode them, and measure the reconstruction error.

    Distances are in the frame of the processor, which usually scales a cloud to the unit sphere.
    """
    types = (*CLOUDS, *VIEWS, *DATA, "")
    name, inputs, suffix = find_all(files, model, "reconstruct", output, types, options)
    pipe = open_pipeline("point-cloud-reconstruction", name, device)
    run = answerer(pipe, name, threshold=threshold)
    results: dict[str, Any] = {}  # by file

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        # Pages and files of points need the whole result; a row has scores and codes alone.
        rows = []
        for cloud, result in zip(clouds, run(clouds), strict=True):
            if "error" not in result:
                results[cloud.name] = result
                result = {name: result[name] for name in _SCORES} | {"token_ids": result["token_ids"].tolist()}
            rows.append(result)
        return rows

    def line(row: Row) -> str:
        # In thousandths, as model cards state Chamfer distances.
        distances = "   ".join(f"CD-{n.upper()} {1000 * row[f'chamfer_{n}']:.2f}e-3" for n in ("l1", "l2"))
        codes = f"{len(set(row['token_ids']))} codes for {len(row['token_ids'])} patches"
        return f"{distances}   F-score {row['f_score']:.3f}   {codes}"

    def cells(row: Row) -> Iterator[Row]:
        # Codes, one for each patch, are in JSON alone.
        return file_cells(row, [] if "error" in row else [{name: row[name] for name in _SCORES}])

    size = batch_size or usual_batch_size(pipe)
    rows = answer_inputs(inputs, answer, line, cells, output, options, size)
    # Tables are written with the rows already.
    if output is not None and suffix not in DATA and results:
        _write(output, suffix, results, inputs, pipe.feature_extractor.up_axis)
    finish(rows)


def _write(output: Path, suffix: str, results: dict[str, Any], inputs: Inputs, up_axis: str) -> None:
    """Write reconstructions, by their files' names: a page or picture of all, the points of one, or a folder."""
    from hf_any3d.data.files import write_point_cloud
    from hf_any3d.pipelines.point_cloud_reconstruction import colored_by_patch
    from hf_any3d.visualization.reconstruction import write_reconstructions

    # A page or picture shows all clouds, and needs no folder.
    if suffix in VIEWS:
        titles = [Path(name).name for name in results]
        write_reconstructions(output, list(results.values()), titles, up_axis=up_axis)
        return
    places = inputs.places()
    for name, result in results.items():
        # Not `with_suffix`, which would cut off the end of a name with a dot.
        path = output if suffix else output / places[name].with_name(places[name].name + ".ply")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_point_cloud(path, colored_by_patch(result))
        if not suffix:
            write_reconstructions(path.with_suffix(".html"), [result], [places[name].name], up_axis=up_axis)
