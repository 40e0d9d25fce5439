"""`hf-any3d batch`: predict, embed, detect or convert many files, with a row for each; interrupted runs resume.

A `Job` describes the work in plain values; `hf_any3d.many_files` does it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import (
    SOME_FAILED,
    BatchSize,
    Classifier,
    Device,
    Embedder,
    Feature,
    FeatureName,
    Model,
    ModelCommand,
    TopK,
    UnitOfFiles,
    UpAxis,
    check_model,
    open_pipeline,
    option,
    print_error,
    progress,
    status,
    with_groups,
)
from hf_any3d.cli.detect import BoxOptions, box_answerer, box_cells
from hf_any3d.cli.inputs import FileNotes, Files, find_inputs, model_or_packaged, split_model
from hf_any3d.cli.outputs import check_output, counted, csv_lines
from hf_any3d.cli.predict import (
    EMBEDDING_COMMANDS,
    Votes,
    feature_answerer,
    feature_cells,
    prediction_answerer,
    prediction_cells,
)
from hf_any3d.cli.segment import (
    Category,
    CopyOptions,
    MaxPoints,
    PartFeatures,
    PartNames,
    PointOptions,
    Templates,
    copy_answerer,
    open_segmentation,
    segment_cells,
    text_arguments,
)
from hf_any3d.many_files.executors import EXECUTORS, Workers
from hf_any3d.many_files.files import Cloud
from hf_any3d.many_files.runs import Table, lock, run
from hf_any3d.many_files.work import Opened, RowsWork, cut, usual_batch_size
from hf_any3d.utils.messages import print_line

batch = typer.Typer(
    rich_markup_mode="markdown",
    help=(
        "Process many files, with a row of results for each; the same command continues an interrupted run.\n\n"
        "`hf-any3d batch predict scans --output labels.csv --workers 4`"
    ),
    no_args_is_help=True,
)

_TABLES = (".jsonl", ".csv", ".json", ".parquet")
_MOST_FILES_AT_A_TIME = 256
# Task -> the pipeline, the column of its answers, and the function from a row to rows of CSV.
_TASKS = {
    "predict": ("point-cloud-classification", "predictions", prediction_cells),
    "embed": ("point-cloud-feature-extraction", "features", feature_cells),
    "detect": ("point-cloud-object-detection", "boxes", box_cells),
    "segment": ("point-cloud-segmentation", "segments", segment_cells),
}


class FileFormat(StrEnum):
    """Formats that clouds are written in."""

    PLY = "ply"
    OBJ = "obj"
    NPZ = "npz"


class Engine(StrEnum):
    """Executors of the work."""

    LOCAL = "local"
    RAY = "ray"


TableOutput = Annotated[Path, option("Table to write: .jsonl, .csv, .json or .parquet.")]


@dataclass(frozen=True)
class RunOptions:
    """Options of all batches."""

    retry: Annotated[bool, typer.Option("--retry", help="Try files again that failed before.")] = False
    engine: Annotated[Engine, typer.Option(help="Where the work is done.")] = Engine.LOCAL
    workers: Annotated[
        int | None, option("Processes; by default one, with --engine ray one on each CPU or GPU.", min=1)
    ] = None


@dataclass(frozen=True)
class Job:
    """The work on each file: "predict", "embed", "detect", "segment" or "convert".

    Its settings, plain values, determine the results; device and batch size do not.
    """

    task: str
    # Plain values, so that a job can be pickled for other processes and written into the description of a run.
    settings: dict[str, Any]
    device: str | None = None
    batch_size: int | None = None

    def description(self, words: Sequence[str]) -> dict[str, Any]:
        """Return what two runs must have in common for the second one to continue the first."""
        from hf_any3d.data.fingerprints import model_fingerprint

        # Not the device and the batch size, which may differ when a run is continued.
        same = {"task": self.task, "settings": self.settings, "given": list(words)}
        # By content: under the same name there may be other weights now.
        return same | ({"model": model_fingerprint(self.settings["model"])} if "model" in self.settings else {})

    def open(self) -> Opened:
        """Open what the job needs."""
        # Conversion needs no model, and writes cloud by cloud.
        if self.task == "convert":
            return Opened(partial(_convert, **self.settings), 1)
        settings = dict(self.settings)
        model = settings.pop("model")
        if self.task == "segment":
            # A cloud at a time: its blocks fill the batches of the model.
            pipe = open_segmentation(model, settings["asked"], self.device)
            columns = tuple(pipe.feature_extractor.columns)
            return Opened(copy_answerer(pipe, model, self.batch_size, **settings), 1, columns)
        pipe = open_pipeline(_TASKS[self.task][0], model, self.device)
        if self.task == "predict":
            answer = prediction_answerer(pipe, model, **settings)
        elif self.task == "detect":
            answer = box_answerer(pipe, model, settings)
        else:
            answer = feature_answerer(pipe, model, **settings)
        return Opened(answer, self.batch_size or usual_batch_size(pipe))


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


@batch.command(cls=ModelCommand)
@with_groups
def predict(
    files: Files,
    output: TableOutput,
    options: RunOptions,
    model: Classifier = None,
    top_k: TopK = 3,
    votes: Votes = None,
    up_axis: UpAxis = None,
    batch_size: BatchSize = None,
    device: Device = None,
) -> None:
    """Classify many files."""
    check_output(output, _TABLES)
    model, files = split_model(files, model)
    settings = {"model": model_or_packaged(model, "predict"), "top_k": top_k, "up_axis": up_axis}
    # Only if it is asked for, so that runs of before there was the option go on.
    settings |= {} if votes is None else {"votes": votes}
    _run(Job("predict", settings, device, batch_size), files, output, options)


@batch.command(cls=ModelCommand)
@with_groups
def embed(
    files: Files,
    output: TableOutput,
    options: RunOptions,
    model: Embedder = None,
    feature: FeatureName = Feature.POOLED,
    up_axis: UpAxis = None,
    batch_size: BatchSize = None,
    device: Device = None,
) -> None:
    """Extract a feature vector of many files."""
    check_output(output, _TABLES)
    name, files = split_model(files, model)
    settings = {"model": model_or_packaged(name, *EMBEDDING_COMMANDS), "feature": feature.value, "up_axis": up_axis}
    _run(Job("embed", settings, device, batch_size), files, output, options)


@batch.command(cls=ModelCommand)
@with_groups
def detect(
    files: Files,
    output: TableOutput,
    boxes: BoxOptions,
    options: RunOptions,
    model: Model = None,
    batch_size: BatchSize = None,
    device: Device = None,
) -> None:
    """Find objects in many scans, with a box around each."""
    check_output(output, _TABLES)
    name, files = split_model(files, model, "detect")
    settings = {"model": check_model(name, "detect"), **boxes.settings()}
    _run(Job("detect", settings, device, batch_size), files, output, options)


@batch.command(cls=ModelCommand)
@with_groups
def segment(
    files: Files,
    output: Annotated[Path, option("Folder for the copies, named as the files, and results.jsonl.")],
    copies: CopyOptions,
    points: PointOptions,
    options: RunOptions,
    model: Model = None,
    labels: PartNames = None,
    category: Category = None,
    templates: Templates = None,
    text_features: PartFeatures = None,
    up_axis: UpAxis = None,
    unit: UnitOfFiles = None,
    max_points: MaxPoints = None,
    batch_size: Annotated[int | None, option("Blocks per batch; by default 8, or 1 for voxels.", min=1)] = None,
    device: Device = None,
) -> None:
    """Write a copy of each file in which only the class of each point is new."""
    name, files = split_model(files, model, "segment")
    # The names of parts decide which pipeline opens; the others are arguments of its calls.
    asked = text_arguments(labels, templates, text_features)
    call = {"category": category, "up_axis": up_axis, "max_points": max_points, **copies.arguments()}
    call |= points.arguments()
    call |= {} if unit is None else {"unit": unit.value}
    settings = {"model": check_model(name, "segment"), "output": str(output), "asked": asked, "call": call}
    _run(Job("segment", settings, device, batch_size), files, output / "results.jsonl", options)


@batch.command()
@with_groups
def convert(
    files: Files,
    output: Annotated[Path, option("Folder for the files and results.jsonl.")],
    options: RunOptions,
    to: Annotated[FileFormat, typer.Option(help="Format to write.")] = FileFormat.PLY,
    points: Annotated[int | None, option("Write this many points of the surface of meshes.", min=1)] = None,
) -> None:
    """Write many files in another format."""
    settings = {"output": str(output), "to": to.value, "points": points}
    _run(Job("convert", settings), files, output / "results.jsonl", options)


def _run(job: Job, words: Sequence[str], output: Path, options: RunOptions) -> None:
    """Run a job on the files that have no row yet, and write the table."""
    # Before files are listed and weights are read, so that a second process is refused at once.
    with lock(output):
        _run_locked(job, words, output, options)


def _run_locked(job: Job, words: Sequence[str], output: Path, options: RunOptions) -> None:
    # By name, so that a file has one row even if several words stand for it.
    files = {file.name: file for file in find_inputs(words).files}
    # Standard input, which processes started later cannot read.
    data = {name: file for name, file in files.items() if file.data is not None}
    engine = options.engine
    if job.task in ("convert", "segment"):
        # Results keep the folders that files have below the one that all share.
        root = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in files])
        job = replace(job, settings=job.settings | {"root": root})

    def execute(names: list[str]) -> Iterator[dict[str, Any]]:
        executor = EXECUTORS[engine.value](Workers(options.workers))
        placed = job
        with status("starting Ray") if engine is Engine.RAY else nullcontext():
            # Conversion runs no model, so it needs no device.
            if job.task != "convert":
                executor, device = executor.placed(job.device)
                placed = replace(job, device=device)
            # No more processes than files.
            count = executor.count(len(names))
        # A batch for each of several processes, so that all have work until the end and rows come soon.
        size = _MOST_FILES_AT_A_TIME if count == 1 else max(1, min(job.batch_size or 8, len(names) // count))
        with FileNotes() as notes, progress(len(names), "file", show=len(names) > 1) as bar:
            work = RowsWork(placed.open, given=data, are_copied=job.task == "segment")
            for row in executor.run(work, cut(names, size)):
                notes.add("warning", row["file"], row.get("warnings", ()))
                notes.add("error", row["file"], [row["error"]] if "error" in row else ())
                yield row
                bar.update()

    suffix = output.suffix.lower()
    # Lines of JSON are the table itself; other types are made of them.
    table = Table(
        output, job.description(words), None if suffix == ".jsonl" else partial(_write_table, job.task, suffix)
    )
    # The stamp tells on a second run whether a file has changed.
    before, done = run(table, files, lambda name: files[name].stamp(), execute, retry=options.retry)
    earlier = f", {before} of them before" if before else ""
    print_line(f"{output}: {counted(len(files), 'file')}{earlier}, {done.failed} failed")
    # The table is complete, with errors in it: the exit code tells a script so.
    if done.failed:
        print_error(f"{done.failed} of {len(files)} files could not be used; column error of {output} has the reasons")
        raise typer.Exit(SOME_FAILED)


def _write_table(task: str, suffix: str, path: Path, rows: Iterable[dict[str, Any]]) -> None:
    # Never of conversion and copies, whose rows stay in .jsonl.
    pipeline, column, cells = _TASKS[task]
    if suffix == ".json":
        # JSON and CSV have no form that could grow line by line and stay valid, so they are written at the end.
        path.write_text(json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    elif suffix == ".csv":
        path.write_text("\n".join(csv_lines([part for row in rows for part in cells(row)])) + "\n", encoding="utf-8")
    else:
        from datasets import Features, Value

        from hf_any3d.many_files.parts import parquet_writer
        from hf_any3d.many_files.rows import Step

        # Types by the task: no row tells them, as the first ones may all be errors.
        answer = Step(pipeline, "", column).type
        features = Features({"file": Value("string"), column: answer, "error": Value("string")})
        with parquet_writer(path, features) as written:
            # Rows of errors have no answer, and good ones no error.
            for row in rows:
                written.write({name: row.get(name) for name in features})
            written.finalize()
