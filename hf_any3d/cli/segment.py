"""`hf-any3d segment`: a label for every point, of a model's own labels or of parts that are named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hf_any3d.cli.common import (
    Device,
    FileOptions,
    Model,
    UnitOfFiles,
    UpAxis,
    open_pipeline,
    option,
    print_note,
    read_model_config,
)
from hf_any3d.cli.inputs import Files, Inputs, finish
from hf_any3d.cli.outputs import CLOUDS, DATA, VIEWS, Gallery, Row, answer_inputs, file_cells, find_all
from hf_any3d.many_files.files import Cloud
from hf_any3d.many_files.work import Answer, usual_batch_size
from hf_any3d.registry import FORMATS
from hf_any3d.utils.messages import model_errors, printable

# A page or picture, a cloud, a table, a folder, or a copy of the file.
_OUTPUTS = tuple(dict.fromkeys([*VIEWS, *CLOUDS, *DATA, "", *(f".{ending}" for ending in FORMATS)]))
PartNames = Annotated[str | None, option("For models that find parts by name: 'seat, leg, back'.", "--labels", "-l")]
Templates = Annotated[str | None, option("Texts around names: part_only, part_plus_cat or ensemble.")]
PartFeatures = Annotated[
    Path | None,
    option("A .safetensors file with a vector for each name, instead of the text tower.", "--text-features"),
]
Category = Annotated[str | None, option("Category of the objects, for models of parts.")]
MaxPoints = Annotated[
    int | None, option("Thin out to this many points; the others get the label of the nearest one.", min=1)
]


@dataclass(frozen=True)
class CopyOptions:
    """Options of copies of the files in which only the class changed."""

    field: Annotated[
        str | None, option("Of a labeled copy: where the class goes, such as a dimension of extra bytes of LAS.")
    ] = None
    score: Annotated[bool, typer.Option("--score", help="Of a labeled copy: write the probability, too.")] = False
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Of a labeled copy: write how unlike the training a point is.")
    ] = False
    classes: Annotated[
        str | None, option("Of a labeled copy: codes of classes, 'ground=2,building=6,*=1'; * are all others.")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the pipeline."""
        # Only what is given, so that an empty result means that no copy was asked for.
        arguments: dict[str, Any] = {}
        if self.field is not None:
            arguments["field"] = self.field
        if self.classes is not None:
            arguments["classes"] = self.classes
        if self.score:
            arguments["write_scores"] = True
        if self.unknown:
            arguments["write_unknown"] = True
        return arguments

    def check(self, source: str, path: Path) -> None:
        """Check what can be checked before the model is loaded."""
        from hf_any3d.data.files.labels import check_labels_fit

        check_labels_fit(source, path, field=self.field, scores=self.score, unknown=self.unknown)


@dataclass(frozen=True)
class PointOptions:
    """Options of segmentation that only some models take."""

    votes: Annotated[
        bool, typer.Option("--votes", help="Vote over views and fragments, as published for PTv3; much slower.")
    ] = False
    none_of_these: Annotated[
        bool,
        typer.Option(
            "--none-of-these", help="Label points that are unlike all that was learned so; in LAS: never classified."
        ),
    ] = False
    noise: Annotated[
        bool,
        typer.Option(
            "--noise",
            help="Label points far below the ground, and lone ones far above it, so, 7 in LAS; without it they keep "
            "their class.",
        ),
    ] = False
    adapt: Annotated[
        bool,
        typer.Option(
            "--adapt",
            help="Learn once more for each file, from its own points of which the model is sure: better in places "
            "unlike the learned ones, and two to four times as slow.",
        ),
    ] = False

    def arguments(self) -> dict[str, bool]:
        """Return the options that are set, as arguments of the pipeline."""
        return {name: True for name, is_asked in vars(self).items() if is_asked}

    def names(self, pipe: Any) -> Sequence[str] | None:
        """Return the names of the labels by their numbers, or None if they are the usual ones."""
        further = {name: True for name in ("none_of_these", "noise") if getattr(self, name)}
        # Other pipelines refuse these arguments when they are called.
        return pipe.all_names(**further) if further and hasattr(pipe, "all_names") else None


