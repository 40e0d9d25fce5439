"""Rows on which a saved model is evaluated: data of a user, a dataset of the catalog, or those of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from hf_any3d.data import load_point_dataset
from hf_any3d.data.tables.missing_rows import labeled_rows
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.registry import OF_YOUR_FILES
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.protocol import ProtocolArguments, apply_protocol
from hf_any3d.training.recipes import read_recipe
from hf_any3d.training.requests import build_arguments
from hf_any3d.training.splits import load_splits, with_estimated_normals


def first_rows(rows: Dataset, count: int | None) -> Dataset:
    """Return so many rows at most."""
    return rows if count is None else rows.select(range(min(count, len(rows))))


def with_normals_of_model(rows: Dataset, model: str, data: DataArguments) -> Dataset:
    """Estimate the normals of rows that have none, if the processor of the model does."""
    if not data.estimate_normals:
        return rows
    processor = PointCloudProcessor.from_pretrained(model)
    return with_estimated_normals(DatasetDict({"evaluated": rows}), processor)["evaluated"]


def evaluation_arguments(
    model: str, settings: dict[str, Any], recipe: Path | None = None
) -> tuple[DataArguments, ProtocolArguments]:
    """Return the arguments of a training about data and votes, of which a recipe may have some."""
    kinds = DataArguments, ProtocolArguments
    # A recipe also has arguments of the training, which an evaluation has no use for.
    below = None if recipe is None else read_recipe(recipe, kinds, others_in_file=True)
    data, protocol = build_arguments(kinds, settings, below)
    if data.dataset_name == "folder":
        # One damaged file is reported at the end, and does not waste an evaluation.
        data.dataset_options = {"on_error": "skip", **data.dataset_options}
    # Of files only points are read unless more is asked for.
    stored = PointCloudProcessor.get_feature_extractor_dict(model)[0]
    data.features = list(stored.get("features", data.features))
    data.estimate_normals = stored.get("estimate_normals", False)
    return data, protocol


def evaluated_rows(
    command: str, data: DataArguments, protocol: ProtocolArguments, split: str | None, recipe: Path | None = None
) -> tuple[str, Dataset, str | None]:
    """Load the split to evaluate a model on, by its command in `EVALUATIONS`.

    Returns:
        The name of the split, its rows, and the name of the data if the model may have learned the same ones.

    Raises:
        ValueError: The data have no such split.
    """
    # Reconstructions are compared with the clouds themselves.
    needs_labels = command != "reconstruct"
    # With a folder, these names of the catalog stand for loaders of the user's own files.
    is_folder = data.dataset_name in OF_YOUR_FILES and data.data_dir is not None
    if recipe is None and data.train_file is None and not is_folder:
        # A dataset has its own test split, which is loaded alone.
        split = split or "test"
        options: Any = data.dataset_options
        rows = load_point_dataset(data.dataset_name, data_dir=data.data_dir, split=split, **options)
        rows = labeled_rows(rows, f"{data.dataset_name}, split {split}") if needs_labels else rows
        return split, rows, None
    if recipe is None:
        data.validation_fraction = 0  # of what the user gives, all is evaluated
    # Labels of points are a column that the loader of folders reads only if it is asked to.
    loaded = load_splits(data, needs_train=False, points_are_labeled=command == "segment", needs_labels=needs_labels)
    # A model of a few-shot protocol is judged on the rows of its fold alone.
    splits, _ = apply_protocol(*loaded, protocol)
    source = data.train_file or data.data_dir
    # Of a single split it is clear what is meant, whatever its name.
    if split is None and "test" not in splits and len(splits) == 1:
        (split,) = map(str, splits)
        # The loader calls what has no folders of splits a training split, whatever it was made for.
        if recipe is None and split == "train":
            return "all", splits[split], Path(str(source)).stem
    split = split or "test"
    if split not in splits:
        raise ValueError(
            f"{recipe or source}: its data has no split {split!r}; there are {', '.join(map(str, splits))}"
        )
    return split, splits[split], None
