"""The results of commands: tables, JSON and CSV on standard output; files, pages and pictures."""

from __future__ import annotations

import glob
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from hf_any3d.cli.errors import print_note
from hf_any3d.cli.inputs import Inputs, find_inputs, for_each_file, split_model
from hf_any3d.cli.libraries import need_packages
from hf_any3d.cli.opening import FoundModel, model_for
from hf_any3d.cli.options import FileOptions
from hf_any3d.data.files.input_files import is_point_file
from hf_any3d.many_files.work import Answer
from hf_any3d.utils.atomic_files import check_outputs, write_json, write_text
from hf_any3d.utils.messages import counted, csv_text, print_json, print_line, printable

if TYPE_CHECKING:
    from hf_any3d.visualization.gallery import Gallery

DATA = (".json", ".csv")
TABLES = (".jsonl", ".csv", ".json", ".parquet")
VIEWS = (".html", ".png")
CLOUDS = (".ply", ".obj", ".npz")
Row = Mapping[str, Any]
Cells = Callable[[Row], Iterable[Row]]
"""Function from the row of a file to its rows in CSV."""


def check_output(
    output: Path | None, types: Sequence[str], *, as_json: bool = False, as_csv: bool = False, num_files: int = 1
) -> str:
    """Check the options of results before any work is done, and return the ending of `--output` in lower case.

    `types` are the endings that are allowed; "" stands for a folder, and is returned without `--output`, too.
    """
    if as_json and as_csv:
        raise ValueError("--json and --csv exclude each other; give one of them")
    if output is None:
        return ""
    suffix = "" if output.is_dir() else output.suffix.lower()
    # One file of points has no place for several clouds.
    expected = [ending or "a folder" for ending in types if num_files == 1 or ending not in CLOUDS]
    if suffix not in types or (suffix in CLOUDS and num_files > 1):
        several = " for several files" if num_files > 1 else ""
        raise ValueError(f"--output: {output} has type {suffix!r}; expected one of {', '.join(expected)}{several}")
    # A missing package is told before the model runs, whose answers would be lost.
    if suffix == ".png":
        need_packages("visuals", "matplotlib")
    return suffix


