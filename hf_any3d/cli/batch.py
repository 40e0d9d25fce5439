"""`hf-any3d batch`: predict, embed or convert many files, with a row for each; interrupted runs resume.

A `Job` describes the work in plain values, and an engine runs it on a list of files: in this process, in several of
this machine, or in those of a Ray cluster. Another engine is a class with the same `run` and a line in `ENGINES`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from hf_any3d.cli.common import (
    SOME_FAILED,
    BatchSize,
    Device,
    check_model,
    open_pipeline,
    option,
    print_error,
    progress,
    status,
)
from hf_any3d.cli.inputs import Cloud, Files, InputFile, Inputs, find_inputs, for_each_file, print_problems
from hf_any3d.cli.outputs import counted, csv_lines
from hf_any3d.cli.predict import (
    UpAxis,
    answerer,
    classifier_or_default,
    feature_answerer,
    feature_cells,
    prediction_cells,
    split_model,
    usual_batch_size,
)
from hf_any3d.messages import print_line

if TYPE_CHECKING:
    from hf_any3d.scale.cluster import Attempts

batch = typer.Typer(
    rich_markup_mode="markdown",
    help="Process many files, with a row of results for each; the same command continues an interrupted run.",
    no_args_is_help=True,
)

_TABLES = (".jsonl", ".csv", ".json", ".parquet")
_ROWS_AT_A_TIME = 1000
_MOST_FILES_AT_A_TIME = 256


class FileFormat(StrEnum):
    """Formats that clouds are written in."""

    PLY = "ply"
    OBJ = "obj"
    NPZ = "npz"


@dataclass(frozen=True)
class Job:
    """The work on each file.

    Args:
        task: "predict", "embed" or "convert".
        settings: Settings that determine the results, as plain values.
        device: Device of the model; it does not determine the results.
        batch_size: Clouds per batch; None for the usual number.
        workers: Processes; None for this one with the local engine, for one on each CPU or GPU with Ray.
    """

    task: str
    settings: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    batch_size: int | None = None
    workers: int | None = None

    def identity(self, given: Sequence[str]) -> dict[str, Any]:
        """Return what two runs must have in common for the second one to continue the first."""
        from hf_any3d.identity import model_identity

        same = {"task": self.task, "settings": self.settings, "given": list(given)}
        return same | ({"model": model_identity(self.settings["model"])} if "model" in self.settings else {})


class Engine(Protocol):
    """Runs jobs."""

    def run(self, job: Job, files: list[InputFile]) -> Iterator[dict[str, Any]]:
        """Yield a row for each file, in their order: `{"file": …, …}` or `{"file": …, "error": …}`."""
        ...


class LocalEngine:
    """Runs jobs in this process, or in several others of this machine."""

    def run(self, job: Job, files: list[InputFile]) -> Iterator[dict[str, Any]]:
        """Yield a row for each file; see `Engine`.

        Raises:
            ValueError: A file is standard input, with several processes.
            ChildProcessError: A process was killed.
        """
        if job.workers is None or job.workers == 1:
            answer, batch_size = _open(job)
            yield from for_each_file(Inputs(files, are_many=True), answer, batch_size)
            return
        _check_names(files, f"--workers {job.workers}")
        shards = _shards(files, job.workers)
        # Not forked: threads and locks of libraries that this process has loaded would not survive.
        context = multiprocessing.get_context("spawn")
        count = min(job.workers, len(shards))
        with ProcessPoolExecutor(count, context, _begin_process, (_FilesWork(job, os.getcwd()),)) as processes:
            try:
                yield from _shown(processes.map(_run_in_process, shards), len(files))
            except BrokenProcessPool:
                raise ChildProcessError(
                    f"one of {count} processes was killed, as when there is too little memory; expected fewer "
                    "--workers, or --engine ray, which replaces it. The same command continues this run"
                ) from None
            finally:
                processes.shutdown(cancel_futures=True)


class RayEngine:
    """Runs jobs in processes of a Ray cluster, by default a new one on this machine; see `hf_any3d.scale`.

    A process that dies is replaced, and the files that it had are processed again; each has one row.
    """

    def run(self, job: Job, files: list[InputFile]) -> Iterator[dict[str, Any]]:
        """Yield a row for each file; see `Engine`.

        Raises:
            ValueError: A file is standard input.
            ImportError: Ray is not installed.
        """
        from hf_any3d.scale.cluster import Workers, distribute, start

        _check_names(files, "--engine ray")
        with status("starting Ray"):
            resources = start().cluster_resources()
        on_gpu = job.task != "convert" and (job.device or "cuda" * bool(resources.get("GPU"))).startswith("cuda")
        # A process sees only the GPU that Ray gives it.
        job = replace(job, device="cuda" if on_gpu else job.device or "cpu")
        shards = _shards(files, int(resources["CPU"]))
        workers = Workers(job.workers, gpus=int(on_gpu))
        parts = distribute(_FilesWork(job, os.getcwd()), shards, workers, in_order=True)
        yield from _shown((rows for _, rows in parts), len(files))


def _check_names(files: list[InputFile], option: str) -> None:
    if any(file.data is not None for file in files):
        raise ValueError(f"{option} reads files, not standard input; expected files or folders")


def _shards(files: list[InputFile], processes: int) -> list[dict[str, Any]]:
    """Cut a list of files into parts, so many that all processes have work until the end."""
    size = max(1, min(_MOST_FILES_AT_A_TIME, len(files) // (4 * processes)))
    names = [file.name for file in files]
    return [{"files": names[start : start + size]} for start in range(0, len(names), size)]


def _shown(parts: Iterable[list[dict[str, Any]]], count: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of all parts with a progress bar; problems are printed."""
    with progress(count, "file", show=count > 1) as bar:
        for rows in parts:
            for row in rows:
                print_problems(row)
                yield row
                bar.update()


