"""`hf-any3d detect`: boxes around the objects of scans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hf_any3d.cli.common import AsCsv, AsJson, Device, check_model, find_model, open_pipeline, option
from hf_any3d.cli.inputs import Files, FileType, find_inputs, finish, for_each_file
from hf_any3d.cli.outputs import DATA, VIEWS, Gallery, Row, check_output, print_rows, write_data
from hf_any3d.cli.predict import Model, UpAxis, file_width, problems, split_model
from hf_any3d.many_files.files import Cloud
from hf_any3d.many_files.work import Answer, caller
from hf_any3d.utils.messages import printable

_GRAY = (0.7, 0.7, 0.7)


Threshold = Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a box.")]
LargestOverlap = Annotated[
    float, typer.Option(min=0, max=1, help="Of two boxes that overlap by more, the one with the lower score goes.")
]
MostBoxes = Annotated[int | None, option("Largest number of boxes of a file.", min=1)]
_WRITES = "Of models that write layouts: "
LayoutTask = Annotated[
    str | None, option(f"{_WRITES}objects (default), layout for walls, doors and windows, or all.", "--task")
]
Labels = Annotated[
    str | None, option(f"{_WRITES}objects to look for, of those they know, such as chair,bed.", "--labels")
]
Align = Annotated[
    bool | None,
    option(
        f"{_WRITES}whether the scan's up axis, tilt, unit, floor and turn are found and changed for the model; by "
        "default as its processor does.",
        "--align/--no-align",
    ),
]
AlignParts = Annotated[
    str | None, option(f"{_WRITES}which of them, such as up_axis,level,unit,floor,turn.", "--align-parts")
]
Grammar = Annotated[
    bool | None,
    option(f"{_WRITES}whether they can write well-formed layouts alone; by default no.", "--grammar/--no-grammar"),
]


def detect(
    files: Files,
    model: Model = None,
    threshold: Threshold = 0.5,
    nms_iou: LargestOverlap = 0.25,
    top_k: MostBoxes = None,
    up_axis: UpAxis = None,
    task: LayoutTask = None,
    labels: Labels = None,
    align: Align = None,
    align_parts: AlignParts = None,
    grammar: Grammar = None,
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
    name, files = split_model(files, model, "detect")
    inputs = find_inputs(files, file_type)
    suffix = check_output(output, (*VIEWS, *DATA), as_json=as_json, as_csv=as_csv)
    check_model(name, "detect")
    asked = layout_settings(task, labels, align, align_parts, grammar)
    pipe = open_pipeline("point-cloud-object-detection", find_model(name), device)
    from hf_any3d.visualization.viewer import LOWEST_BOX, label_colors

    palette = dict(zip(pipe.labels, label_colors(len(pipe.labels)), strict=True))
    gallery = Gallery(output if suffix in VIEWS else None, len(inputs), up_axis or pipe.up_axis)
    seen: dict[str, list[float]] = {}
    titles = inputs.titles()
    # A page also has boxes with lower scores, which its slider shows.
    least = min(threshold, LOWEST_BOX) if suffix == ".html" and pipe.has_scores else threshold
    check_layout_settings(pipe, name, asked)
    find = box_answerer(pipe, name, threshold=least, nms_iou=nms_iou, top_k=top_k, up_axis=up_axis, **asked)

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        rows = find(clouds)
        for cloud, row in zip(clouds, rows, strict=True):
            for found in row["boxes"]:  # a model may write a label that it was not trained on
                palette.setdefault(found["label"], np.asarray(_GRAY, dtype=np.float32))
            if gallery.output is not None:
                _show(gallery, cloud, titles[cloud.name], row["boxes"], palette)
            row["boxes"] = [found for found in row["boxes"] if found["score"] is None or found["score"] >= threshold]
            seen.update({found["label"]: palette[found["label"]].tolist() for found in row["boxes"]})
        return rows

    width = file_width(inputs)

    def line(row: Row) -> str:
        count = len(row["boxes"])
        found = "   ".join(_told(one) for one in row["boxes"])
        return f"{printable(row['file']):<{width}}  {count} {'box' if count == 1 else 'boxes'}: {found}".rstrip(": ")

    rows = for_each_file(inputs, answer, show=False)
    done = print_rows(rows, line, box_cells, as_json=as_json, as_csv=as_csv)
    title = f"boxes by {name}"
    if gallery.is_page:
        gallery.write(title, box_names=list(palette), threshold=threshold)
    else:
        gallery.write(title, seen)
    if output is not None and suffix in DATA:
        write_data(output, done, box_cells)
    finish(done)


def layout_settings(
    task: str | None, labels: str | None, align: bool | None, align_parts: str | None, grammar: bool | None
) -> dict[str, Any]:
    """Return the arguments of a pipeline for options of models that write layouts, as plain values.

    Raises:
        ValueError: `--align-parts` with `--no-align`, or a part is unknown.
    """
    from hf_any3d.data.scan_frames import frame_parts
    from hf_any3d.pipelines.base import without_none

    chosen: Any = align
    if align_parts is not None:
        chosen = list(frame_parts(align_parts, "--align-parts"))
        if align is False:
            raise ValueError(f"--align-parts {align_parts} with --no-align; expected one of them")
    return without_none(task=task, candidate_labels=labels, align=chosen, grammar=grammar)


def check_layout_settings(pipe: Any, model: str, asked: Mapping[str, Any]) -> None:
    """Check that options of models that write layouts are given to one.

    Raises:
        ValueError: They are not; names the first option.
    """
    if asked and pipe.has_scores:
        name, value = next(iter(asked.items()))
        name = {"candidate_labels": "labels"}.get(name, name)
        if isinstance(value, list):
            name += "-parts"
        elif value is False:
            name = f"no-{name}"
        raise ValueError(f"--{name}: {model} has boxes with scores and writes no layouts; expected no --{name}")


def box_answerer(pipe: Any, model: Any, **arguments: Any) -> Answer:
    """Return the function of clouds that finds their boxes."""
    run = caller(pipe, model, **arguments)
    return lambda clouds: [{"boxes": boxes} for boxes in run(clouds)]


def box_cells(row: Row) -> Iterator[Row]:
    """Yield the cells of each box of a file; a file without boxes has a row of its own, as one with an error does."""
    for found in row.get("boxes") or ():
        box = found["box"]
        numbers = dict(zip(("x", "y", "z"), box["center"], strict=True))
        numbers |= dict(zip(("length", "width", "height"), box["size"], strict=True))
        told = {"file": row["file"], "label": found["label"], "score": found["score"]}
        yield told | numbers | {"heading": box["heading"]}
    if not row.get("boxes"):
        yield {"file": row["file"], **problems(row)}


def _told(found: dict[str, Any]) -> str:
    place = ", ".join(f"{value:.2f}" for value in found["box"]["center"])
    score = "" if found["score"] is None else f" {100 * found['score']:.0f} %"
    return f"{printable(found['label'])}{score} at ({place})"


def _show(
    gallery: Gallery, cloud: Cloud, title: str, boxes: Sequence[dict[str, Any]], palette: dict[str, np.ndarray]
) -> None:
    """Add a cloud to a page with its boxes; to a picture with points along their edges."""
    from hf_any3d.data.inputs import to_cloud
    from hf_any3d.visualization.viewer import BoxView, box_edges

    data = to_cloud(cloud.row)
    if data.is_mesh:
        data = data.sample_surface(100_000)
    points = data.points if data.offset is None else data.points + data.offset
    colors = np.tile(np.asarray(_GRAY, dtype=np.float32), (len(points), 1)) if data.colors is None else data.colors
    # Relative to the smallest coordinates, which float32 can hold.
    frame = points.min(axis=0)
    corners = [np.asarray(found["box"]["corners"]) - frame for found in boxes]
    points = points - frame
    if gallery.is_page:
        shown = [BoxView(own, found["label"], found["score"]) for own, found in zip(corners, boxes, strict=True)]
        return gallery.add(points, colors, title, shown)
    edges = [box_edges(own) for own in corners]
    painted = [np.tile(palette[found["label"]], (len(own), 1)) for found, own in zip(boxes, edges, strict=True)]
    gallery.add(np.concatenate([points, *edges]), np.concatenate([colors, *painted]), title)
