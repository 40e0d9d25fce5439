"""`hf-any3d detect`: boxes around the objects of scans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hf_any3d.cli.common import Device, FileOptions, Model, UpAxis, open_pipeline, option
from hf_any3d.cli.inputs import Files, finish
from hf_any3d.cli.outputs import DATA, VIEWS, Gallery, Row, answer_inputs, counted, file_cells, find_all
from hf_any3d.many_files.files import Cloud
from hf_any3d.many_files.work import Answer, caller
from hf_any3d.utils.messages import printable

# Of points without colors, and of boxes whose label the model did not list.
_GRAY = (0.7, 0.7, 0.7)
_WRITES = "Of layout models: "


class Overlap(StrEnum):
    """Kinds of overlap by which boxes are left out."""

    TURNED = "turned"
    BOUNDS = "bounds"
    BASE = "base"
    NONE = "none"


@dataclass(frozen=True)
class BoxOptions:
    """Options of boxes and layouts."""

    threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a box.")] = 0.5
    nms: Annotated[
        Overlap,
        typer.Option(
            help="What overlaps: the turned boxes, their bounds along the axes, or the bounds' base; none leaves no "
            "box out."
        ),
    ] = Overlap.TURNED
    nms_iou: Annotated[
        float, typer.Option(min=0, max=1, help="Of two boxes that overlap by more, the one with the lower score goes.")
    ] = 0.25
    top_k: Annotated[int | None, option("Largest number of boxes of a file.", min=1)] = None
    up_axis: UpAxis = None
    task: Annotated[
        str | None, option(f"{_WRITES}objects (default), layout for walls, doors and windows, or all.")
    ] = None
    labels: Annotated[str | None, option(f"{_WRITES}objects to look for, such as chair,bed.")] = None
    align: Annotated[
        bool | None, option(f"{_WRITES}whether the frame of a scan is found; by default as the processor does.")
    ] = None
    align_parts: Annotated[str | None, option(f"{_WRITES}parts of it: up_axis,level,unit,floor,turn.")] = None
    grammar: Annotated[bool | None, option(f"{_WRITES}whether only well-formed layouts are written.")] = None

    def settings(self) -> dict[str, Any]:
        """Return the arguments of a pipeline as plain values; those of layouts only if they are given."""
        from hf_any3d.data.scan_frames import frame_parts
        from hf_any3d.pipelines.base import without_none

        # The parts of a frame are named only by those who want it found.
        align: Any = self.align
        if self.align_parts is not None:
            align = list(frame_parts(self.align_parts, "--align-parts"))
        # None of layouts, since other detectors have no such arguments.
        settings = {"threshold": self.threshold, "nms_iou": self.nms_iou, "top_k": self.top_k, "up_axis": self.up_axis}
        # Runs of before there was the option go on with the rows that they have.
        if self.nms is not Overlap.TURNED:
            settings["nms"] = None if self.nms is Overlap.NONE else self.nms.value
        return settings | without_none(task=self.task, candidate_labels=self.labels, align=align, grammar=self.grammar)


def detect(
    files: Files,
    boxes: BoxOptions,
    options: FileOptions,
    model: Model = None,
    output: Annotated[
        Path | None, option("A table of the boxes (.json, .csv), or a page (.html) or picture (.png) with them.")
    ] = None,
    device: Device = None,
) -> None:
    """Find objects in scans, with a box around each.

    Boxes are in the frame and units of the file: center, size (length, width, height) and heading, in radians,
    counterclockwise about the up axis. Scores are not calibrated; models that write layouts, such as SpatialLM, have
    none.
    """
    name, inputs, suffix = find_all(files, model, "detect", output, (*VIEWS, *DATA), options)
    settings = boxes.settings()
    pipe = open_pipeline("point-cloud-object-detection", name, device)
    from hf_any3d.visualization.viewer import LOWEST_BOX, label_colors

    # Colors by label, the same for all files.
    palette = dict(zip(pipe.labels, label_colors(len(pipe.labels)), strict=True))
    gallery = Gallery(output, len(inputs), boxes.up_axis or pipe.up_axis)
    legend: dict[str, list[float]] = {}
    titles = inputs.titles()
    if suffix == ".html" and pipe.has_scores:  # its slider shows boxes with lower scores, too
        settings["threshold"] = min(boxes.threshold, LOWEST_BOX)
    find = box_answerer(pipe, name, settings)

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        rows = find(clouds)
        for cloud, row in zip(clouds, rows, strict=True):
            for box in row["boxes"]:  # a model may write a label that it was not trained on
                palette.setdefault(box["label"], np.asarray(_GRAY, dtype=np.float32))
            # Without a page or picture the cloud need not be read again.
            if gallery.output is not None:
                _show(gallery, cloud, titles[cloud.name], row["boxes"], palette)
            # Lower scores were for the slider of the page; layouts have no scores.
            row["boxes"] = [box for box in row["boxes"] if box["score"] is None or box["score"] >= boxes.threshold]
            legend.update({box["label"]: palette[box["label"]].tolist() for box in row["boxes"]})
        return rows

    def line(row: Row) -> str:
        # Without a box nothing stands behind the number.
        return f"{counted(len(row['boxes']), 'box')}: {'   '.join(map(_text, row['boxes']))}".rstrip(": ")

    rows = answer_inputs(inputs, answer, line, box_cells, output, options, has_bar=True)
    # A page makes its own legend, of all labels, as its slider may show further boxes.
    further = {"box_names": list(palette), "threshold": boxes.threshold} if gallery.is_page else {}
    gallery.write(f"boxes by {name}", None if gallery.is_page else legend, **further)
    finish(rows)


def box_answerer(pipe: Any, model: str, settings: dict[str, Any]) -> Answer:
    """Return the function of clouds that finds their boxes, by `BoxOptions.settings`."""
    run = caller(pipe, model, **settings)
    return lambda clouds: [{"boxes": boxes} for boxes in run(clouds)]


def box_cells(row: Row) -> Iterator[Row]:
    """Yield the CSV rows of the boxes of a file."""
    return file_cells(
        row,
        [
            {
                **{name: detection[name] for name in ("label", "score")},
                **dict(zip(("x", "y", "z"), detection["box"]["center"], strict=True)),
                **dict(zip(("length", "width", "height"), detection["box"]["size"], strict=True)),
                "heading": detection["box"]["heading"],
            }
            for detection in row.get("boxes") or ()
        ],
    )


def _text(detection: dict[str, Any]) -> str:
    place = ", ".join(f"{value:.2f}" for value in detection["box"]["center"])
    score = "" if detection["score"] is None else f" {100 * detection['score']:.0f} %"
    return f"{printable(detection['label'])}{score} at ({place})"


def _show(
    gallery: Gallery, cloud: Cloud, title: str, boxes: Sequence[dict[str, Any]], palette: dict[str, np.ndarray]
) -> None:
    """Add a cloud to a page with its boxes; to a picture with points along their edges."""
    from hf_any3d.data.inputs import to_cloud
    from hf_any3d.visualization.viewer import BoxView, box_edges

    data = to_cloud(cloud.row)
    if data.is_mesh:
        data = data.sample_surface(100_000)
    # Boxes are in the coordinates of the file, and so have to be the points.
    points = data.points if data.offset is None else data.points + data.offset
    colors = np.tile(np.asarray(_GRAY, dtype=np.float32), (len(points), 1)) if data.colors is None else data.colors
    # Relative to the smallest coordinates, which float32 can hold.
    frame = points.min(axis=0)
    corners = [np.asarray(detection["box"]["corners"]) - frame for detection in boxes]
    points = points - frame
    if gallery.is_page:
        places = zip(corners, boxes, strict=True)
        shown = [BoxView(box, detection["label"], detection["score"]) for box, detection in places]
        return gallery.add(points, colors, title, shown)
    # (edge points, 3) of each box
    edges = [box_edges(box) for box in corners]
    painted = [
        np.tile(palette[detection["label"]], (len(edge), 1)) for detection, edge in zip(boxes, edges, strict=True)
    ]
    gallery.add(np.concatenate([points, *edges]), np.concatenate([colors, *painted]), title)
