"""Read the scans of a request: rows and classes, how clouds are prepared, and what an earlier model has learned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from hf_any3d.data.catalog import up_axis_of
from hf_any3d.evaluation.scan_scores import file_names
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.few_scans.examples import Examples
from hf_any3d.training.few_scans.labeled_scans import LabeledScans, joined, look_at
from hf_any3d.training.few_scans.request import FewScans
from hf_any3d.training.few_scans.up_axis import FoundAxis, find_up_axis
from hf_any3d.training.protocol import build_processor
from hf_any3d.training.scan_sizes import read_first
from hf_any3d.training.splits import divide, load_rows, with_estimated_normals

# As many points as the packaged encoder has learned from, without colors
_NUM_POINTS, _FEATURES = 1024, ["xyz"]


@dataclass(frozen=True)
class Scans:
    """Scans that can be learned: rows that are read once, and what is seen of them.

    Attributes:
        data: Arguments of the data, completed by what follows from the scans, or from the earlier model.
        origin: Where the scans come from, for messages.
        splits: Rows of `train`, which are learned, and of other splits.
        processor: Prepares the clouds.
        new: The scans of the training split.
        earlier: The scans that an earlier model has learned, to which these are added.
        together: All scans that are learned: the earlier ones that are `kept`, and the new ones.
        kept: (earlier scans,) bool, those that are not among the new ones; None without an earlier model.
        implied_up_axis: The axis that points up by the dataset or the formats of the files, if they say it.
        found_up_axis: The axis with which most scans look upright; None if somebody says it, or it is not clear.
    """

    data: DataArguments
    origin: str
    splits: DatasetDict
    processor: PointCloudProcessor
    new: LabeledScans
    earlier: Examples | None
    together: LabeledScans
    kept: np.ndarray | None
    implied_up_axis: str | None
    found_up_axis: FoundAxis | None

    @property
    def rows(self) -> Dataset:
        """Rows of the new scans."""
        return self.splits["train"]

    @property
    def judging(self) -> dict[str, Dataset]:
        """Rows of the splits that only judge; without them, few scans are judged by folds alone."""
        return {str(split): rows for split, rows in self.splits.items() if split in ("validation", "test")}

    @property
    def can_have_views(self) -> bool:
        """True if views from one side can be made of the scans, and the earlier model has those of its own."""
        # Of clouds with colors, intensities or normals nobody knows which of those are seen.
        has_points_alone = list(self.processor.features) == ["xyz"]
        return has_points_alone and (self.earlier is None or self.earlier.views is not None)


def read_earlier(request: FewScans) -> Examples | None:
    """Read the scans that the model has learned to which a request adds scans; None if it is a new one."""
    folder = request.arguments.from_model
    if folder is None:
        return None
    request.check_settings_of_earlier()
    return Examples.load(Path(folder))


def read_scans(data: DataArguments, earlier: Examples | None = None, rows: DatasetDict | None = None) -> Scans:
    """Load scans, and look at them.

    Args:
        data: Where they are, and how clouds are prepared.
        earlier: Scans to which they are added.
        rows: The scans if they are loaded.

    Raises:
        PointCloudFileError: No file of the folder can be read.
        ValueError: There is a column that the data lack.
    """
    data = _with_channels(data, earlier)
    splits, _ = divide(load_rows(data) if rows is None else rows, data)
    # What the user says wins over what the files imply, and that over what the scans look like.
    implied = _implied_up_axis(data, splits["train"])
    found = None
    if earlier is None and data.up_axis is None and implied is None:
        found = find_up_axis(splits["train"])
    data.up_axis = data.up_axis or implied or ("y" if found is None else found.axis)
    processor = build_processor(data, {}) if earlier is None else earlier.processor
    splits = with_estimated_normals(splits, processor)
    origin = data.train_file or data.data_dir or data.dataset_name
    new = look_at(splits["train"], origin, data.group_column)
    together, kept = (new, None) if earlier is None else joined(earlier.scans, new)
    return Scans(
        data=data,
        origin=origin,
        splits=splits,
        processor=processor,
        new=new,
        earlier=earlier,
        together=together,
        kept=kept,
        implied_up_axis=implied,
        found_up_axis=found,
    )


def _with_channels(data: DataArguments, earlier: Examples | None) -> DataArguments:
    """Return the arguments of the data with points and channels; those of an earlier model, unless they say theirs."""
    num_points, features = _NUM_POINTS, _FEATURES
    if earlier is not None:
        num_points, features = earlier.processor.num_points, earlier.processor.features
    return replace(
        data,
        num_points=data.num_points or num_points,
        features=data.features or list(features),
    )


def _implied_up_axis(data: DataArguments, rows: Dataset) -> str | None:
    """Return the up axis that the dataset or the format of all its files implies, or None."""
    # A dataset of the catalog says its axis itself.
    if (axis := up_axis_of(data.dataset_name)) is not None:
        return axis
    # In these formats z is the elevation.
    if all(Path(name).suffix.lower() in (".las", ".laz") for name in file_names(rows)):
        return "z"
    first = read_first(data, rows)
    return None if first is None else first.up_axis
