"""Few-shot folds of any labelled dataset, drawn by a seed."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict


def draw_fold(
    splits: DatasetDict, *, way: int, shot: int, fold: int, seed: int = 0, test_per_class: int = 20
) -> DatasetDict:
    """Draw a few classes, and a few rows of each to learn from and to be tested on.

    What is drawn follows from `seed` and `fold` alone, so that every model sees the same folds. Published figures for
    ModelNet40 rest on lists of rows that their authors share instead; where those are at hand, use them.

    Args:
        splits: Has `train`, to draw what is learned from, and `test`.
        way: Number of classes.
        shot: Rows of a class to learn from.
        fold: Which of the folds, from 0.
        seed: Other folds under another seed.
        test_per_class: Rows of a class to be tested on, 20 in the published protocol.

    Returns:
        Splits `train` (way * shot rows) and `test`, labelled from 0 to way - 1 with the names of the drawn classes.

    Raises:
        ValueError: A missing split or class column, a number below 1, or too few classes with enough rows.

    Source: the protocol of OcCo and Point-BERT for ModelNet40 (5 or 10 ways, 10 or 20 shots, 10 folds).
    """
    if missing := [split for split in ("train", "test") if split not in splits]:
        raise ValueError(f"no split {missing[0]!r}; there are {', '.join(splits)}")
    label = splits["train"].features.get("label")
    if not isinstance(label, ClassLabel):
        raise ValueError(f"the training split has label {label}; expected a ClassLabel")
    wanted = {"train": shot, "test": test_per_class}
    for name, number, least in (
        ("way", way, 1),
        ("shot", shot, 1),
        ("test_per_class", test_per_class, 1),
        ("fold", fold, 0),
    ):
        if number < least:
            raise ValueError(f"{name} is {number}; expected at least {least}")
    labels = {split: np.asarray(splits[split].with_format(None)["label"][:]) for split in wanted}
    counts = {split: np.bincount(labels[split], minlength=label.num_classes) for split in wanted}
    fit = np.flatnonzero(np.all([counts[split] >= number for split, number in wanted.items()], axis=0))
    if len(fit) < way:
        raise ValueError(
            f"way is {way}, but only {len(fit)} classes have {shot} rows to learn from and {test_per_class} to be "
            "tested on"
        )
    generator = np.random.default_rng([seed, fold])
    classes = generator.choice(fit, way, replace=False)
    names = [label.names[number] for number in classes]
    drawn = {}
    for split, number in wanted.items():
        rows = [generator.choice(np.flatnonzero(labels[split] == kind), number, replace=False) for kind in classes]
        drawn[split] = _relabelled(splits[split].select(np.concatenate(rows)), np.arange(way).repeat(number), names)
    return DatasetDict(drawn)


def _relabelled(rows: Dataset, labels: np.ndarray, names: list[str]) -> Dataset:
    format_type = rows.format["type"]
    rows = rows.remove_columns("label").add_column("label", labels.tolist(), feature=ClassLabel(names=names))
    return rows.with_format(format_type)
