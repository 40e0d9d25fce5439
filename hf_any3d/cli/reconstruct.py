"""`hf-any3d reconstruct`: point files through an autoencoder and back, to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import open_pipeline, quieten_libraries, told_in_one_line
from hf_any3d.cli.predict import find_files
from hf_any3d.messages import opened, printable, say, say_json

_FILES, _VIEWS = (".ply", ".obj", ".npz"), (".html", ".png")


def reconstruct(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or hub name of a point cloud autoencoder.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Point files, meshes, or folders of them.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="A page (.html) or picture (.png) of all, the points of one (.ply, .obj, .npz), or a folder, which "
            "gets points and a page for each file.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Distance within which the F-score takes points for equal.")] = 0.01,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps …; by default the fastest there is.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with the codes instead of a table.")] = False,
) -> None:
    """Turn point files and meshes into codes and back, and say how well they come back.

    Distances are in the frame of the processor, which usually scales a cloud to the unit sphere.
    """
    with told_in_one_line():
        paths = find_files(files)
        ending = "" if output is None else output.suffix.lower()
        if ending and ending not in _FILES + _VIEWS:
            known = ", ".join(_FILES + _VIEWS)
            raise ValueError(f"--output: {output} has type {ending!r}; expected one of {known}, or a folder")
        if ending in _FILES and len(paths) > 1:
            raise ValueError(f"--output: {output} for {len(paths)} files; expected a folder, .html or .png")
        answers = _answers(model, paths, threshold, device, output if output is not None and not ending else None)
        if ending:
            _write(output, ending, answers, [path.name for path in paths])
    if as_json:
        say_json([_told(path, answer) for path, answer in zip(paths, answers, strict=True)])
        return
    wide = max(len(printable(path)) for path in paths)
    for path, answer in zip(paths, answers, strict=True):
        distances = "   ".join(f"CD-{n.upper()} {1000 * answer[f'chamfer_{n}']:.2f}e-3" for n in ("l1", "l2"))
        codes = f"{len(set(answer['token_ids'].tolist()))} codes for {len(answer['token_ids'])} patches"
        say(f"{printable(path):<{wide}}  {distances}   F-score {answer['f_score']:.3f}   {codes}")


def _answers(
    model: str, paths: list[Path], threshold: float, device: str | None, folder: Path | None
) -> list[dict[str, Any]]:
    quieten_libraries()
    run = open_pipeline("point-cloud-reconstruction", model, device)
    written = {} if folder is None else {"output_dir": folder}
    with opened(model, "cannot answer"):
        return run([str(path) for path in paths], threshold=threshold, **written)


def _write(output: Path, ending: str, answers: list[dict[str, Any]], names: list[str]) -> None:
    if ending in _VIEWS:
        from hf_any3d.visualization.reconstruction import write_reconstructions

        write_reconstructions(output, answers, names)
    else:
        from hf_any3d.data.files import write_point_cloud
        from hf_any3d.pipelines.point_cloud_reconstruction import colored_by_patch

        output.parent.mkdir(parents=True, exist_ok=True)
        write_point_cloud(output, colored_by_patch(answers[0]))


def _told(path: Path, answer: dict[str, Any]) -> dict[str, Any]:
    scores = {name: answer[name] for name in ("chamfer_l1", "chamfer_l2", "f_score")}
    return {"file": str(path), **scores, "token_ids": answer["token_ids"].tolist()}
