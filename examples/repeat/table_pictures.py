"""Draw a picture of a trained model, as the last step of a published figure.

python -m examples.repeat.table_pictures --model outputs/clip --picture cells --output_dir outputs/cells
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from examples import plot_cells, plot_features
from examples.repeat.untrained_report import save_untrained_report
from hf_any3d.model_card.run_report import RunReport, Stopwatch
from hf_any3d.training.arguments import argument
from hf_any3d.training.program import run_program
from hf_any3d.training.requests import parse_arguments
from hf_any3d.utils.shipped import ASSETS

EMBEDDED = ASSETS / "chair.ply"


@dataclass
class PictureArguments:
    """The model, and what of it is drawn."""

    model: str = argument(help="Directory or hub name of the model.")
    output_dir: str = argument(help="Folder for the picture and metrics.json.")
    picture: str = argument(help="cells, attention, guidance or features.")
    file: str = argument(str(EMBEDDED), help="Point file or mesh; features are of a dataset.")
    dataset_name: str = argument("shapes", help="Labeled dataset whose features are drawn.")
    data_dir: str | None = argument(None, help="Directory with the files of that dataset.")
    seed: int = field(default=0)


def _cells(arguments: PictureArguments, path: Path) -> None:
    options = {"cells": [], "attention": ["--attention"], "guidance": ["--guidance"]}[arguments.picture]
    plot_cells.main([arguments.model, arguments.file, "--output", str(path), *options])


def _features(arguments: PictureArguments, path: Path) -> None:
    words = [arguments.model, "--dataset", arguments.dataset_name, "--output", str(path)]
    words += [] if arguments.data_dir is None else ["--data-dir", arguments.data_dir]
    plot_features.main([*words, "--seed", str(arguments.seed)])


PICTURES: dict[str, Callable[[PictureArguments, Path], None]] = {
    "cells": _cells,
    "attention": _cells,
    "guidance": _cells,
    "features": _features,
}
"""What can be drawn, and how."""


def main(argv: list[str] | None = None) -> RunReport:
    """Draw the picture, and write metrics.json."""
    (arguments,) = parse_arguments((PictureArguments,), sys.argv[1:] if argv is None else argv)
    if arguments.picture not in PICTURES:
        raise ValueError(f"--picture is {arguments.picture!r}; expected one of {', '.join(PICTURES)}")
    stopwatch, folder = Stopwatch(), Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    PICTURES[arguments.picture](arguments, folder / f"{arguments.picture}.html")
    return save_untrained_report(
        folder,
        stopwatch,
        model=arguments.model,
        seed=arguments.seed,
        data={"name": arguments.file},
        metrics={},
    )


if __name__ == "__main__":
    run_program(main)
