"""The data of a training: loaded, and divided into the splits to train and evaluate on."""

import warnings
from collections import Counter
from typing import Any

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, concatenate_datasets

from hf_any3d.data import load_point_dataset, validation_split
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.inputs import ATTRIBUTES
from hf_any3d.data.normals import NEIGHBORS
from hf_any3d.data.tables.missing_rows import are_labeled, labeled_rows
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments

FEW_CLOUDS = 50
"""Validation clouds below which an accuracy says little."""


def load_splits(
    arguments: DataArguments, *, needs_train: bool = True, points_are_labeled: bool = False, needs_labels: bool = True
) -> tuple[DatasetDict, str]:
    """Load and divide the data of a program's arguments, see `load_rows` and `divide`."""
    rows = load_rows(arguments, points_are_labeled, needs_labels)
    return divide(rows, arguments, needs_train=needs_train)


def load_rows(arguments: DataArguments, points_are_labeled: bool = False, needs_labels: bool = True) -> DatasetDict:
    """Load the data that arguments name, in the splits that they have.

    With `needs_labels`, rows whose class is unknown are left out with a warning, and so is a split of such rows alone.
    """
    assert isinstance(arguments.dataset_options, dict)
    if arguments.train_file is not None:
        rows = load_point_dataset("parquet", data_files=arguments.files, **arguments.dataset_options)
    else:
        options = dict(arguments.dataset_options)
        columns = [ATTRIBUTES[name] for name in arguments.features[1:]]
        if points_are_labeled:
            columns.append("labels")
        if arguments.dataset_name in ("folder", "hdf5") and columns:
            # Of files only points are read unless more is asked for.
            options["columns"] = sorted({*options.get("columns", ()), *columns})
            if arguments.estimate_normals and arguments.dataset_name == "folder":
                options["may_lack_normals"] = True
        rows = load_point_dataset(arguments.dataset_name, data_dir=arguments.data_dir, **options)
    return (
        judged_splits(rows, arguments.train_file or arguments.data_dir or arguments.dataset_name)
        if needs_labels
        else rows
    )


def with_estimated_normals(splits: DatasetDict, processor: PointCloudProcessor) -> DatasetDict:
    """Return splits whose clouds all have normals, if the processor estimates them; so it is done once.

    Rows of a stream, and those whose channels are one array, are left to the processor.
    """
    # Processors of rooms and voxels read clouds in other ways.
    if not getattr(processor, "estimate_normals", False):
        return splits
    filled = type(splits)()
    for split, rows in splits.items():
        filled[split] = rows
        shape = getattr(rows.features["points"], "shape", (None, 3)) if isinstance(rows, Dataset) else ()
        if tuple(shape[1:]) != (3,):
            continue
        warnings.warn(
            f"{split}: normals of clouds that have none are estimated from {NEIGHBORS} neighbors, as the model does",
            stacklevel=2,
        )
        names = [name for name in ("points", "normals") if name in rows.column_names]
        mapped = rows.with_format("numpy").map(
            _with_normals,
            input_columns=names,
            fn_kwargs={"processor": processor},
            features=Features({**rows.features, "normals": Array2D(shape, "float32")}),
            desc="Estimating normals",
        )
        form: Any = rows.format
        filled[split] = mapped.with_format(form["type"], **form["format_kwargs"])
    return filled


def _with_normals(points: Any, normals: Any = None, *, processor: PointCloudProcessor) -> dict[str, Any]:
    # Those that a file lacks are 0.
    own = None if normals is None or not np.any(normals) else normals
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told for all rows together
        return {"normals": processor.read_whole(PointCloudData(points, normals=own)).normals}


