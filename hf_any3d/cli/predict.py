"""`hf-any3d predict`: classify point files and meshes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import (
    Device,
    Files,
    find_files,
    one_line_errors,
    open_pipeline,
    option,
    print_error,
    quiet_libraries,
)
from hf_any3d.messages import model_errors, print_json, print_line, printable

# A progress bar is shown from this many files on.
MANY = 20


def predict(
    files: Files,
    model: Annotated[str, option("Directory or hub name of a point cloud classifier.")],
    top_k: Annotated[int, typer.Option(min=1, help="Labels to print for each file.")] = 3,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Files per batch; by default 8, or 1 if predictions depend on the other clouds."),
    ] = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Continue after unreadable files; the exit code is still 1.")
    ] = False,
) -> None:
    """Classify point files and meshes.

    A folder stands for all files of readable types in it and in its subfolders.
    """
    with one_line_errors():
        paths = find_files(files)
        quiet_libraries()
        classify = open_pipeline("point-cloud-classification", model, device)
        if batch_size is None:
            batch_size = 1 if classify.model.config.batch_dependent_flags else 8
        # A table on a terminal is its own progress bar.
        show_bar = len(paths) >= MANY and (as_json or not sys.stdout.isatty())
        results = _predict(classify, paths, top_k, batch_size, skip_errors, show_bar)
        with model_errors(model, "cannot answer"):
            failed = _print_json(results) if as_json else _print_table(results, paths, classify)
    if failed:
        print_error(f"{failed} of {len(paths)} files could not be read")
        raise typer.Exit(1)


def _predict(
    classify: Any, paths: list[Path], top_k: int, batch_size: int, skip_errors: bool, show_bar: bool
) -> Iterator[dict[str, Any]]:
    """Yield `{"file": …, "predictions": [{"label", "score"}, …]}` or `{"file": …, "error": …}` for each file."""
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
                    errors[path] = _with_path(path, error)
            predictions = {}
            if inputs:
                points = torch.cat([entry["points"] for entry in inputs.values()])  # (files, num_points, channels)
                stems = [entry["stem"][0] for entry in inputs.values()]
                logits = classify.forward({"points": points, "stem": stems})["logits"]
                for path, stem, row in zip(inputs, stems, logits.split(1), strict=True):
                    predictions[path] = classify.postprocess({"logits": row, "stem": [stem]}, top_k=top_k)
            for path in batch:
                result = {"error": errors[path]} if path in errors else {"predictions": predictions[path]}
                yield {"file": str(path), **result}
                bar.update()


def _with_path(path: Path, error: Exception) -> str:
    text = str(error).strip()
    return text if path.name in text else f"{path}: {text}"


def _print_json(results: Iterator[dict[str, Any]]) -> int:
    """Print all results and return the number of errors."""
    printed = list(results)
    print_json(printed)
    return sum("error" in result for result in printed)


def _print_table(results: Iterator[dict[str, Any]], paths: list[Path], classify: Any) -> int:
    """Print a line for each result and return the number of errors."""
    file_width = max(len(printable(path)) for path in paths)
    label_width = max(len(printable(name)) for name in classify.model.config.id2label.values())
    failed = 0
    for result in results:
        if "error" in result:
            failed += 1
            print_error(result["error"])
            continue
        cells = [f"{printable(p['label']):<{label_width}} {100 * p['score']:5.1f} %" for p in result["predictions"]]
        print_line(f"{printable(result['file']):<{file_width}}  " + "   ".join(cells))
    return failed
