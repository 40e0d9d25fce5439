"""`hf-any3d evaluate`: how often a trained classifier is right, with and without voting."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.failures import told_in_one_line
from hf_any3d.cli.quiet import quieten_libraries
from hf_any3d.messages import say, say_json


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or hub name of a point cloud classifier.")],
    dataset: Annotated[
        str | None,
        typer.Option(help="Name in the catalogue, or of a hub repository (owner/name).", show_default=False),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Settings file of the training program: names the dataset or its files, options, validation share "
            "and transforms of votes. The split is the one that a training by it has."
        ),
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Where the files of the dataset lie.", show_default=False)
    ] = None,
    options: Annotated[
        str | None, typer.Option(help="JSON object with options of the dataset, such as a variant.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which rows.")] = "test",
    voting: Annotated[
        int | None, typer.Option(min=0, help="Also judge by the mean logits of so many augmented copies.")
    ] = None,
    vote_augment: Annotated[
        list[str] | None, typer.Option(help="A transform of the copies; may be given several times.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Clouds that go through the model together; 32, or 1 where a batch sways the answer."
        ),
    ] = None,
    max_samples: Annotated[
        int | None, typer.Option(min=1, help="Judge on the first so many rows.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Governs the votes.")] = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave a GPU alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with the accuracy of each class.")] = False,
) -> None:
    """Judge a trained classifier on labelled clouds.

    Figures with votes stand apart from those of one look at each cloud.
    """
    with told_in_one_line():
        if (dataset is None) == (recipe is None):
            raise ValueError("give either --dataset or --recipe, which names one")
        quieten_libraries()
        words = _words(
            dataset_name=dataset,
            data_dir=data_dir,
            dataset_options=options,
            voting=voting,
            vote_augment=vote_augment,
        )
        # Progress and what the trainer prints go to stderr, so that stdout holds the answer alone.
        with contextlib.redirect_stdout(sys.stderr):
            metrics, by_class = _judge(model, recipe, words, split, batch_size, max_samples, seed, cpu)
    if as_json:
        say_json({"metrics": metrics, "class_accuracy": by_class})
        return
    wide = max(map(len, metrics))
    for name, values in metrics.items():
        shares = f"accuracy {100 * values['accuracy']:.2f} %   mean class {100 * values['mean_class_accuracy']:.2f} %"
        say(f"{name:<{wide}}  {shares}   loss {values['loss']:.4f}")


def _words(**given: str | int | list[str] | None) -> list[str]:
    words = []
    for name, value in given.items():
        if value not in (None, []):
            words += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    return words


def _judge(
    model: str,
    recipe: Path | None,
    words: list[str],
    split: str,
    batch_size: int | None,
    max_samples: int | None,
    seed: int,
    cpu: bool,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    from hf_any3d.data import load_point_dataset
    from hf_any3d.registration import register
    from hf_any3d.training.arguments import parse_arguments
    from hf_any3d.training.program import load_splits
    from hf_any3d.training.protocol import ProtocolArguments, apply_protocol
    from hf_any3d.training.saved_models import HowToJudge, evaluate_classifier
    from hf_any3d.training.settings import DataArguments

    register()
    file = [] if recipe is None else [str(recipe)]
    kinds = (DataArguments, ProtocolArguments)
    data, protocol = parse_arguments(kinds, [*file, *words], others_in_file=True)
    if recipe is None:
        rows = load_point_dataset(data.dataset_name, data_dir=data.data_dir, split=split, **data.dataset_options)
    else:
        splits, _ = apply_protocol(*load_splits(data), protocol)
        if split not in splits:
            raise ValueError(f"{recipe}: its data have no split {split!r}; there are {', '.join(splits)}")
        rows = splits[split]
    if max_samples is not None:
        rows = rows.select(range(min(max_samples, len(rows))))
    return evaluate_classifier(model, rows, split, HowToJudge(data, protocol, batch_size, seed, cpu))