# In a process of the local engine: its work, and the function that does it once the model is open.
_work: _FilesWork | None = None
_run_shard: Callable[[Mapping[str, Any], Attempts | None], list[dict[str, Any]]] | None = None


def _begin_process(work: _FilesWork) -> None:
    global _work
    _work = work


def _run_in_process(shard: Mapping[str, Any]) -> list[dict[str, Any]]:
    global _run_shard
    if _run_shard is None:  # here, where an error reaches the command
        assert _work is not None
        _work.share_processors()
        _run_shard = _work.open()
    return _run_shard(shard, None)


@dataclass(frozen=True)
class _FilesWork:
    """Work of one of several processes: that of the local engine on some files, with the model opened once.

    Attributes:
        job: The work.
        folder: Where the command was started, to which names are relative.
    """

    job: Job
    folder: str

    def share_processors(self) -> None:
        """Leave the other processes of this machine their processors."""
        if self.job.task != "convert":
            import torch

            torch.set_num_threads(max(1, (os.cpu_count() or 1) // (self.job.workers or 1)))

    def open(self) -> Callable[[Mapping[str, Any], Attempts | None], list[dict[str, Any]]]:
        """Open the model and return the function that is called with `{"files": […]}`."""
        os.chdir(self.folder)
        answer, batch_size = _open(self.job)

        def answers(names: list[str]) -> list[dict[str, Any]]:
            inputs = Inputs([InputFile(name) for name in names], are_many=True)
            return list(for_each_file(inputs, answer, batch_size, show=False, report=False))

        def run(shard: Mapping[str, Any], attempts: Attempts | None) -> list[dict[str, Any]]:
            if attempts is None or not attempts.is_careful:
                return answers(shard["files"])
            rows = []
            for name in shard["files"]:
                error = attempts.begin(name)
                rows += answers([name]) if error is None else [{"file": name, "error": error}]
            return rows

        return run


def _open(job: Job) -> tuple[Callable[[list[Cloud]], list[dict[str, Any]]], int]:
    """Open what a job needs, and return the function for `for_each_file` with its batch size."""
    settings = job.settings
    if job.task == "convert":
        return _Converter(**settings), 1
    task = {"predict": "point-cloud-classification", "embed": "point-cloud-feature-extraction"}[job.task]
    pipe = open_pipeline(task, settings["model"], job.device)
    if job.task == "predict":
        answer = _predictor(pipe, settings)
    else:
        answer = feature_answerer(pipe, settings["model"], settings["feature"], settings["up_axis"])
    return answer, job.batch_size or usual_batch_size(pipe)


def _predictor(pipe: Any, settings: dict[str, Any]) -> Callable[[list[Cloud]], list[dict[str, Any]]]:
    run = answerer(pipe, settings["model"], top_k=settings["top_k"], up_axis=settings["up_axis"])
    return lambda clouds: [one if isinstance(one, dict) else {"predictions": one} for one in run(clouds)]


ENGINES: dict[str, type[Engine]] = {"local": LocalEngine, "ray": RayEngine}


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
    if engine not in ENGINES:
        raise typer.BadParameter(f"{engine!r}; expected one of {', '.join(ENGINES)}")
    return engine


EngineName = Annotated[
    str, typer.Option("--engine", callback=_check_engine, help=f"Where the work is done: {', '.join(ENGINES)}.")
]
Workers = Annotated[int | None, option("Processes; by default one, with --engine ray one on each CPU or GPU.", min=1)]
Retry = Annotated[bool, typer.Option("--retry", help="Try files again that failed before.")]
TableOutput = Annotated[Path, option("Table to write: .jsonl, .csv, .json or .parquet.")]


@batch.command()
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
    workers: Workers = None,
) -> None:
    """Classify many files."""
    _check_table(output)
    model, files = split_model(files, model, has_default=True)
    settings = {"model": classifier_or_default(model), "top_k": top_k, "up_axis": up_axis}
    _run(Job("predict", settings, device, batch_size, workers), files, find_inputs(files), output, retry, engine)


@batch.command()
def embed(
    files: Files,
    output: TableOutput,
    model: Annotated[str, option("Directory or hub name of the model.")],
    feature: Annotated[str, typer.Option(help="pooled, class_token, or tokens for their mean.")] = "pooled",
    up_axis: UpAxis = None,
    batch_size: BatchSize = None,
    device: Device = None,
    retry: Retry = False,
    engine: EngineName = "local",
    workers: Workers = None,
) -> None:
    """Extract a feature vector of many files."""
    _check_table(output)
    if feature not in ("pooled", "class_token", "tokens"):
        raise ValueError(f"--feature is {feature!r}; expected pooled, class_token or tokens")
    model = check_model(model, "predict", "zero-shot", "segment", "features")
    settings = {"model": model, "feature": feature, "up_axis": up_axis}
    _run(Job("embed", settings, device, batch_size, workers), files, find_inputs(files), output, retry, engine)


@batch.command()
def convert(
    files: Files,
    output: Annotated[Path, option("Folder for the files and results.jsonl.")],
    to: Annotated[FileFormat, typer.Option(help="Format to write.")] = FileFormat.PLY,
    points: Annotated[int | None, option("Write this many points of the surface of meshes.", min=1)] = None,
    retry: Retry = False,
    engine: EngineName = "local",
    workers: Workers = None,
) -> None:
    """Write many files in another format."""
    if output.is_file():
        raise ValueError(f"--output: {output} is a file; expected a folder")
    inputs = find_inputs(files)
    names = [os.path.dirname(os.path.abspath(file.name)) for file in inputs.files]
    settings = {"output": str(output), "to": to.value, "root": os.path.commonpath(names), "points": points}
    _run(Job("convert", settings, workers=workers), files, inputs, output / "results.jsonl", retry, engine)


def _check_table(output: Path) -> None:
    if output.suffix.lower() not in _TABLES:
        raise ValueError(f"--output: {output} has type {output.suffix!r}; expected one of {', '.join(_TABLES)}")


def _run(job: Job, given: Sequence[str], inputs: Inputs, output: Path, retry: bool, engine: str) -> None:
    """Run a job on the files that have no row yet, and write the table."""
    from hf_any3d.atomic_files import claim
    from hf_any3d.identity import input_stamp

    files = {file.name: file for file in inputs.files}
    with claim(output.with_name(f".{output.name}.lock"), output):
        table = _Table(output, job.identity(given))
        stamps = {name: input_stamp(name, file.data) for name, file in files.items()}
        done = table.resume(stamps, retry)
        left = [file for name, file in files.items() if name not in done]
        if left:
            for row in ENGINES[engine]().run(job, left):
                table.add({**row, "stamp": stamps[row["file"]]})
        failed = table.finish()
    before = f", {len(done)} of them before" if done else ""
    print_line(f"{output}: {counted(len(files), 'file')}{before}, {failed} failed")
    if failed:
        print_error(f"{failed} of {len(files)} files could not be used; column error of {output} has the reasons")
        raise typer.Exit(SOME_FAILED)


class _Table:
    """The rows of a run, one line of JSON each, appended as they come; a table of another type is written at the end.

    Args:
        output: The table.
        identity: What is done; a table of other work is refused.

    Raises:
        ValueError: The table is of other work.
    """

    def __init__(self, output: Path, identity: dict[str, Any]):
        from hf_any3d.atomic_files import read_json, write_json

        self.output, self.identity = output, identity
        hidden = output.with_name(f".{output.name}.jsonl")
        self.path = output if output.suffix.lower() == ".jsonl" else hidden
        job_file = output.with_name(f".{output.name}.job.json")
        known = read_json(job_file)
        exists = output.exists() or self.path.exists()
        if exists and known != json.loads(json.dumps(identity)):
            was = f"was made by {_difference(known, identity)}" if known else "exists already"
            raise ValueError(f"--output: {output} {was}; expected a new name, or the same command to continue it")
        write_json(job_file, identity)

    def resume(self, stamps: dict[str, str], retry: bool) -> set[str]:
        """Keep the rows of unchanged files, and return the names of these files."""
        from hf_any3d.atomic_files import atomic_write

        kept: set[str] = set()
        if not self.path.exists():
            return kept
        with atomic_write(self.path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
            for row in self._rows():
                name = str(row.get("file"))
                is_current = stamps.get(name, "") == row.get("stamp") and name not in kept
                if is_current and not (retry and "error" in row):
                    kept.add(name)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return kept

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; it is on disk when the next one is computed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def finish(self) -> int:
        """Write the table and return the number of failed files."""
        failed = sum("error" in row for row in self._rows())
        if self.path != self.output:
            self._write()
        return failed

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Yield complete rows; the last one may be cut off by an interruption."""
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row

    def _write(self) -> None:
        from hf_any3d.atomic_files import atomic_write, write_json, write_text

        suffix = self.output.suffix.lower()
        if suffix == ".json":
            write_json(self.output, [_without_stamp(row) for row in self._rows()])
        elif suffix == ".csv":
            flat = {"predict": prediction_cells, "embed": feature_cells}[self.identity["task"]]
            lines = csv_lines([cells for row in self._rows() for cells in flat(row)])
            write_text(self.output, "\n".join(lines) + "\n")
        else:
            with atomic_write(self.output) as unfinished:
                _write_parquet(unfinished, self.identity["task"], self._rows())


def _difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Describe in what a table is another one."""
    if known.get("model") != wanted.get("model") and known.get("settings") == wanted["settings"]:
        return f"other weights or files of the model {wanted['settings']['model']}"
    return f"other settings or from other files ({known})"


def _without_stamp(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "stamp"}


def _write_parquet(path: Path, task: str, rows: Iterable[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    best = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))
    column = ("predictions", best) if task == "predict" else ("features", pa.list_(pa.float32()))
    schema = pa.schema([("file", pa.string()), column, ("error", pa.string())])
    names = schema.names
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        piece: list[dict[str, Any]] = []
        for row in rows:
            piece.append({name: row.get(name) for name in names})
            if len(piece) == _ROWS_AT_A_TIME:
                writer.write_table(pa.Table.from_pylist(piece, schema))
                piece = []
        writer.write_table(pa.Table.from_pylist(piece, schema))
