"""Ask a model about files: what the commands of all tasks share, in this process or as a run that can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from hf_any3d.cli.inputs import Files, Inputs, finish
from hf_any3d.cli.opening import FoundModel
from hf_any3d.cli.options import BatchSize, Device, FileOptions, Model, output_option
from hf_any3d.cli.outputs import DATA, VIEWS, Row, answer_inputs, file_cells, find_all, write_gallery
from hf_any3d.cli.runs import RunOptions, run_task
from hf_any3d.cli.task_options import doubt_in_words, options_of
from hf_any3d.data.files.input_files import Cloud
from hf_any3d.registry import TASKS
from hf_any3d.tasks.answers import Answers
from hf_any3d.tasks.asking import Asked
from hf_any3d.tasks.records import Task
from hf_any3d.visualization.gallery import Gallery, Mark

Output = Annotated[
    Path | None,
    output_option(
        "Also write an HTML page (.html), an image (.png) or a table (.json, .csv; with --resume, --workers or --ray "
        "also .jsonl, .parquet)."
    ),
]


def ask(
    task: str,
    files: list[str],
    model: str | None,
    values: Mapping[str, Any],
    options: FileOptions,
    runs: RunOptions,
    output: Path | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    types: tuple[str, ...] = (*VIEWS, *DATA),
    check: Callable[[FoundModel, Inputs, str], None] = lambda *_: None,
    write: Callable[[Asked, dict[str, Any], Inputs, str], None] | None = None,
) -> None:
    """Answer files, and print a line for each, or JSON or CSV of all.

    Args:
        task: Name of the pipeline.
        files: Words of the command line, which may begin with the model.
        model: Directory or hub name; None for the one among `files`, or the packaged one where there is one.
        values: Settings of the task by their names.
        options: How files are read and rows are printed.
        runs: Whether this is a run that can be resumed.
        output: A page, picture or table; other types are written by `write`.
        batch_size: Clouds of a batch.
        device: Where the model runs.
        types: Endings of the output.
        check: Checks model, inputs and ending before the model is loaded.
        write: Writes other outputs from the results by the names of their files.
    """
    record = TASKS[task]
    if runs.are_given:
        run_task(task, values, files, model, output, options, runs, batch_size, device)
        return
    found, inputs, suffix = find_all(files, model, (record.command, *record.also), output, types, options)
    check(found, inputs, suffix)
    asked = Asked(
        found.open(task, device),
        found.name,
        record,
        values,
        "command",
        on_page=suffix == ".html",
        words_of_doubt=doubt_in_words,
    )
    answers = asked.answers
    gallery = Gallery(output, len(inputs), answers.up_axis)
    titles = inputs.titles()
    results: dict[str, Any] = {}  # by file

    def answer(clouds: list[Cloud]) -> list[dict[str, Any]]:
        rows = []
        for cloud, result in zip(clouds, asked.results(clouds), strict=True):
            if "error" in result:
                rows.append(result)
                continue
            row = result["row"]
            if write is not None:
                results[cloud.name] = result["result"]
            # Without a page or picture the cloud need not be read again.
            if gallery.output is not None and write is None:
                mark = _mark(answers, row, cloud.name, gallery.is_page)
                title = titles[cloud.name]
                caption = answers.caption(row)
                if caption and not mark.note:
                    title = f"{title}: {caption}"
                gallery.add_view(answers.view(cloud.data, result["result"]), cloud.data, title, mark)
            rows.append(row)
        return rows

    def cells(row: Row) -> Iterator[Row]:
        return file_cells(row, answers.cells(row))

    if asked.is_whole:
        # A pipeline reads a cloud in several parts, which are its batches.
        size = 1
    else:
        size = batch_size or asked.batch_size
    rows = answer_inputs(inputs, answer, answers.line, cells, output, options, size, asked.is_whole)
    if write is None:
        write_gallery(gallery, f"{answers.column.capitalize()} of {found.title}")
    # Tables, which have errors too, are written with the rows already.
    elif output is not None and suffix not in DATA and results:
        write(asked, results, inputs, suffix)
    finish(rows)


def _mark(answers: Answers, row: Row, file: str, is_page: bool) -> Mark:
    """Return how a page marks an answer: as right or wrong where the folder of the file names a class of the model."""
    best = answers.best(row)
    if best is None or not is_page:
        return Mark()
    label, score = best
    truth = Path(file).absolute().parent.name
    classes = (answers.config.id2label or {}).values()
    if truth not in classes:
        return Mark(answers.caption(row), "", score)
    if label == truth:
        return Mark(f"✓ {answers.caption(row)}", "right", score)
    return Mark(f"✗ {answers.caption(row)}; expected {truth}", "wrong", score)


def command_of(task: Task) -> Callable[..., None]:
    """Make the command of a task that needs nothing but its settings and answers."""
    asked_options = Annotated[Any, options_of(task.settings)]

    def command(
        files: Files,
        asked: asked_options,  # pyright: ignore[reportInvalidTypeForm]  made when the program runs
        options: FileOptions,
        runs: RunOptions,
        model: Model = None,
        output: Output = None,
        batch_size: BatchSize = None,
        device: Device = None,
    ) -> None:
        ask(task.name, files, model, asked.values(), options, runs, output, batch_size, device)

    command.__name__ = task.command.replace("-", "_")
    command.__doc__ = task.help
    # Not as a text, since it is known in this function alone.
    command.__annotations__["asked"] = asked_options
    return command
