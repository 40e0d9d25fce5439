"""Bring the columns of any loaded dataset to the types that the catalog promises."""

from typing import Any

from datasets import Array2D, ClassLabel, Dataset, DatasetDict, List, Value

from hf_any3d.data.feature import PointCloud


def prepare_splits(splits: DatasetDict, origin: str) -> DatasetDict:
    """Check the column of points, convert labels to ClassLabel and read rows as numpy arrays.

    Columns of files (`PointCloud`) are kept, and may replace points.

    Nested lists, several times slower to read than Array2D, and other number types become Array2D float32. Labels
    that are text or integers become a ClassLabel with the classes of the training split; those of streams are kept,
    since their classes are unknown before the end.

    Args:
        splits: the data as loaded.
        origin: the dataset's name, for error messages.

    Raises:
        ValueError: no column of points, or one of another type; a split with classes that the training split lacks.
    """
    prepared = {split: _with_array_points(rows, f"{origin}, split {split}") for split, rows in splits.items()}
    prepared = with_class_labels(type(splits)(prepared), origin)
    return prepared.with_format("numpy")


def _with_array_points(rows: Dataset, origin: str) -> Dataset:
    features = rows.features or {}
    feature = features.get("points")
    has_files = any(isinstance(one, PointCloud) for one in features.values())
    if has_files and not isinstance(feature, (Array2D, List)):
        return rows
    if feature is None:
        raise ValueError(f"{origin}: no column 'points'; there are {', '.join(features) or 'no columns'}")
    if isinstance(feature, Array2D):
        shape = feature.shape
    elif (
        isinstance(feature, List) and isinstance(feature.feature, List) and isinstance(feature.feature.feature, Value)
    ):
        first: Any = next(iter(rows.with_format(None)), None)
        shape = (None, 3 if first is None else len(first["points"][0]))
    else:
        raise ValueError(f"{origin}: points has type {feature}; expected Array2D or lists of lists of numbers")
    if shape[1] < 3:
        raise ValueError(f"{origin}: points has {shape[1]} channels; expected x, y, z and perhaps more")
    if feature == Array2D(shape, "float32"):
        return rows
    return rows.cast_column("points", Array2D(shape, "float32"))


def with_class_labels(splits: DatasetDict, origin: str) -> DatasetDict:
    """Convert labels that are text or whole numbers to a ClassLabel with the classes of the training split.

    Args:
        splits: the data; a `label` of another kind, such as a measured quantity, is kept, as is that of a stream.
        origin: the dataset's name, for error messages.

    Raises:
        ValueError: a split with classes that the training split lacks.
    """
    labelled = [str(split) for split, rows in splits.items() if "label" in rows.column_names]
    if not labelled:
        return splits
    first = "train" if "train" in labelled else labelled[0]
    feature = splits[first].features["label"]
    if not isinstance(feature, ClassLabel):
        if not isinstance(splits[first], Dataset):
            return splits
        feature = _classes_of(splits, first, labelled)
        if feature is None:
            return splits
    for split in labelled:
        found = splits[split].features["label"]
        if isinstance(found, ClassLabel):
            if found.names != feature.names:
                seen = f"{origin}: the classes of split {split} are {found.names}"
                raise ValueError(f"{seen}, those of {first} {feature.names}")
            continue
        unknown = set(splits[split].unique("label")) - set(feature.names) if _is_text(found) else set()
        if unknown:
            raise ValueError(f"{origin}: split {split} has classes {sorted(unknown)} that split {first} does not have")
        splits[split] = splits[split].cast_column("label", feature)
    return splits


def _classes_of(splits: DatasetDict, first: str, labelled: list[str]) -> ClassLabel | None:
    if _is_text(splits[first].features["label"]):
        return ClassLabel(names=sorted(splits[first].unique("label")))
    values = {value for split in labelled for value in splits[split].unique("label")}
    if all(isinstance(value, int) and value >= 0 for value in values):
        return ClassLabel(num_classes=max(values) + 1)
    return None


def _is_text(feature: object) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "string_view")
