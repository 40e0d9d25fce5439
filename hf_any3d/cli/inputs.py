"""The clouds that commands read: files, folders, globs and standard input."""

from __future__ import annotations

import glob
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.errors import SOME_FAILED, in_options, print_error, print_note
from hf_any3d.cli.progress import progress, status
from hf_any3d.cli.published_models import published_models
from hf_any3d.data.files.input_files import Cloud, InputFile, point_files
from hf_any3d.extensions import missing_package
from hf_any3d.hub.models import is_model
from hf_any3d.hub.names import no_such
from hf_any3d.many_files.work import Answer, answer_files
from hf_any3d.registry import FORMATS
from hf_any3d.utils.messages import listed, one_line
from hf_any3d.utils.repeated_texts import RepeatedTexts

Files = Annotated[
    list[str], typer.Argument(metavar="FILE", help="Point clouds, meshes, folders or globs; - for standard input.")
]
_STDIN = "<stdin>"


@dataclass(frozen=True)
class Inputs:
    """The files of a command.

    Attributes:
        files: The files.
        are_many: Whether the command continues after bad ones, as with several words, a folder or a glob.
        note: What is printed once a file could be read.
    """

    files: list[InputFile]
    are_many: bool
    note: str = ""

    def __len__(self) -> int:
        return len(self.files)

    def titles(self) -> dict[str, str]:
        """Return captions by the names of files: their paths from the folder that all share."""
        paths: dict[str, Path] = {}
        for file in self.files:
            paths[file.name] = Path(os.path.abspath(file.name.replace(_STDIN, "stdin")))
        # From the folders, so that a single file keeps its name.
        root = os.path.commonpath([path.parent for path in paths.values()])
        return {name: path.relative_to(root).as_posix() for name, path in paths.items()}

    def places(self) -> dict[str, Path]:
        """Return paths for results by the names of files: their captions without endings."""
        places: dict[str, Path] = {}
        for name, title in self.titles().items():
            # chair.ply and chair.obj of one folder are two clouds.
            stem = Path(title).with_suffix("")
            places[name] = Path(title) if stem in places.values() else stem
        return places


def split_model(files: Sequence[str], model: str | None, *commands: str) -> tuple[Any, list[str]]:
    """Separate the model from the files, if it is the first of them and not `--model`.

    Models of any of the `commands` do, the first of which runs. Without a model, a command that has a default one gets
    None, and any other an error that lists published ones.
    """
    files = list(files)
    if model is not None:
        return model, files
    first = Path(files[0])
    # A word that is neither a file nor a pattern is taken for a name on the hub, unless it ends like a file of points.
    is_name = files[0] != "-" and not first.exists() and not set("*?[") & set(files[0])
    # A directory with a model is the model, even if it has files of points, too.
    if is_model(first) or (is_name and first.suffix.lower()[1:] not in FORMATS):
        if len(files) > 1:
            return files[0], files[1:]
        if is_model(first):
            raise ValueError(f"{files[0]} is a model; name the files too")
    # The packaged model classifies, and its encoder has features of any object.
    if not commands or "predict" in commands:
        return None, files
    command = commands[0]
    what = "choose a model with --model (a directory or a Hub name)"
    if command == "zero-shot":
        what = f"--labels needs a zero-shot model, and the bundled classifier is not one; {what}"
    if command == "segment" and first.suffix.lower() in (".las", ".laz"):
        what += f", or ground, plants and buildings without a model: hf-any3d inventory {files[0]} --output FILE"
        package = missing_package("inventory")
        if package is not None:
            what += f", of {package}"
    # Notes are printed below the line of the error.
    error = ValueError(what)
    for line in published_models(command):
        error.add_note(line)
    raise error


def find_inputs(
    words: Sequence[str | os.PathLike], file_type: str | None = None, label_field: str | None = None
) -> Inputs:
    """List the files of a command line.

    A folder stands for the files of readable types in it and in its subfolders; hidden files, metadata files, text
    without points and compressed files are left out. A glob such as `"scans/*.ply"` or `"scans/**/*.ply"` stands for
    the matching files. `-` stands for standard input: a cloud, or a list of files, one per line.
    """
    files: list[InputFile] = []
    are_many = len(words) > 1
    for given in words:
        path = Path(given)
        word = os.fspath(path)
        if word == "-":
            # A list of files is many inputs, a cloud one.
            listed = _read_stdin(file_type)
            are_many |= len(listed) > 1
            files += listed
            continue
        names = [word]
        if path.is_dir():
            are_many = True
            names = list(map(str, files_of_folder(path)))
        elif not path.exists():
            # Only what is not there is a pattern, since names of files may have brackets, too.
            are_many = True
            names = sorted(filter(os.path.isfile, glob.glob(word, recursive=True)))
        if not names:
            raise FileNotFoundError(no_such(given))
        files += [InputFile(name, file_type=file_type) for name in names]
    if label_field is not None:
        files = [replace(file, label_field=label_field) for file in files]
    return Inputs(files, are_many)


def files_of_folder(folder: Path) -> list[Path]:
    """List the point files and meshes of a folder and its subfolders, sorted by name; say which files are left out."""
    files, left_out = point_files(folder)
    for reason, some in left_out.items():
        if some:
            print_note(f"left out {listed(some)}: {reason}")
    if not files:
        from hf_any3d.data.files.contents import instead_of_clouds

        names = (path.name for path in sorted(folder.rglob("*")) if path.is_file())
        raise FileNotFoundError(f"{folder}: no point cloud in this folder; {instead_of_clouds(names)}")
    return files


