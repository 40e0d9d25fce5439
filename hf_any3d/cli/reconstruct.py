"""`hf-any3d reconstruct`: encode point files with an autoencoder, decode them, and show the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import Device, Files, find_files, one_line_errors, open_pipeline, option, quiet_libraries
from hf_any3d.messages import model_errors, print_json, print_line, printable

_FILES, _VIEWS = (".ply", ".obj", ".npz"), (".html", ".png")


def reconstruct(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or hub name of a point cloud autoencoder.")],
    files: Files,
    output: Annotated[
        Path | None,
        option(
            "A page (.html) or picture (.png) of all files, the points of one (.ply, .obj, .npz), or a folder for "
            "the points and a page of each file."
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Distance within which points match for the F-score.")] = 0.01,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with the codes instead of a table.")] = False,
) -> None:
    """Encode point files and meshes as discrete codes, decode them, and measure the reconstruction error.

    Distances are in the frame of the processor, which usually scales a cloud to the unit sphere.
    """
    with one_line_errors():
        paths = find_files(files)
        suffix = "" if output is None else output.suffix.lower()
        if suffix and suffix not in _FILES + _VIEWS:
            known = ", ".join(_FILES + _VIEWS)
            raise ValueError(f"--output: {output} has type {suffix!r}; expected one of {known}, or a folder")
        if suffix in _FILES and len(paths) > 1:
            raise ValueError(f"--output: {output} for {len(paths)} files; expected a folder, .html or .png")
        quiet_libraries()
        run = open_pipeline("point-cloud-reconstruction", model, device)
        folder = {} if output is None or suffix else {"output_dir": output}
        with model_errors(model, "cannot answer"):
            results = run([str(path) for path in paths], threshold=threshold, **folder)
        if output is not None and suffix:
            _write(output, results, [path.name for path in paths])
    if as_json:
        print_json([_as_json(path, result) for path, result in zip(paths, results, strict=True)])
        return
    width = max(len(printable(path)) for path in paths)
    for path, result in zip(paths, results, strict=True):
        distances = "   ".join(f"CD-{n.upper()} {1000 * result[f'chamfer_{n}']:.2f}e-3" for n in ("l1", "l2"))
        codes = f"{len(set(result['token_ids'].tolist()))} codes for {len(result['token_ids'])} patches"
        print_line(f"{printable(path):<{width}}  {distances}   F-score {result['f_score']:.3f}   {codes}")


def _write(output: Path, results: list[dict[str, Any]], names: list[str]) -> None:
    if output.suffix.lower() in _VIEWS:
        from hf_any3d.visualization.reconstruction import write_reconstructions

        write_reconstructions(output, results, names)
    else:
        from hf_any3d.data.files import write_point_cloud
        from hf_any3d.pipelines.point_cloud_reconstruction import colored_by_patch

        output.parent.mkdir(parents=True, exist_ok=True)
        write_point_cloud(output, colored_by_patch(results[0]))


def _as_json(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    scores = {name: result[name] for name in ("chamfer_l1", "chamfer_l2", "f_score")}
    return {"file": str(path), **scores, "token_ids": result["token_ids"].tolist()}
