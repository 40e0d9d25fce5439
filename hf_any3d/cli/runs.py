"""Runs of commands over many files, with a row of results for each; the same command continues an interrupted run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.errors import SOME_FAILED, print_error, print_note
from hf_any3d.cli.inputs import FileNotes, find_inputs, split_model, with_options
from hf_any3d.cli.opening import model_for, open_pipeline
from hf_any3d.cli.options import FileOptions, option
from hf_any3d.cli.outputs import TABLES, check_output, csv_lines, file_cells
from hf_any3d.cli.progress import progress, status
from hf_any3d.cli.task_options import doubt_in_words
from hf_any3d.many_files.executors import EXECUTORS, Workers
from hf_any3d.many_files.runs import Table, lock, run
from hf_any3d.many_files.work import Opened, RowsWork, cut
from hf_any3d.registry import TASKS
from hf_any3d.tasks.settings import settings_of
from hf_any3d.utils.atomic_files import write_json, write_text
from hf_any3d.utils.messages import as_text, counted, print_line

_MOST_FILES_AT_A_TIME = 256
_OPTIONS = "--workers, --resume, --retry and --ray"


@dataclass(frozen=True)
class RunOptions:
    """Options of runs over many files; any of them makes a run of a command."""

    workers: Annotated[
        int | None,
        option(
            "Number of worker processes; with --ray, by default one per CPU or GPU. Results are saved to --output "
            "as they arrive; continue an interrupted run with --resume.",
            min=1,
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Save results as they arrive, and resume an interrupted run of the same command."
        ),
    ] = False
    retry: Annotated[bool, typer.Option("--retry", help="When resuming, retry files that failed.")] = False
    ray: Annotated[bool, typer.Option("--ray", help="Use Ray workers, on one or more machines.")] = False

    @property
    def are_given(self) -> bool:
        """True if a command shall be a run."""
        return self != RunOptions()


@dataclass(frozen=True)
class Job:
    """The work of a run on each file.

    Attributes:
        word: What the work is called in the description of a run.
        settings: What determines the results, as plain values; device and batch size do not.
        start: Function that opens what the work needs, of settings, device and batch size; it is pickled.
        cells: Function from a row to its rows in CSV; None for rows that stay lines of JSON.
        feature: Function that returns the name and the type of the column in a Parquet table.
        copy_ending: What the names of files that are written have after those of the files that are read.
        writes_copies: Whether it writes labeled copies of the files.
        uses_model: Whether it runs a model, which wants a device.
        device: Where the model runs; None for the fastest.
        batch_size: Clouds of a batch; None for the usual number.
    """

    word: str
    settings: dict[str, Any]
    start: Callable[[dict[str, Any], str | None, int | None], Opened]
    cells: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]] | None = None
    feature: Callable[[], tuple[str, Any]] | None = None
    writes_copies: bool = False
    copy_ending: str = ""
    uses_model: bool = True
    device: str | None = None
    batch_size: int | None = None
    file_type: str | None = None

    def description(self, words: Sequence[str]) -> dict[str, Any]:
        """Return what two runs must have in common for the second one to continue the first."""
        from hf_any3d.data.fingerprints import model_fingerprint

        same = {"task": self.word, "settings": self.settings, "given": list(words)}
        if self.uses_model:
            # By content: under the same name there may be other weights now.
            same["model"] = model_fingerprint(self.settings["model"])
        return same


def run_task(
    task: str,
    values: Mapping[str, Any],
    files: Sequence[str],
    model: str | None,
    output: Path | None,
    options: FileOptions,
    runs: RunOptions,
    batch_size: int | None,
    device: str | None,
) -> None:
    """Answer many files as a run, and write a table; `values` are the settings of the command."""
    record = TASKS[task]
    if record.rows is None:
        raise ValueError(f"{_OPTIONS} make a run, which {record.command} has none of")
    check_table(output, options)
    settings = {}
    for setting, declared in settings_of(record.settings).items():
        reason = declared.refused.get("runs")
        if reason:
            if setting in values and values[setting] != declared.default_at("command"):
                raise ValueError(f"--{setting.replace('_', '-')} in a run: {reason}")
        # What is not given is not named either, so that runs of before there was an option go on.
        elif declared.is_named or values[setting] != declared.default_at("runs"):
            settings[setting] = values[setting]
    commands = (record.command, *record.also)
    name, words = split_model(files, model, *commands)
    found = model_for(name, *commands)
    if found.note:
        print_note(found.note)
    job = Job(
        record.rows,
        {"model": found.name, **settings},
        partial(_open_task, task),
        # Classes of answers import torch, and a second process or a missing file is an error before that.
        lambda row: record.answers_class().cells(row),
        lambda: (record.answers_class().column, record.answers_class().feature()),
        device=device,
        batch_size=batch_size,
        file_type=options.file_type,
    )
    run_job(job, words, Path(str(output)), runs)


def check_table(output: Path | None, options: FileOptions) -> None:
    """Check the output of a run."""
    if output is None:
        raise ValueError(f"--output is missing; {_OPTIONS} make a run, whose rows are kept in a table")
    if options.as_json or options.as_csv:
        raise ValueError(f"--json and --csv cannot be combined with {_OPTIONS}; write a table with --output instead")
    check_output(output, TABLES)


def _open_task(task: str, settings: dict[str, Any], device: str | None, batch_size: int | None) -> Opened:
    from hf_any3d.tasks.asking import Asked

    record = TASKS[task]
    values = {name: declared.default_at("runs") for name, declared in settings_of(record.settings, "runs").items()}
    values |= settings
    model = values.pop("model")
    pipe = open_pipeline(task, model, device)
    asked = Asked(pipe, model, record, values, "runs", words_of_doubt=doubt_in_words)
    return Opened(asked.rows, batch_size or asked.batch_size)


def run_job(job: Job, words: Sequence[str], output: Path, runs: RunOptions) -> None:
    """Run a job on the files that have no row yet, and write the table."""
    # Before files are listed and weights are read, so that a second process is refused at once.
    with lock(output):
        _run_locked(job, words, output, runs)


def _run_locked(job: Job, words: Sequence[str], output: Path, runs: RunOptions) -> None:
    # By name, so that a file has one row even if several words stand for it.
    files = {file.name: file for file in find_inputs(words, job.file_type).files}
    # Standard input, which processes started later cannot read.
    data = {name: file for name, file in files.items() if file.data is not None}
    if not job.cells:
        # Results keep the folders that files have below the one that all share.
        root = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in files])
        job = replace(job, settings=job.settings | {"root": root})
        read = {os.path.realpath(name) for name in files}
        for name in files:
            # As `start` places them
            copy = output.parent / f"{os.path.relpath(os.path.abspath(name), root)}{job.copy_ending}"
            if os.path.realpath(copy) in read:
                raise ValueError(f"--output: {copy} is an input file, which is never overwritten; give another folder")

    def execute(names: list[str]) -> Iterator[dict[str, Any]]:
        executor = EXECUTORS["ray" if runs.ray else "local"](Workers(runs.workers))
        placed = job
        with status("starting Ray") if runs.ray else nullcontext():
            if job.uses_model:
                executor, device = executor.placed(job.device)
                placed = replace(job, device=device)
            # No more processes than files.
            count = executor.count(len(names))
        # A batch for each of several processes, so that all have work until the end and rows come soon.
        size = _MOST_FILES_AT_A_TIME
        if count > 1:
            size = max(1, min(job.batch_size or 8, len(names) // count))
        with FileNotes() as notes, progress(len(names), "file", show=len(names) > 1) as bar:
            start = partial(placed.start, placed.settings, placed.device, placed.batch_size)
            work = RowsWork(start, given=data, are_copied=job.writes_copies, file_type=job.file_type)
            for row in map(with_options, executor.run(work, cut(names, size))):
                notes.add("warning", row["file"], row.get("warnings", ()))
                if "error" in row:
                    notes.add("error", row["file"], [row["error"]])
                yield row
                bar.update()

    suffix = output.suffix.lower()
    # Lines of JSON are the table itself; other types are made of them.
    write = None if suffix == ".jsonl" else partial(_write_table, job, suffix)
    table = Table(output, job.description(words), write)
    # The stamp tells on a second run whether a file has changed.
    before, done = run(table, files, lambda name: files[name].stamp(), execute, retry=runs.retry)
    earlier = f", {before} already done" if before else ""
    print_line(f"{output}: {counted(len(files), 'file')}{earlier}, {done.failed} failed")
    # The table is complete, with errors in it: the exit code tells a script so.
    if done.failed:
        print_error(f"{done.failed} of {len(files)} files could not be used; column error of {output} has the reasons")
        raise typer.Exit(SOME_FAILED)


def _write_table(job: Job, suffix: str, path: Path, rows: Iterable[dict[str, Any]]) -> None:
    assert job.cells is not None and job.feature is not None, "rows of copies stay lines of JSON"
    if suffix == ".json":
        # JSON and CSV have no form that could grow line by line and stay valid, so they are written at the end.
        write_json(path, list(rows))
    elif suffix == ".csv":
        table: list[Mapping[str, Any]] = []
        for row in rows:
            table += file_cells(row, job.cells(row))
        write_text(path, "\n".join(csv_lines(table)) + "\n")
    else:
        from datasets import Features, Value

        from hf_any3d.many_files.parts import parquet_writer

        # Types by the task: no row tells them, as the first ones may all be errors.
        column, kind = job.feature()
        features = Features({"file": Value("string"), column: kind, "error": Value("string")})
        with parquet_writer(path, features) as written:
            # Rows of errors have no answer, and good ones no error.
            for row in rows:
                cells = {name: row.get(name) for name in features}
                written.write(cells | {"file": as_text(row["file"])})
            written.finalize()
