"""`hf-any3d predict`: the classes of point files and meshes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import open_pipeline, quieten_libraries, tell, told_in_one_line
from hf_any3d.messages import opened, printable, say, say_json

# From this many files on a progress bar is shown.
MANY = 20


def predict(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="Point files, meshes, or folders of them."),
    ],
    model: Annotated[str, typer.Option(help="Directory or hub name of a point cloud classifier.", show_default=False)],
    top_k: Annotated[int, typer.Option(min=1, help="Labels to print for each file.")] = 3,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Files that go through the model together; 8, or 1 where a batch sways the answer."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1, mps …; by default the fastest there is."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Go on after a file that cannot be read; the exit code is still 1.")
    ] = False,
) -> None:
    """Say what point files and meshes show.

    Of a folder, all files of readable types are taken, also those in folders below.
    """
    with told_in_one_line():
        paths = find_files(files)
        classify = _load(model, device)
        if batch_size is None:
            batch_size = 1 if classify.model.config.batch_dependent_flags else 8
        # A table on a terminal is its own progress bar.
        show_bar = len(paths) >= MANY and (as_json or not sys.stdout.isatty())
        answers = _answers(classify, paths, top_k, batch_size, skip_errors, show_bar)
        with opened(model, "cannot answer"):
            failed = _print_json(answers) if as_json else _print_table(answers, paths, classify)
    if failed:
        tell(f"{failed} of {len(paths)} files could not be read")
        raise typer.Exit(1)


def find_files(given: list[Path]) -> list[Path]:
    """Files as given, and in place of a folder the readable files in it, by name.

    Raises:
        FileNotFoundError: A path that does not exist, or a folder without a readable file.
    """
    from hf_any3d.data.files import supported_file_types

    types = {f".{name}" for name in supported_file_types()}
    found = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in types)
            if not inside:
                raise FileNotFoundError(
                    f"{path}: no point cloud in this folder; readable are {', '.join(sorted(types))}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    return found


def _load(model: str, device: str | None) -> Any:
    quieten_libraries()
    return open_pipeline("point-cloud-classification", model, device)


def _answers(
    classify: Any, paths: list[Path], top_k: int, batch_size: int, skip_errors: bool, show_bar: bool
) -> Iterator[dict[str, Any]]:
    """For each file `{"file": …, "predictions": [{"label", "score"}, …]}` or `{"file": …, "error": …}`."""
    import torch
    from tqdm import tqdm

    with tqdm(total=len(paths), unit="file", disable=not show_bar, leave=False) as bar:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            inputs, errors = {}, {}
            for path in batch:
                try:
                    inputs[path] = classify.preprocess(str(path))
                except (ValueError, OSError, ImportError) as error:
                    if not skip_errors:
                        raise
                    errors[path] = _named(path, error)
            answered = {}
            if inputs:
                points = torch.cat([entry["points"] for entry in inputs.values()])  # (files, num_points, channels)
                stems = [entry["stem"][0] for entry in inputs.values()]
                logits = classify.forward({"points": points, "stem": stems})["logits"]
                for path, stem, row in zip(inputs, stems, logits.split(1), strict=True):
                    answered[path] = classify.postprocess({"logits": row, "stem": [stem]}, top_k=top_k)
            for path in batch:
                known = {"error": errors[path]} if path in errors else {"predictions": answered[path]}
                yield {"file": str(path), **known}
                bar.update()


def _named(path: Path, error: Exception) -> str:
    text = str(error).strip()
    return text if path.name in text else f"{path}: {text}"


def _print_json(answers: Iterator[dict[str, Any]]) -> int:
    told = list(answers)
    say_json(told)
    return sum("error" in answer for answer in told)


def _print_table(answers: Iterator[dict[str, Any]], paths: list[Path], classify: Any) -> int:
    wide = max(len(printable(path)) for path in paths)
    label_wide = max(len(printable(name)) for name in classify.model.config.id2label.values())
    failed = 0
    for answer in answers:
        if "error" in answer:
            failed += 1
            tell(answer["error"])
            continue
        cells = [f"{printable(p['label']):<{label_wide}} {100 * p['score']:5.1f} %" for p in answer["predictions"]]
        say(f"{printable(answer['file']):<{wide}}  " + "   ".join(cells))
    return failed
