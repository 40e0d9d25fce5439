"""`hf-any3d detect`: boxes around the objects of scans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hf_any3d.cli.common import AsCsv, AsJson, Device, check_model, find_model, open_pipeline, option
from hf_any3d.cli.inputs import Files, FileType, find_inputs, finish, for_each_file
from hf_any3d.cli.outputs import DATA, VIEWS, Gallery, Row, check_output, print_rows, write_data
from hf_any3d.cli.predict import Model, UpAxis, file_width, problems, split_model
from hf_any3d.cli.segment import cloud_frame
from hf_any3d.many_files.files import Cloud
from hf_any3d.messages import model_errors, printable

_GRAY = (0.7, 0.7, 0.7)


def detect(
    files: Files,
    model: Model = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a box.")] = 0.5,
    nms_iou: Annotated[
        float, typer.Option(min=0, max=1, help="Of two boxes that overlap by more, the one with the lower score goes.")
    ] = 0.25,
    top_k: Annotated[int | None, option("Largest number of boxes of a file.", min=1)] = None,
    up_axis: UpAxis = None,
    task: Annotated[
        str | None,
        option("Of models that write layouts: objects (default), layout for walls, doors and windows, or all."),
    ] = None,
    labels: Annotated[
        str | None, option("Of models that write layouts: objects to look for, of those they know, such as chair,bed.")
    ] = None,
    output: Annotated[
        Path | None,
        option("A table of the boxes (.json, .csv), or a page (.html) or picture (.png) of the clouds with them."),
    ] = None,
    device: Device = None,
    file_type: FileType = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Find objects in scans, with a box around each.

    Boxes are in the frame and units of the file: center, size (length, width, height) and heading, in radians,
    counterclockwise about the up axis. Scores are not calibrated; models that write layouts, such as SpatialLM, have
    none.
    """
    name, files = split_model(files, model)
    inputs = find_inputs(files, file_type)
    suffix = check_output(output, (*VIEWS, *DATA), as_json=as_json, as_csv=as_csv)
    check_model(name, "detect")
    from hf_any3d.pipelines.base import without_none

    pipe = open_pipeline("point-cloud-object-detection", find_model(name), device)
    from hf_any3d.visualization.viewer import label_colors

    palette = dict(zip(pipe.labels, label_colors(len(pipe.labels)), strict=True))
    asked = without_none(task=task, candidate_labels=labels)
    gallery = Gallery(output if suffix in VIEWS else None, len(inputs), up_axis or pipe.up_axis)
    seen: dict[str, list[float]] = {}

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        rows = []
        for cloud in clouds:
            with model_errors(name, "cannot answer"):
                boxes = pipe(cloud.row, threshold=threshold, nms_iou=nms_iou, top_k=top_k, up_axis=up_axis, **asked)
            for found in boxes:  # a model may write a label that it was not trained on
                palette.setdefault(found["label"], np.asarray(_GRAY, dtype=np.float32))
            seen.update({found["label"]: palette[found["label"]].tolist() for found in boxes})
            if gallery.output is not None:
                points, colors = _drawn(cloud, boxes, palette)
                gallery.add(points, colors, Path(cloud.name).name)
            rows.append({"boxes": boxes})
        return rows

    width = file_width(inputs)

    def line(row: Row) -> str:
        count = len(row["boxes"])
        found = "   ".join(_told(one) for one in row["boxes"])
        return f"{printable(row['file']):<{width}}  {count} {'box' if count == 1 else 'boxes'}: {found}".rstrip(": ")

    def cells(row: Row) -> Iterator[Row]:
        for found in row.get("boxes", ()):
            box = found["box"]
            numbers = dict(zip(("x", "y", "z"), box["center"], strict=True))
            numbers |= dict(zip(("length", "width", "height"), box["size"], strict=True))
            yield (
                {"file": row["file"], "label": found["label"], "score": found["score"]}
                | numbers
                | {"heading": box["heading"]}
            )
        if "error" in row:
            yield {"file": row["file"], **problems(row)}

    done = print_rows(for_each_file(inputs, answer, show=False), line, cells, as_json=as_json, as_csv=as_csv)
    gallery.write(f"boxes by {name}", seen)
    if output is not None and suffix in DATA:
        write_data(output, done, cells)
    finish(done)


def _told(found: dict[str, Any]) -> str:
    place = ", ".join(f"{value:.2f}" for value in found["box"]["center"])
    score = "" if found["score"] is None else f" {100 * found['score']:.0f} %"
    return f"{printable(found['label'])}{score} at ({place})"


def _drawn(
    cloud: Cloud, boxes: Sequence[dict[str, Any]], palette: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a cloud in gray with those of the edges of its boxes, and their colors."""
    from hf_any3d.data.inputs import to_cloud
    from hf_any3d.visualization.viewer import box_edges

    data = to_cloud(cloud.row)
    if data.is_mesh:
        data = data.sample_surface(100_000)
    points = data.points if data.offset is None else data.points + data.offset
    colors = np.tile(np.asarray(_GRAY, dtype=np.float32), (len(points), 1)) if data.colors is None else data.colors
    edges = [box_edges(found["box"]["corners"]) for found in boxes]
    painted = [np.tile(palette[found["label"]], (len(own), 1)) for found, own in zip(boxes, edges, strict=True)]
    return cloud_frame(np.concatenate([points, *edges])), np.concatenate([colors, *painted])
