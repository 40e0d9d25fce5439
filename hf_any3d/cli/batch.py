"""`hf-any3d batch`: predict, embed, detect or convert many files, with a row for each; interrupted runs resume.

A `Job` describes the work in plain values; `hf_any3d.many_files` does it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import (
    SOME_FAILED,
    BatchSize,
    Device,
    ModelCommand,
    check_model,
    open_pipeline,
    option,
    print_error,
    progress,
    status,
)
from hf_any3d.cli.detect import (
    Align,
    AlignParts,
    Grammar,
    Labels,
    LargestOverlap,
    LayoutTask,
    MostBoxes,
    Threshold,
    box_answerer,
    box_cells,
    check_layout_settings,
    layout_settings,
)
from hf_any3d.cli.inputs import Files, Inputs, find_inputs, print_problems
from hf_any3d.cli.outputs import counted, csv_lines
from hf_any3d.cli.predict import (
    EMBEDDING_COMMANDS,
    Model,
    UpAxis,
    classifier_or_default,
    feature_answerer,
    feature_cells,
    prediction_answerer,
    prediction_cells,
    split_model,
)
from hf_any3d.many_files.executors import EXECUTORS, Workers, executor_of
from hf_any3d.many_files.files import Cloud
from hf_any3d.many_files.runs import Table, run
from hf_any3d.many_files.work import Answer, RowsWork, answerer, cut, usual_batch_size
from hf_any3d.utils.messages import print_line

batch = typer.Typer(
    rich_markup_mode="markdown",
    help="Process many files, with a row of results for each; the same command continues an interrupted run.",
    no_args_is_help=True,
)

_TABLES = (".jsonl", ".csv", ".json", ".parquet")
_MOST_FILES_AT_A_TIME = 256
_PIPELINES = {
    "predict": "point-cloud-classification",
    "embed": "point-cloud-feature-extraction",
    "detect": "point-cloud-object-detection",
}


class FileFormat(StrEnum):
    """Formats that clouds are written in."""

    PLY = "ply"
    OBJ = "obj"
    NPZ = "npz"


@dataclass(frozen=True)
class Job:
    """The work on each file.

    Args:
        task: "predict", "embed", "detect" or "convert".
        settings: Settings that determine the results, as plain values.
        device: Device of the model; it does not determine the results.
        batch_size: Clouds per batch; None for the usual number.
    """

    task: str
    settings: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    batch_size: int | None = None

    def identity(self, given: Sequence[str]) -> dict[str, Any]:
        """Return what two runs must have in common for the second one to continue the first."""
        from hf_any3d.data.fingerprints import model_fingerprint

        same = {"task": self.task, "settings": self.settings, "given": list(given)}
        return same | ({"model": model_fingerprint(self.settings["model"])} if "model" in self.settings else {})


def _open(job: Job) -> tuple[Answer, int]:
    """Open what a job needs, and return the function of clouds with its batch size."""
    settings = job.settings
    if job.task == "convert":
        return _Converter(**settings), 1
    pipe = open_pipeline(_PIPELINES[job.task], settings["model"], job.device)
    if job.task == "predict":
        run_model = answerer(pipe, settings["model"], top_k=settings["top_k"], up_axis=settings["up_axis"])
        answer = prediction_answerer(run_model)
    elif job.task == "detect":
        known = ("model", "threshold", "nms_iou", "top_k", "up_axis")
        check_layout_settings(pipe, settings["model"], {k: v for k, v in settings.items() if k not in known})
        answer = box_answerer(pipe, **settings)
    else:
        answer = feature_answerer(pipe, settings["model"], settings["feature"], settings["up_axis"])
    return answer, job.batch_size or usual_batch_size(pipe)


class _Converter:
    """Write clouds in another format, in the folders that they have below the folder that all share."""

    def __init__(self, output: str, to: str, root: str, points: int | None):
        self.output, self.to, self.root, self.points = Path(output), to, root, points

    def __call__(self, clouds: list[Cloud]) -> list[dict[str, Any]]:
        from hf_any3d.data.files import write_point_cloud

        rows = []
        for cloud in clouds:
            data = cloud.data
            if self.points is not None and data.is_mesh:
                data = data.sample_surface(self.points)
            # The ending stays in the name: chair.obj and chair.stl are two files.
            path = self.output / f"{os.path.relpath(os.path.abspath(cloud.name), self.root)}.{self.to}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_point_cloud(path, data)
            rows.append({"output": str(path), "points": len(data)})
        return rows


def _check_engine(engine: str) -> str:
    if engine not in EXECUTORS:
        raise typer.BadParameter(f"{engine!r}; expected one of {', '.join(EXECUTORS)}")
    return engine


EngineName = Annotated[
    str, typer.Option("--engine", callback=_check_engine, help=f"Where the work is done: {', '.join(EXECUTORS)}.")
]
NumWorkers = Annotated[
    int | None, option("Processes; by default one, with --engine ray one on each CPU or GPU.", min=1)
]
Retry = Annotated[bool, typer.Option("--retry", help="Try files again that failed before.")]
TableOutput = Annotated[Path, option("Table to write: .jsonl, .csv, .json or .parquet.")]


@batch.command(cls=ModelCommand)
def predict(
    files: Files,
    output: TableOutput,
    model: Annotated[
        str | None, option("Directory or hub name of a classifier; by default the small one that comes along.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels for each file.")] = 3,
    up_axis: UpAxis = None,
    batch_size: BatchSize = None,
    device: Device = None,
    retry: Retry = False,
    engine: EngineName = "local",
    workers: NumWorkers = None,
) -> None:
    """Classify many files."""
    _check_table(output)
    model, files = split_model(files, model)
    settings = {"model": classifier_or_default(model), "top_k": top_k, "up_axis": up_axis}
    _run(Job("predict", settings, device, batch_size), files, find_inputs(files), output, retry, engine, workers)


@batch.command(cls=ModelCommand)
def embed(
    files: Files,
    output: TableOutput,
    model: Model = None,
    feature: Annotated[str, typer.Option(help="pooled, class_token, or tokens for their mean.")] = "pooled",
    up_axis: UpAxis = None,
    batch_size: BatchSize = None,
    device: Device = None,
    retry: Retry = False,
    engine: EngineName = "local",
    workers: NumWorkers = None,
) -> None:
    """Extract a feature vector of many files."""
    _check_table(output)
    if feature not in ("pooled", "class_token", "tokens"):
        raise ValueError(f"--feature is {feature!r}; expected pooled, class_token or tokens")
    name, files = split_model(files, model, "features")
    settings = {"model": check_model(name, *EMBEDDING_COMMANDS), "feature": feature, "up_axis": up_axis}
    _run(Job("embed", settings, device, batch_size), files, find_inputs(files), output, retry, engine, workers)


@batch.command(cls=ModelCommand)
def detect(
    files: Files,
    output: TableOutput,
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
    batch_size: BatchSize = None,
    device: Device = None,
    retry: Retry = False,
    engine: EngineName = "local",
    workers: NumWorkers = None,
) -> None:
    """Find objects in many scans, with a box around each."""
    _check_table(output)
    name, files = split_model(files, model, "detect")
    settings = {"model": check_model(name, "detect"), "threshold": threshold, "nms_iou": nms_iou, "top_k": top_k}
    settings["up_axis"] = up_axis
    # Not among the settings unless they are given, so that runs of before continue.
    settings |= layout_settings(task, labels, align, align_parts, grammar)
    _run(Job("detect", settings, device, batch_size), files, find_inputs(files), output, retry, engine, workers)


@batch.command()
def convert(
    files: Files,
    output: Annotated[Path, option("Folder for the files and results.jsonl.")],
    to: Annotated[FileFormat, typer.Option(help="Format to write.")] = FileFormat.PLY,
    points: Annotated[int | None, option("Write this many points of the surface of meshes.", min=1)] = None,
    retry: Retry = False,
    engine: EngineName = "local",
    workers: NumWorkers = None,
) -> None:
    """Write many files in another format."""
    if output.is_file():
        raise ValueError(f"--output: {output} is a file; expected a folder")
    inputs = find_inputs(files)
    names = [os.path.dirname(os.path.abspath(file.name)) for file in inputs.files]
    settings = {"output": str(output), "to": to.value, "root": os.path.commonpath(names), "points": points}
    _run(Job("convert", settings), files, inputs, output / "results.jsonl", retry, engine, workers)


def _check_table(output: Path) -> None:
    if output.suffix.lower() not in _TABLES:
        raise ValueError(f"--output: {output} has type {output.suffix!r}; expected one of {', '.join(_TABLES)}")


def _run(
    job: Job, given: Sequence[str], inputs: Inputs, output: Path, retry: bool, engine: str, workers: int | None
) -> None:
    """Run a job on the files that have no row yet, and write the table."""
    files = {file.name: file for file in inputs.files}
    data = {name: file for name, file in files.items() if file.data is not None}
    # Bytes of standard input are in this process alone.
    if data and (engine != "local" or (workers or 1) > 1):
        words = f"--workers {workers}" if engine == "local" else f"--engine {engine}"
        raise ValueError(f"{words} reads files, not standard input; expected files or folders")

    def execute(names: list[str]) -> Iterator[dict[str, Any]]:
        executor, placed = executor_of(engine, Workers(workers)), job
        with status("starting Ray") if engine == "ray" else nullcontext():
            # Conversion runs no model, so it needs no device.
            if job.task != "convert":
                executor, device = executor.placed(job.device)
                placed = replace(job, device=device)
            count = executor.count(len(names))
        # So many shards that all processes have work until the end.
        size = max(1, min(_MOST_FILES_AT_A_TIME, len(names) // (4 * count))) if count > 1 else _MOST_FILES_AT_A_TIME
        # A partial function and no lambda, since other processes get it pickled.
        work = RowsWork(partial(_open, placed), given=data)
        with progress(len(names), "file", show=len(names) > 1) as bar:
            for row in executor.run(work, cut(names, size)):
                print_problems(row)
                yield row
                bar.update()

    suffix = output.suffix.lower()
    table = Table(output, job.identity(given), None if suffix == ".jsonl" else partial(_write_table, job.task, suffix))
    try:
        before, done = run(table, files, lambda name: files[name].stamp(), execute, retry=retry)
    except ChildProcessError as error:
        raise ChildProcessError(
            f"{error}; expected fewer --workers, or --engine ray, which replaces it. The same command continues this "
            "run"
        ) from None
    known = f", {before} of them before" if before else ""
    print_line(f"{output}: {counted(len(files), 'file')}{known}, {done.failed} failed")
    if done.failed:
        print_error(f"{done.failed} of {len(files)} files could not be used; column error of {output} has the reasons")
        raise typer.Exit(SOME_FAILED)


def _write_table(task: str, suffix: str, path: Path, rows: Iterable[dict[str, Any]]) -> None:
    if suffix == ".json":
        # JSON and CSV have no form that could grow line by line and stay valid, so they are written at the end.
        path.write_text(json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    elif suffix == ".csv":
        flat = {"predict": prediction_cells, "embed": feature_cells, "detect": box_cells}[task]
        path.write_text("\n".join(csv_lines([cells for row in rows for cells in flat(row)])) + "\n", encoding="utf-8")
    else:
        from datasets import Features, Value

        from hf_any3d.many_files.parts import parquet_writer
        from hf_any3d.many_files.rows import Step

        column = {"predict": "predictions", "embed": "features", "detect": "boxes"}[task]
        kind = Step(_PIPELINES[task], "", column).type
        features = Features({"file": Value("string"), column: kind, "error": Value("string")})
        with parquet_writer(path, features) as written:
            for row in rows:
                written.write({name: row.get(name) for name in features})
            written.finalize()
