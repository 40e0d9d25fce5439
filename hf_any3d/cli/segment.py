"""`hf-any3d segment`: a label for every point, of a model's own labels or of parts that are named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hf_any3d.cli.common import (
    AsCsv,
    AsJson,
    Device,
    check_model,
    find_model,
    open_pipeline,
    option,
    read_model_config,
)
from hf_any3d.cli.inputs import Files, FileType, find_inputs, finish, for_each_file
from hf_any3d.cli.outputs import CLOUDS, DATA, VIEWS, Gallery, Row, check_output, print_rows, write_data
from hf_any3d.cli.predict import Model, UpAxis, file_width, problems, split_model
from hf_any3d.many_files.files import Cloud
from hf_any3d.many_files.work import usual_batch_size
from hf_any3d.utils.messages import model_errors, printable


def segment(
    files: Files,
    model: Model = None,
    labels: Annotated[
        str | None,
        option(
            "Names of parts, separated by commas, for models that find parts by name: 'seat, leg, back'.",
            "--labels",
            "-l",
        ),
    ] = None,
    category: Annotated[str | None, option("Category of the objects, for models of parts.")] = None,
    templates: Annotated[
        str | None, option("Texts around names of parts: part_only, part_plus_cat or ensemble.")
    ] = None,
    text_features: Annotated[
        Path | None,
        option("Vectors of the names, a .safetensors file with one for each word, instead of the text tower."),
    ] = None,
    up_axis: UpAxis = None,
    max_points: Annotated[
        int | None,
        option("Thin larger clouds out to this many points; the others get the label of the nearest one.", min=1),
    ] = None,
    votes: Annotated[
        bool,
        typer.Option(
            "--votes",
            help="Segment in several views and fragments and vote, as the figures of Point "
            "Transformer V3 are measured; tens of times slower.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        option(
            "A page (.html) or picture (.png) of all clouds, the labeled points of one (.ply, .obj, .npz), a table "
            "(.json, .csv), or a folder for labeled points and a page of each."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, option("Blocks per batch; by default 8, or 1 if they depend on each other or hold voxels.", min=1)
    ] = None,
    device: Device = None,
    file_type: FileType = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Label every point with the part or object that it belongs to.

    Clouds of any size are processed in blocks. A bar shows the blocks that are done. Models such as PatchAlign3D and
    Find3D find parts by their names, which --labels gives.
    """
    name, files = split_model(files, model, "segment")
    inputs = find_inputs(files, file_type)
    types = (*VIEWS, *CLOUDS, *DATA)
    suffix = check_output(output, types, as_json=as_json, as_csv=as_csv, num_files=len(inputs), folders=True)
    texts = {"candidate_labels": labels, "templates": templates, "text_features": text_features}
    asked = {key: value for key, value in texts.items() if value is not None}
    task = _segmentation_task(
        check_model(name, "segment"), labels, [key for key in asked if key != "candidate_labels"]
    )
    pipe = open_pipeline(task, find_model(name), device)
    names = pipe.label_names() if labels is None else pipe.label_names(labels)
    from hf_any3d.visualization.viewer import colors_of

    palette, seen, shown_up = (
        colors_of(pipe.model.config, len(names)),
        set(),
        up_axis or pipe.feature_extractor.up_axis,
    )
    gallery = Gallery(output if suffix in VIEWS else None, len(inputs), shown_up)
    place, titles = inputs.places(), inputs.titles()

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        rows = []
        for cloud in clouds:
            with model_errors(name, "cannot answer"):
                result = pipe(
                    cloud.row,
                    **asked,
                    category=category,
                    up_axis=up_axis,
                    max_points=max_points,
                    **({"votes": True} if votes else {}),
                    # A block of voxels may hold a million points.
                    batch_size=batch_size
                    or usual_batch_size(pipe, 8 if pipe.feature_extractor.returns_num_points else 1),
                    progress=True,
                )
            points, labels = result["points"], result["labels"]
            seen.update(map(int, np.unique(labels)))
            if gallery.output is not None:
                gallery.add(cloud_frame(points), palette[labels], titles[cloud.name])
            if output is not None and suffix in CLOUDS:
                _write_labeled(output, points, labels, palette)
            elif output is not None and not suffix:
                folder = output / place[cloud.name]
                # Appended: `with_suffix` would replace what follows a dot in the name.
                _write_labeled(folder.with_name(folder.name + ".ply"), points, labels, palette)
                page = Gallery(folder.with_name(folder.name + ".html"), 1, shown_up)
                page.add(cloud_frame(points), palette[labels], folder.name)
                page.write(folder.name, {names[n]: palette[n].tolist() for n in map(int, np.unique(labels))})
            rows.append(
                {"points": len(labels), "segments": [_share(part, len(labels)) for part in result["segments"]]}
            )
        return rows

    width = file_width(inputs)

    def line(row: Row) -> str:
        parts = "   ".join(f"{printable(part['label'])} {100 * part['share']:.1f} %" for part in row["segments"])
        return f"{printable(row['file']):<{width}}  {row['points']:,} points: {parts}"

    def cells(row: Row) -> Iterator[Row]:
        for part in row.get("segments", ()):
            yield {"file": row["file"], **part}
        if "error" in row:
            yield {"file": row["file"], **problems(row)}

    # The pipeline shows a bar of the blocks.
    rows = for_each_file(inputs, answer, show=False)
    done = print_rows(rows, line, cells, as_json=as_json, as_csv=as_csv)
    gallery.write(f"labels by {name}", {names[number]: palette[number].tolist() for number in sorted(seen)})
    if output is not None and suffix in DATA:
        write_data(output, done, cells)
    finish(done)


def _segmentation_task(name: str, labels: str | None, others: Sequence[str]) -> str:
    """Return the task of a segmentation model.

    Raises:
        ValueError: Labels are missing, or the model has labels of its own.
    """
    architecture = str((read_model_config(name).get("architectures") or [""])[0])
    if architecture.endswith("ForZeroShotPointCloudSegmentation"):
        if labels is None:
            raise ValueError(f"--labels is missing; {name} finds parts by name, such as 'seat, leg, back'")
        return "zero-shot-point-cloud-segmentation"
    if labels is not None or others:
        option_name = "--labels" if labels is not None else f"--{others[0].replace('_', '-')}"
        raise ValueError(f"{option_name}: {name} has labels of its own; expected a model that finds parts by name")
    return "point-cloud-segmentation"


def _share(part: dict[str, Any], total: int) -> dict[str, Any]:
    count = int(part["mask"].sum())
    return {"label": part["label"], "points": count, "share": count / total, "score": part["score"]}


def _write_labeled(path: Path, points: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> None:
    from hf_any3d.data.files import PointCloudData, write_point_cloud

    path.parent.mkdir(parents=True, exist_ok=True)
    write_point_cloud(path, PointCloudData(points, palette[labels], labels=labels))


def cloud_frame(points: np.ndarray) -> np.ndarray:
    """Return points relative to their smallest coordinates, which float32 can hold."""
    return points - points.min(axis=0)