def _read_stdin(file_type: str | None) -> list[InputFile]:
    from hf_any3d.data.files import file_type_of

    data = sys.stdin.buffer.read()
    if file_type is None:
        # The beginning tells; the rest may be a cloud of gigabytes.
        lines = data[:65536].decode("utf-8", "replace").splitlines()
        # A list of files, as `find` writes it, if the first line is one.
        # Paths are shorter and have no null byte; for others `exists` raises an error.
        if lines and len(lines[0]) < 4096 and "\0" not in lines[0] and Path(lines[0].strip()).exists():
            # Names may have bytes that are not UTF-8, which the system gets back unchanged.
            files: list[InputFile] = []
            for line in data.decode("utf-8", "surrogateescape").splitlines():
                if line.strip():
                    files += find_inputs([line.strip()]).files
            return files
    # Text without a signature is rows of numbers.
    return [InputFile(_STDIN, data, file_type or file_type_of(data) or "txt")]


def for_each_file(
    inputs: Inputs, answer: Answer, batch_size: int = 1, *, show: bool = True
) -> Iterator[dict[str, Any]]:
    """Yield the rows of `answer_files`, print warnings and errors, and show a bar; the error of a single is raised."""

    def read(file: InputFile) -> Cloud:
        # A bar tells of several files what it tells of one.
        with status(f"reading {file.name}") if len(inputs) == 1 else nullcontext():
            cloud = file.read()
        while notes_after_reading:
            print_note(notes_after_reading.pop())
        return cloud

    notes_after_reading = [inputs.note] if inputs.note else []

    with FileNotes() as notes, progress(len(inputs), "file", show=show and len(inputs) > 1) as bar:
        for row in answer_files(inputs.files, answer, batch_size, read=read, raise_errors=not inputs.are_many):
            row = with_options(row)
            notes.add("warning", row["file"], row.get("warnings", ()))
            if "error" in row:
                print_error(row["error"])
            yield row
            bar.update()


def with_options(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a file whose error and warnings speak of the options of commands."""
    row = dict(row)
    if "error" in row:
        row["error"] = in_options(row["error"])
    if "warnings" in row:
        row["warnings"] = [in_options(text) for text in row["warnings"]]
    return row


def with_points(inputs: Inputs) -> Inputs:
    """Leave out LAS tiles without points, with a note for each; raise a ValueError if none is left."""
    from hf_any3d.data.files.las import has_no_points

    if not inputs.are_many:
        return inputs
    empty = [file for file in inputs.files if Path(file.name).is_file() and has_no_points(file.name)]
    if empty and len(empty) == len(inputs):
        raise ValueError(f"{listed([file.name for file in empty])}: has no points; expected a tile with points")
    for file in empty:
        print_note(f"warning: {file.name}: has no points, and is left out")
    return replace(inputs, files=[file for file in inputs.files if file not in empty])


class FileNotes(RepeatedTexts):
    """Fold repeated warnings and errors of many files into one line each, printed at the end of the block."""

    def __enter__(self) -> FileNotes:
        return self

    def __exit__(self, *exception: object) -> None:
        for line in self.lines():
            print_note(line)


class ShownWarnings(RepeatedTexts):
    """Warnings of a command: the first of each kind at once, and at the end how many more files it is true of."""

    def __enter__(self) -> ShownWarnings:
        return self

    def show(self, message: Warning | str, *_: Any, **__: Any) -> None:
        """Print a warning unless its text was printed for another file; replaces `warnings.showwarning`."""
        text = one_line(message)
        kinds = len(self.kinds)
        # Warnings about a file begin with its name.
        self.add("warning", text.partition(": ")[0], [text])
        if len(self.kinds) > kinds:
            print_note(f"warning: {text}")

    def __exit__(self, *exception: object) -> None:
        for kind in self.kinds.values():
            if kind.count > 1:
                print_note(f"warning: {kind.count - 1:,} more like this: {kind.text}")


def finish(rows: Sequence[dict[str, Any]]) -> None:
    """Print a summary and exit with code 2 if some files could not be used."""
    finish_files([row["file"] for row in rows if "error" in row], len(rows))


def finish_files(failed: Sequence[str], total: int) -> None:
    """Print a summary and exit with code 2 if some of several files could not be used."""
    if failed:
        print_error(f"{len(failed)} of {total} files could not be used: {listed(list(failed))}")
        raise typer.Exit(SOME_FAILED)


class LeftOutFiles(logging.Handler):
    """Collects the files that the loader of folders leaves out, and prints its warnings as those of other commands.

    As a context manager it listens; `finish` then ends the command as `finish_files` does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.names: list[str] = []
        self.printed: set[str] = set()
        self.logger = logging.getLogger("hf_any3d.data.catalog.folder")

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning about a file, or keep the names of all files that are left out."""
        # The last record of the loader has the names; all others are warnings about a file.
        names = getattr(record, "left_out", None)
        if names is None:
            text = record.getMessage()
            if text not in self.printed:  # a command may load its data twice
                print_note(f"warning: {text}")
            self.printed.add(text)
            return
        # Data that are loaded twice leave out the same files.
        self.names = list(dict.fromkeys([*self.names, *names]))
        self.total = max(self.total, record.__dict__["num_files"])

    def __enter__(self) -> LeftOutFiles:
        """Listen."""
        # Otherwise each warning would be printed twice.
        self.before, self.logger.propagate = self.logger.propagate, False
        self.logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self.logger.removeHandler(self)
        self.logger.propagate = self.before

    def finish(self) -> None:
        """Print a summary and exit with code 2 if files were left out."""
        finish_files(self.names, self.total)
