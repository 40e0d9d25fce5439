"""Fetch published checkpoints, open them, and judge their answers.

python -m tests.published.checks BAAI/Uni3D:base facebook/sonata --accept-license --output checks.json

The JSON file has versions, checksums, times and observations for each name. The same command continues it. What is
seen is compared with docs/tools/published_checks.json, if that has the name; the last line is a row of
docs/published.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.command_line import CommandLine, ModelCommand
from hf_any3d.cli.errors import SOME_FAILED, print_error, print_note
from hf_any3d.cli.libraries import load_libraries
from hf_any3d.cli.options import AsJson, option
from hf_any3d.cli.progress import status
from hf_any3d.utils.atomic_files import read_json_object, write_json
from hf_any3d.utils.messages import one_line, print_json, print_line

app = typer.Typer(cls=CommandLine, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _options() -> None:
    """Check published checkpoints."""


@app.command("check", cls=ModelCommand)
def check_published(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME…",
            help="Published names, with a size as NAME:SIZE, or repositories for all sizes; by default all.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, option("JSON file with the records, which later runs continue.")] = Path(
        "published_checks.json"
    ),
    again: Annotated[bool, typer.Option("--again", help="Check names that the file has a record of, too.")] = False,
    files: Annotated[
        Path | None, option("Folder with files of git repositories that were downloaded, found by their checksums.")
    ] = None,
    clouds: Annotated[int, typer.Option(help="Most packaged shapes to ask about.", min=13)] = 104,
    as_json: AsJson = False,
) -> None:
    """Fetch published checkpoints, open them, and check their tensors and whether their answers mean anything.

    Nothing is compared with stored answers: a checkpoint has to name packaged shapes, parts and rooms far more often
    rightly than by chance. Exit code 1 if one fails, 2 if one cannot be opened.
    """
    load_libraries()
    with status("loading"):
        from docs.tools.tables import PUBLISHED_CHECKS, row_of_check
        from hf_any3d.published import keep_download, published_names
        from tests.published.judging import check_published as judge

    published = published_names()
    stored = read_json_object(PUBLISHED_CHECKS)["runs"]
    # Records of earlier runs, which an interrupted check continues.
    runs = _earlier_runs(output) if output.exists() else {}
    records = []
    unopened = 0
    for name in _with_sizes(names or published, published):
        if name in runs and not again:
            print_note(f"{name}: checked on {runs[name]['date']}; --again checks it once more")
        else:
            try:
                # As if it had been fetched, for files whose server cannot be reached.
                if files is not None:
                    keep_download(name, files)
                with status(f"checking {name}"):
                    runs[name] = judge(name, clouds=clouds)
            except (ValueError, OSError, ImportError) as error:
                # No record, so that the next run tries it again.
                print_error(f"{name}: not opened: {one_line(error)}")
                unopened += 1
                continue
            # After each checkpoint, since the next may take long or end the program.
            write_json(output, {"runs": runs})
        records.append({"name": name, **runs[name]})
        if not as_json:
            _print(records[-1], stored.get(name))
            print_line(row_of_check(name, runs[name]))
    if as_json:
        print_json(records)
    failed = sum(not record["passed"] for record in records)
    print_note(f"{output}: {len(records) - failed} passed, {failed} failed, {unopened} not opened")
    # A wrong answer weighs more than a checkpoint that could not be opened.
    if failed or unopened:
        raise typer.Exit(1 if failed else SOME_FAILED)


def _with_sizes(names: Sequence[str], published: Sequence[str]) -> list[str]:
    """Return the published checkpoints that are named, each once; a name without a size stands for all its sizes."""
    checkpoints: dict[str, None] = {}
    for name in names:
        # With the colon, so that no other repository is meant whose name begins so.
        sizes = [checkpoint for checkpoint in published if checkpoint == name or checkpoint.startswith(f"{name}:")]
        if not sizes:
            raise ValueError(f"{name}: not a published checkpoint; expected one of {', '.join(published)}")
        checkpoints |= dict.fromkeys(sizes)
    return list(checkpoints)


def _print(record: dict[str, Any], stored: dict[str, Any] | None) -> None:
    known = {check["name"]: check["seen"] for check in stored["checks"]} if stored else {}
    seconds = record["seconds"]
    verdict = "passed" if record["passed"] else "FAILED"
    print_line(f"{record['name']:<52} {verdict:<8} {seconds['open']:.0f} s to open, {seconds['judge']:.0f} s to judge")
    for check in record["checks"]:
        # None is a check that could not be judged, which is no failure.
        sign = {True: "ok", False: "no", None: "--"}[check["passed"]]
        before = known.get(check["name"], check["seen"])
        differs = "" if before == check["seen"] else f" (stored: {before})"
        print_line(f"  {sign}  {check['name']}: {check['seen']}{differs}")


def _earlier_runs(path: Path) -> dict[str, Any]:
    """Read the records of earlier runs by name; any other file is an error, and stays as it is."""
    runs = read_json_object(path).get("runs")
    if not isinstance(runs, dict) or not all(isinstance(run, dict) and "date" in run for run in runs.values()):
        raise ValueError(f"{path}: no record of earlier checks; expected one, or a new file for --output")
    return runs


if __name__ == "__main__":
    app(["check", *sys.argv[1:]], prog_name="python -m tests.published.checks")