def check_outputs_of(app: typer.Typer) -> None:
    """Let all commands of a program check the paths of their outputs before any work, by `checking_outputs`."""
    for command in app.registered_commands:
        assert command.callback is not None, "a command is a function"
        command.callback = checking_outputs(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            check_outputs_of(group.typer_instance)


def checking_outputs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that first checks its outputs: that they can be written, and are no inputs, nor one file.

    Outputs are the options that are `writable`; all other words that name files are inputs.
    """

    @wraps(function)
    def command(*args: Any, **values: Any) -> Any:
        outputs: dict[str, Path] = {}
        words: list[str] = []
        names = output_options(function)
        given = inspect.signature(function).bind_partial(*args, **values).arguments
        for name, value in given.items():
            if name in names and value is not None:
                outputs[names[name]] = value
            elif isinstance(value, (str, os.PathLike)):
                words.append(os.fspath(value))
            elif isinstance(value, list):
                words += [word for word in value if isinstance(word, str)]
        check_outputs(outputs, _inputs_at(outputs.values(), words), are_files=False)
        return function(*args, **values)

    return command


def output_options(function: Callable[..., Any]) -> dict[str, str]:
    """Return the options of a command that are outputs, by the names of their parameters."""
    found = {}
    for name, annotation in get_type_hints(function, include_extras=True).items():
        for option in getattr(annotation, "__metadata__", ()):
            if getattr(option, "writable", False):
                found[name] = _first_word(option) or f"--{name.replace('_', '-')}"
    return found


def _first_word(option: Any) -> str | None:
    """Return the first word of an option on the command line; None if it has its usual one."""
    # The first is in the place of a default, which annotations do not have.
    for word in (option.default, *(option.param_decls or ())):
        if isinstance(word, str):
            return word
    return None


def _inputs_at(outputs: Iterable[Path], words: Sequence[str]) -> list[str]:
    """Return the files that words of a command line stand for, as far as they may be outputs."""
    there = [path for path in outputs if os.path.isfile(path)]
    found: list[str] = []
    if not there:
        return found
    for word in words:
        if os.path.isdir(word):
            # Of a folder, files that are read are points.
            folder = Path(word).resolve()
            for path in there:
                if path.resolve().is_relative_to(folder) and is_point_file(path):
                    found.append(str(path))
        elif os.path.exists(word):
            found.append(word)
        elif glob.has_magic(word):
            found += glob.glob(word, recursive=True)
    return found


def find_all(
    files: Sequence[str],
    model: str | None,
    commands: Sequence[str],
    output: Path | None,
    types: Sequence[str],
    options: FileOptions,
) -> tuple[FoundModel, Inputs, str]:
    """Return model, files and ending of the output of a command, and check its options, before libraries are loaded.

    Models of any of the `commands` do, the first of which runs.
    """
    name, files = split_model(files, model, *commands)
    inputs = find_inputs(files, options.file_type)
    # Where a folder is allowed, several files need one; elsewhere they share a table or page.
    num_files = len(inputs) if "" in types else 1
    suffix = check_output(output, types, as_json=options.as_json, as_csv=options.as_csv, num_files=num_files)
    found = model_for(name, *commands)
    # Once a file is read: an error about the only file stands alone.
    return found, replace(inputs, note=found.note), suffix


def answer_inputs(
    inputs: Inputs,
    answer: Answer,
    line: Callable[[Row], str],
    cells: Cells,
    output: Path | None,
    options: FileOptions,
    batch_size: int = 1,
    has_bar: bool = False,
) -> list[dict[str, Any]]:
    """Answer files, print a line for each as it comes or JSON or CSV of all, and return their rows.

    `line` returns the line of a row in the table, behind the name of its file, and `cells` its rows in CSV. A table is
    also written if `output` is one. With `has_bar`, `answer` shows its progress itself.
    """
    is_table = not options.as_json and not options.as_csv
    width = max(len(printable(file.name)) for file in inputs.files)
    rows = []
    # A table on a terminal shows the progress itself.
    show = not has_bar and not (is_table and sys.stdout.isatty())
    for row in for_each_file(inputs, answer, batch_size, show=show):
        rows.append(row)
        if is_table and "error" not in row:
            print_line(f"{printable(row['file']):<{width}}  {line(row)}")
    write_rows(rows, cells, output, options)
    return rows


def write_rows(rows: Sequence[Row], cells: Cells, output: Path | None, options: FileOptions) -> None:
    """Print and write the rows of files; see `write_results`."""
    # There and back, so that arrays at any depth become lists.
    plain = json.loads(json.dumps(rows, default=_plain))
    table: list[Row] = []
    for row in rows:
        table += cells(row)
    if write_results(plain, table, output, options.as_json, options.as_csv):
        print_note(f"{output}: {counted(len(rows), 'file')}")


def _plain(value: Any) -> Any:
    """Return an array or a number of NumPy as Python's, and any other value as its text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def write_results(value: Any, table: Sequence[Row], output: Path | None, as_json: bool, as_csv: bool) -> bool:
    """Print results as JSON or CSV if asked for, and write them if the output is `.json` or `.csv`; return whether."""
    if as_json:
        print_json(value)
    if as_csv:
        for text in csv_lines(table):
            print_line(text)
    suffix = "" if output is None else output.suffix.lower()
    if output is None or suffix not in DATA:
        return False
    if suffix == ".json":
        write_json(output, value)
    else:
        write_text(output, "\n".join(csv_lines(table)) + "\n")
    return True


def file_cells(row: Row, parts: Iterable[Row]) -> Iterator[Row]:
    """Yield the CSV rows of the parts of a file; without any, one for the file, with its error if it has one."""
    parts = list(parts)
    for part in parts:
        yield {"file": row["file"], **part}
    # A file without parts, such as a scan without objects, still has its row.
    if not parts:
        yield {name: row[name] for name in ("file", "error") if name in row}


def csv_lines(rows: Sequence[Row]) -> list[str]:
    """Return lines of CSV with a header of all keys, errors last; see `csv_text`."""
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(row)
    names = [name for name in columns if name != "error"]
    if "error" in columns:
        names.append("error")
    table: list[list[Any]] = [names]
    for row in rows:
        table.append([row.get(name) for name in names])
    return csv_text(table).splitlines()


def write_gallery(gallery: Gallery, title: str) -> None:
    """Write a page or picture of clouds, if one is asked for, and say how many it shows."""
    if gallery.write(title):
        more = f", without {gallery.left_out} more" if gallery.left_out else ""
        print_note(f"{gallery.output}: {counted(len(gallery.clouds), 'point cloud')}{more}")