def judged_splits(splits: DatasetDict, origin: str) -> DatasetDict:
    """Return splits without rows whose class is -1 or null; a split of such rows alone is left out with a warning.

    Raises:
        ValueError: No row of the training split has a class.
    """
    judged = type(splits)()
    for split, rows in splits.items():
        where = f"{origin}, split {split}"
        # Rows of a stream are looked at when they are prepared.
        if not isinstance(rows, Dataset):
            judged[split] = rows
            continue
        is_class = isinstance(rows.features.get("label"), ClassLabel)
        if is_class and split != "train" and len(rows) and not are_labeled(rows).any():
            # Published test splits, whose labels their authors keep.
            warnings.warn(f"{where}: none of {len(rows):,} rows has a label (-1 or null); not judged", stacklevel=3)
            continue
        judged[split] = labeled_rows(rows, where)
    return judged


def divide(splits: DatasetDict, arguments: DataArguments, *, needs_train: bool = True) -> tuple[DatasetDict, str]:
    """Return the splits that arguments ask for, with part of the training rows as validation split if there is none.

    Data without a training split are refused with `needs_train`; else their splits are returned as they are.

    Returns:
        Splits `train`, perhaps `validation` and `test`, and a description of where the validation split comes from.
    """
    # A copy, whose splits are replaced below.
    splits = DatasetDict(splits)
    has_train = "train" in splits
    if needs_train and not has_train:
        raise ValueError(f"{arguments.dataset_name}: no split 'train'; there are {', '.join(map(str, splits))}")
    origin = "the dataset's own split" if "validation" in splits else "none"
    if has_train and "validation" not in splits and arguments.validation_fraction > 0:
        splits, origin = _draw_validation(splits, arguments)
    if has_train and len(arguments.train_splits) > 1:
        # After a validation split was drawn from 'train' alone.
        train = concatenate_datasets([splits[name] for name in arguments.train_splits])
        rest = {name: rows for name, rows in splits.items() if name not in arguments.train_splits}
        splits = DatasetDict({"train": train, **rest})
        origin = origin if "validation" in splits else "none"
    # Last of all, so that a quick run on some rows judges by the same kind of split.
    most_rows = {
        "train": arguments.max_train_samples,
        "validation": arguments.max_eval_samples,
        "test": arguments.max_eval_samples,
    }
    for split, most in most_rows.items():
        if most is not None and split in splits:
            splits[split] = splits[split].take(min(most, len(splits[split])))
    return splits, origin


def _draw_validation(splits: DatasetDict, arguments: DataArguments) -> tuple[DatasetDict, str]:
    """Draw a validation split from the training rows, and describe it; "none" if no class has two groups of rows."""
    train = splits["train"]
    # Rows of the data's own groups stay together, unless another column is named.
    group_column = arguments.group_column or ("group" if "group" in train.column_names else None)
    if _groups_of_largest_class(train, group_column) < 2:
        text = "only one scan per class, so none is left for validation; the weights of the last step are kept"
        warnings.warn(text, stacklevel=3)
        return splits, "none"
    splits = validation_split(
        splits,
        arguments.validation_fraction,
        arguments.validation_seed,
        group_column=group_column,
        stratify="label" in train.column_names,
    )
    count = len(splits["validation"])
    origin = f"{count} of {len(train)} clouds of the training split, seed {arguments.validation_seed}"
    if group_column:
        origin += f", complete groups of {group_column!r}"
    if count < FEW_CLOUDS:
        if count == 1:
            text = "only 1 validation scan, so validation accuracy can only be 0 % or 100 %"
        else:
            step = f"{100 / count:.0f} percentage points"
            text = f"only {count} validation scans, so validation accuracy changes in steps of {step}"
        warnings.warn(f"{text}: a rough estimate", stacklevel=3)
    return splits, origin


def _groups_of_largest_class(rows: Dataset, group_column: str | None) -> int:
    """Count the groups (or rows, without groups) of the largest class; 2 if labels or groups are missing."""
    # Without labels, or without the column of groups, `validation_split` decides.
    if "label" not in rows.column_names or group_column not in (None, *rows.column_names):
        return 2
    plain = rows.with_format(None)
    # Without groups each row is one of its own.
    groups = range(len(rows)) if group_column is None else plain[group_column][:]
    different = {*zip(plain["label"][:], groups, strict=True)}
    counts = Counter(label for label, _ in different)
    return max(counts.values(), default=0)