def segment(
    files: Files,
    options: FileOptions,
    copies: CopyOptions,
    points: PointOptions,
    model: Model = None,
    labels: PartNames = None,
    category: Category = None,
    templates: Templates = None,
    text_features: PartFeatures = None,
    up_axis: UpAxis = None,
    unit: UnitOfFiles = None,
    max_points: MaxPoints = None,
    output: Annotated[
        Path | None,
        option(
            "A copy of the file with its classes (out.laz for a .laz), a page or picture, the points of one cloud, a "
            "table, or a folder for a copy and a page of each."
        ),
    ] = None,
    batch_size: Annotated[int | None, option("Blocks per batch; by default 8, or 1 for voxels.", min=1)] = None,
    device: Device = None,
) -> None:
    """Label every point with the part or object that it belongs to.

    Clouds of any size are processed in blocks. A bar shows the blocks that are done. Models such as PatchAlign3D and
    Find3D find parts by their names, which --labels gives. With an --output of the file's own ending, everything in
    it stays as it is but the class of each point; of .las and .laz either becomes the other.
    """
    # Output and copies are checked before the model is opened.
    name, inputs, suffix = find_all(files, model, "segment", output, _OUTPUTS, options)
    targets = _copies(inputs, output, suffix, copies)
    inputs = replace(inputs, files=[replace(file, is_copied=file.name in targets) for file in inputs.files])
    arguments = text_arguments(labels, templates, text_features)
    pipe = open_segmentation(name, arguments, device)
    columns = tuple(pipe.feature_extractor.columns)
    inputs = replace(inputs, files=[replace(file, columns=columns) for file in inputs.files])
    names = pipe.label_names() if labels is None else pipe.label_names(labels)
    # A block of voxels may hold a million points.
    batch_size = batch_size or usual_batch_size(pipe, 8 if pipe.feature_extractor.returns_num_points else 1)
    arguments |= {"category": category, "up_axis": up_axis, "max_points": max_points, "batch_size": batch_size}
    arguments |= points.arguments()
    if unit is not None:
        arguments["unit"] = unit.value
    names = points.names(pipe) or names
    shown = _Shown(pipe, names, Gallery(output, len(inputs), up_axis or pipe.feature_extractor.up_axis))
    places = inputs.places()
    titles = inputs.titles()

    def label(cloud: Cloud) -> dict[str, Any]:
        # None where no copy is asked for, and where the format of the file cannot hold labels.
        target = targets.get(cloud.name)
        of_copy = {} if target is None else {"write": target, **copies.arguments()}
        with model_errors(name, "cannot answer"):
            result = pipe(cloud.row, progress=True, **arguments, **of_copy)
        shown.add(result, titles[cloud.name])
        if output is not None:
            # In a folder of results each file has its own place.
            place = output / places[cloud.name] if not suffix else None
            _write_beside_copy(shown, result, output, place, targets, has_copy=target is not None)
        row = segment_row(result)
        # The path of a copy is in JSON, and told below the table.
        return row if target is None else {**row, "output": str(target)}

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        return [label(cloud) for cloud in clouds]

    def line(row: Row) -> str:
        parts = "   ".join(f"{printable(part['label'])} {100 * part['share']:.1f} %" for part in row["segments"])
        return f"{row['points']:,} points: {parts}"

    # The pipeline shows a bar of the blocks.
    table = None if output is not None and output in targets.values() else output
    rows = answer_inputs(inputs, answer, line, segment_cells, table, options, has_bar=True)
    shown.gallery.write(f"labels by {name}", shown.legend(shown.present))
    _tell_of_copies(rows)
    finish(rows)


def text_arguments(labels: str | None, templates: str | None, text_features: Path | None) -> dict[str, Any]:
    """Return the arguments of pipelines that find parts by their names; none without names."""
    features = None if text_features is None else str(text_features)
    texts = {"candidate_labels": labels, "templates": templates, "text_features": features}
    return {name: value for name, value in texts.items() if value is not None}


def _write_beside_copy(
    shown: _Shown,
    answer: Mapping[str, Any],
    output: Path,
    place: Path | None,
    targets: Mapping[str, Path],
    *,
    has_copy: bool,
) -> None:
    """Write what an answer gets beside a labeled copy of its file: at its place in a folder a page.

    Points are for files without a copy, whose format cannot hold labels.
    """
    if place is not None:
        shown.write_page(place, answer)
    if has_copy:
        return
    if place is not None:
        shown.write_points(_free(place, targets), answer)
    elif output.suffix.lower() in CLOUDS:
        shown.write_points(output, answer)


def _tell_of_copies(rows: Sequence[Row]) -> None:
    for row in rows:
        if "output" in row and "error" not in row:
            print_note(f"{row['output']}: {row['file']} with the class of each point")


class _Shown:
    """Pages and points of answers, in the colors of their labels."""

    def __init__(self, pipe: Any, names: Sequence[str], gallery: Gallery):
        from hf_any3d.visualization.viewer import colors_of

        self.names = names
        self.gallery = gallery
        self.palette = colors_of(pipe.model.config, len(names))  # (labels, 3)
        self.present: set[int] = set()

    def legend(self, labels: Iterable[int]) -> dict[str, Any]:
        """Return the colors of labels by their names."""
        return {self.names[label]: self.palette[label].tolist() for label in sorted(labels)}

    def add(self, answer: Mapping[str, Any], title: str) -> None:
        """Add a cloud to the gallery."""
        # The legend of the page has the labels that occur in any cloud.
        self.present |= {*np.unique(answer["labels"]).tolist()}
        self._add(self.gallery, answer, title)

    def write_page(self, place: Path, answer: Mapping[str, Any]) -> None:
        """Write a page of one cloud beside a place."""
        page = Gallery(place.with_name(f"{place.name}.html"), 1, self.gallery.up_axis)
        self._add(page, answer, place.name)
        page.write(place.name, self.legend(np.unique(answer["labels"]).tolist()))

    def write_points(self, path: Path, answer: Mapping[str, Any]) -> None:
        """Write the points of a cloud with their labels, and in the colors of these."""
        from hf_any3d.data.files import PointCloudData, write_point_cloud

        path.parent.mkdir(parents=True, exist_ok=True)
        labels = answer["labels"]
        # Labels as numbers, and as colors for programs that show no labels.
        write_point_cloud(path, PointCloudData(answer["points"], self.palette[labels], labels=labels))

    def _add(self, gallery: Gallery, answer: Mapping[str, Any], title: str) -> None:
        # Relative to the smallest coordinates, which float32 can hold.
        points = answer["points"] - answer["points"].min(axis=0)
        gallery.add(points, self.palette[answer["labels"]], title)


