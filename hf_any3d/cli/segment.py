"""`hf-any3d segment`: a label for every point, of a model's own labels or of parts that are named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hf_any3d.cli.common import Device, FileOptions, Model, UpAxis, open_pipeline, option, read_model_config
from hf_any3d.cli.inputs import Files, finish
from hf_any3d.cli.outputs import CLOUDS, DATA, VIEWS, Gallery, Row, answer_inputs, file_cells, find_all
from hf_any3d.many_files.files import Cloud
from hf_any3d.many_files.work import usual_batch_size
from hf_any3d.utils.messages import model_errors, printable


def segment(
    files: Files,
    options: FileOptions,
    model: Model = None,
    labels: Annotated[
        str | None, option("For models that find parts by name: 'seat, leg, back'.", "--labels", "-l")
    ] = None,
    category: Annotated[str | None, option("Category of the objects, for models of parts.")] = None,
    templates: Annotated[str | None, option("Texts around names: part_only, part_plus_cat or ensemble.")] = None,
    text_features: Annotated[
        Path | None, option("A .safetensors file with a vector for each name, instead of the text tower.")
    ] = None,
    up_axis: UpAxis = None,
    max_points: Annotated[
        int | None, option("Thin out to this many points; the others get the label of the nearest one.", min=1)
    ] = None,
    votes: Annotated[
        bool, typer.Option("--votes", help="Vote over views and fragments, as published for PTv3; much slower.")
    ] = False,
    output: Annotated[
        Path | None,
        option("A page or picture, the points of one cloud, a table, or a folder for points and a page of each."),
    ] = None,
    batch_size: Annotated[int | None, option("Blocks per batch; by default 8, or 1 for voxels.", min=1)] = None,
    device: Device = None,
) -> None:
    """Label every point with the part or object that it belongs to.

    Clouds of any size are processed in blocks. A bar shows the blocks that are done. Models such as PatchAlign3D and
    Find3D find parts by their names, which --labels gives.
    """
    name, inputs, suffix = find_all(files, model, "segment", output, (*VIEWS, *CLOUDS, *DATA, ""), options)
    words = {"candidate_labels": labels, "templates": templates, "text_features": text_features}
    asked: dict[str, Any] = {key: value for key, value in words.items() if value is not None}
    architecture = str((read_model_config(name).get("architectures") or [""])[0])
    finds_by_name = architecture.endswith("ForZeroShotPointCloudSegmentation")
    if finds_by_name != bool(asked) or (asked and labels is None):
        raise ValueError(f"{name} {'needs --labels of parts' if finds_by_name else 'has labels of its own'}")
    pipe = open_pipeline(f"{'zero-shot-' if finds_by_name else ''}point-cloud-segmentation", name, device)
    names = pipe.label_names() if labels is None else pipe.label_names(labels)
    from hf_any3d.visualization.viewer import colors_of

    palette = colors_of(pipe.model.config, len(names))
    shown_up = up_axis or pipe.feature_extractor.up_axis
    gallery, numbers = Gallery(output, len(inputs), shown_up), set()
    places, titles = inputs.places(), inputs.titles()
    # A block of voxels may hold a million points.
    batch_size = batch_size or usual_batch_size(pipe, 8 if pipe.feature_extractor.returns_num_points else 1)
    asked |= {"category": category, "up_axis": up_axis, "max_points": max_points, "batch_size": batch_size}
    if votes:
        asked["votes"] = True

    def legend(numbers: Sequence[int]) -> dict[str, Any]:
        return {names[number]: palette[number].tolist() for number in numbers}

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        rows = []
        for cloud in clouds:
            with model_errors(name, "cannot answer"):
                result = pipe(cloud.row, progress=True, **asked)
            points, labels = result["points"], result["labels"]
            present = np.unique(labels).tolist()
            numbers.update(present)
            # Relative to the smallest coordinates, which float32 can hold.
            shown = points - points.min(axis=0)
            gallery.add(shown, palette[labels], titles[cloud.name])
            if output is not None and suffix in CLOUDS:
                _write_labeled(output, points, labels, palette)
            elif output is not None and not suffix:
                place = output / places[cloud.name]
                # Appended: `with_suffix` would replace what follows a dot in the name.
                _write_labeled(place.with_name(f"{place.name}.ply"), points, labels, palette)
                page = Gallery(place.with_name(f"{place.name}.html"), 1, shown_up)
                page.add(shown, palette[labels], place.name)
                page.write(place.name, legend(present))
            counts = [(part, int(part["mask"].sum())) for part in result["segments"]]
            segments = [
                {"label": part["label"], "points": count, "share": count / len(labels), "score": part["score"]}
                for part, count in counts
            ]
            rows.append({"points": len(labels), "segments": segments})
        return rows

    def line(row: Row) -> str:
        parts = "   ".join(f"{printable(part['label'])} {100 * part['share']:.1f} %" for part in row["segments"])
        return f"{row['points']:,} points: {parts}"

    def cells(row: Row) -> Iterator[Row]:
        return file_cells(row, row.get("segments", ()))

    # The pipeline shows a bar of the blocks.
    rows = answer_inputs(inputs, answer, line, cells, output, options, has_bar=True)
    gallery.write(f"labels by {name}", legend(sorted(numbers)))
    finish(rows)


def _write_labeled(path: Path, points: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> None:
    from hf_any3d.data.files import PointCloudData, write_point_cloud

    path.parent.mkdir(parents=True, exist_ok=True)
    write_point_cloud(path, PointCloudData(points, palette[labels], labels=labels))
