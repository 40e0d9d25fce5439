"""Draw splits: validation rows from the training split, and few-shot folds."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from hf_any3d.data.options import require_columns
from hf_any3d.data.tables.numpy_rows import column_of, columns_of, refuse_transform


def validation_split(
    dataset: Dataset | DatasetDict,
    fraction: float,
    seed: int = 0,
    *,
    group_column: str | None = None,
    stratify: bool = True,
    label_column: str = "label",
) -> DatasetDict:
    """Move some of the training rows to a split `validation`, keeping groups together.

    Groups are drawn in random order. One is moved if that brings the split nearer to `fraction`, within each class if
    `stratify` is set. A class too small for that gives one group too, as long as the whole split has at most one and a
    half times its fraction; if all classes are so small, as many give one as bring the split near to `fraction`. At
    least one group of each class stays in training, and one is moved if there are two.

    Args:
        dataset: training rows, or splits with `train`; other splits are kept.
        fraction: share of the training rows, between 0 and 1.
        seed: seed of the order of groups.
        group_column: rows with the same value here, such as variants of one model, stay together; None makes every
            row a group.
        stratify: take the fraction of every class; a group of several classes counts as its most frequent one.
        label_column: column of the classes.

    Returns:
        Splits `train`, `validation` and the others; rows keep their order.

    Raises:
        ValueError: `fraction` is not between 0 and 1, there is a validation split already, or a class has too few
            groups.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; expected more than 0 and less than 1")
    splits: dict = dict(dataset) if isinstance(dataset, DatasetDict) else {"train": dataset}
    if "train" not in splits or "validation" in splits:
        raise ValueError(f"dataset has splits {', '.join(splits)}; expected train and no validation")
    rows = splits.pop("train")
    needed = [name for name in (group_column, label_column if stratify else None) if name is not None]
    # Splits are by what is stored, too, where a transform hides it.
    require_columns(needed, dict.fromkeys([*rows.column_names, *columns_of(rows)]))
    classes = _groups_of_classes(rows, group_column, label_column if stratify else None)
    if all(len(groups) < 2 for groups in classes.values()):
        raise ValueError(f"{len(classes)} groups, one a class: give more, or --validation_fraction 0")

    generator = np.random.default_rng(seed)
    validation: list[int] = []
    too_small = []  # classes that would have no row in the split
    for groups in classes.values():
        drawn = _draw(groups, fraction, generator)
        validation += drawn
        if len(groups) > 1 and not drawn:
            too_small.append(groups)
    if too_small:
        # One and a half times the fraction at most, unless there is nothing but small classes.
        most = round(fraction * (1.5 if validation else 1.0) * len(rows))
        validation += _draw_of_small(too_small, most - len(validation), generator, at_least_one=not validation)
    # Rows keep their order.
    validation.sort()
    kept = np.setdiff1d(np.arange(len(rows)), validation)
    return DatasetDict({"train": rows.select(kept), "validation": rows.select(validation), **splits})


def _groups_of_classes(
    rows: Dataset, group_column: str | None, label_column: str | None
) -> dict[Any, list[list[int]]]:
    """Return class -> groups of row numbers; without a column of labels, all groups are of one class."""
    # Without a column each row is a group of its own.
    keys = range(len(rows)) if group_column is None else column_of(rows, group_column)
    members = defaultdict(list)
    for index, key in enumerate(keys):
        members[key].append(index)
    labels = [None] * len(rows) if label_column is None else column_of(rows, label_column)
    classes = defaultdict(list)
    for group in members.values():
        # A group may hold several classes; it counts for its most frequent one.
        label = Counter(labels[index] for index in group).most_common(1)[0][0]
        classes[label].append(group)
    return classes


def draw_fold(
    splits: DatasetDict, *, way: int, shot: int, fold: int, seed: int = 0, test_per_class: int = 20
) -> DatasetDict:
    """Draw a few-shot fold: a few classes, with a few rows of each for training and for testing.

    The draw depends only on `seed` and `fold`, so that every model sees the same folds. Published figures for
    ModelNet40 use lists of rows shared by their authors instead (`modelnet40_fewshot`).

    Args:
        splits: `train` and `test`.
        way: Number of classes.
        shot: Training rows per class.
        fold: Number of the fold, from 0.
        seed: Seed; another one gives other folds.
        test_per_class: Test rows per class, 20 in the published protocol.

    Returns:
        Splits `train` (way * shot rows) and `test`, labeled from 0 to way - 1 with the names of the drawn classes.

    Raises:
        ValueError: Fewer classes than `way` have enough rows in both splits.

    Source: the protocol of OcCo and Point-BERT for ModelNet40 (5 or 10 ways, 10 or 20 shots, 10 folds).
    """
    for rows in splits.values():
        refuse_transform(rows, "draw_fold")
    label = splits["train"].features["label"]
    sizes = {"train": shot, "test": test_per_class}
    labels = {split: np.asarray(splits[split].with_format(None)["label"][:]) for split in sizes}
    counts = {split: np.bincount(labels[split], minlength=len(label.names)) for split in sizes}
    # A class takes part only if it has enough rows in both splits.
    large = np.flatnonzero(np.all([counts[split] >= number for split, number in sizes.items()], axis=0))
    if len(large) < way:
        raise ValueError(f"way is {way}, but {len(large)} classes have {shot + test_per_class} rows")
    generator = np.random.default_rng([seed, fold])
    classes = generator.choice(large, way, replace=False)
    names = [label.names[number] for number in classes]
    drawn = {}
    for split, number in sizes.items():
        rows = [generator.choice(np.flatnonzero(labels[split] == kind), number, replace=False) for kind in classes]
        selected = splits[split].select(np.concatenate(rows))
        # Rows were selected class by class.
        column = np.arange(way).repeat(number).tolist()
        relabeled = selected.remove_columns("label").add_column("label", column, feature=ClassLabel(names=names))
        form = selected.format
        drawn[split] = relabeled.with_format(form["type"], **form["format_kwargs"])
    return DatasetDict(drawn)


def _draw(groups: list[list[int]], fraction: float, generator: np.random.Generator) -> list[int]:
    """Draw groups until they have nearest to a fraction of all rows, and return these rows; one group is left."""
    if len(groups) < 2:
        return []
    target = fraction * sum(map(len, groups))
    taken = []
    left = []
    count = 0  # rows taken
    for number in generator.permutation(len(groups)):
        group = groups[number]
        # Taking a group brings the sum nearer to the target if at most half of the group exceeds it.
        if count + len(group) / 2 <= target:
            taken.append(group)
            count += len(group)
        else:
            left.append(group)
    # One group stays in training.
    if not left:
        taken.pop()
    return [index for group in taken for index in group]


def _draw_of_small(
    classes: list[list[list[int]]], most: int, generator: np.random.Generator, *, at_least_one: bool
) -> list[int]:
    """Draw the smallest group of some classes, in random order, as long as these have at most `most` rows."""
    drawn: list[int] = []
    for number in generator.permutation(len(classes)):
        smallest = min(classes[number], key=len)
        is_first = not drawn and at_least_one
        if len(drawn) + len(smallest) > most and not is_first:
            break
        drawn += smallest
    return drawn