def open_segmentation(name: str, texts: Mapping[str, Any], device: Any) -> Any:
    """Open the pipeline of a segmentation model, after checking whether it needs names of parts."""
    # The class tells whether labels have to be named: both kinds have the same command.
    architecture = str((read_model_config(name).get("architectures") or [""])[0])
    finds_by_name = architecture.endswith("ForZeroShotPointCloudSegmentation")
    # Templates and features are of names, and useless without them.
    if finds_by_name != bool(texts) or (texts and "candidate_labels" not in texts):
        raise ValueError(f"{name} {'needs --labels of parts' if finds_by_name else 'has labels of its own'}")
    return open_pipeline(f"{'zero-shot-' if finds_by_name else ''}point-cloud-segmentation", name, device)


def copy_answerer(
    pipe: Any,
    model: str,
    batch_size: int | None,
    *,
    output: str,
    root: str,
    asked: dict[str, Any],
    call: dict[str, Any],
) -> Answer:
    """Return a function from clouds to rows, which writes a labeled copy of each file below the folder `output`.

    Copies have the places of their files below `root`. `asked` are names of parts, and `call` further arguments.
    """
    arguments = {name: value for name, value in (asked | call).items() if value is not None}
    with model_errors(model, "cannot answer"):  # arguments of other models are an error before any file is read
        pipe._sanitize_parameters(**arguments, write=output)
    # Models of voxels take blocks of up to a million points, one at a time.
    arguments["batch_size"] = batch_size or usual_batch_size(
        pipe, 8 if pipe.feature_extractor.returns_num_points else 1
    )

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        rows = []
        for cloud in clouds:
            # The place below the folder of results is that below the folder that all files share.
            path = Path(output) / os.path.relpath(os.path.abspath(cloud.name), root)
            with model_errors(model, "cannot answer"):
                # The bar of the batch counts files.
                result = pipe(cloud.row, progress=False, write=path, **arguments)
            rows.append({"output": str(path), **segment_row(result)})
        return rows

    return answer


def segment_row(result: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a file: its number of points, and those of each class."""
    count = len(result["labels"])
    segments = []
    for part in result["segments"]:
        points = int(part["mask"].sum())
        segments.append({"label": part["label"], "points": points, "share": points / count, "score": part["score"]})
    return {"points": count, "segments": segments}


def segment_cells(row: Row) -> Iterator[Row]:
    """Yield the rows of CSV of a file, one for each class."""
    return file_cells(row, row.get("segments") or ())


def _copies(inputs: Inputs, output: Path | None, suffix: str, options: CopyOptions) -> dict[str, Path]:
    """Return where the labeled copy of each file is written, by its name, and check that of a single one."""
    targets: dict[str, Path] = {}
    if output is not None and suffix not in VIEWS:
        targets = _copies_in(inputs, output) if not suffix else _copy_at(inputs, output, suffix)
    # Of several files each is checked when its turn comes, so that one does not stop the others.
    if len(inputs) == 1:
        for name, path in targets.items():
            options.check(name, path)
    if options.arguments() and not targets:
        raise ValueError(
            "--field, --score, --unknown and --classes are of a copy of the file; expected --output with its ending, "
            "or a folder"
        )
    return targets


def _copies_in(inputs: Inputs, folder: Path) -> dict[str, Path]:
    from hf_any3d.data.files.labels import copy_endings

    titles = inputs.titles()
    # Files of other formats get their points beside the copies. So do arrays of .npy: only their content tells whether
    # they have a place for labels.
    names = [file.name for file in inputs.files if copy_endings(file.name) and not file.name.lower().endswith(".npy")]
    return {name: folder / titles[name] for name in names}


def _copy_at(inputs: Inputs, path: Path, suffix: str) -> dict[str, Path]:
    from hf_any3d.data.files.labels import copy_endings

    name = inputs.files[0].name
    is_single = len(inputs) == 1
    # Points of a .obj may become a .ply, but not a .laz; of several files .csv is a table.
    is_other = suffix in (*CLOUDS, *DATA)
    is_copy = not is_other or (is_single and suffix[1:] in copy_endings(name))
    if is_copy and not is_single:
        raise ValueError(f"--output: {path} for {len(inputs)} files; expected a folder")
    return {name: path} if is_copy else {}


def _free(place: Path, targets: Mapping[str, Path]) -> Path:
    """Return where the points of a file that cannot hold labels are written: beside copies, not over them."""
    path = place.with_name(f"{place.name}.ply")
    return path if path not in targets.values() else place.with_name(f"{place.name}.points.ply")
