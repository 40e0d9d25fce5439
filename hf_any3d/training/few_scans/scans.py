"""Scans that are to be learned, read and looked at once: their rows, classes, near-duplicates and doubts about labels.

`Scans` is what all later steps ask; `LabeledScans` is what a model keeps of the scans that it has learned, and
`Examples` adds their features.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from safetensors import safe_open
from safetensors.torch import save_file

from hf_any3d.data.catalog import up_axis_of
from hf_any3d.data.checks import names_for_one_class
from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.learned_scans import STORE, checksum_of_points
from hf_any3d.data.near_duplicates import MOST_COMPARED, SAMPLE, groups_of, near_duplicates
from hf_any3d.data.numpy_rows import numpy_rows
from hf_any3d.data.options import require_columns
from hf_any3d.evaluation.scan_scores import file_names
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.few_scans.request import FewScans
from hf_any3d.training.few_scans.up_axis import FoundAxis, find_up_axis
from hf_any3d.training.protocol import build_processor
from hf_any3d.training.rows import class_names
from hf_any3d.training.scan_sizes import read_first
from hf_any3d.training.splits import divide, load_rows, with_estimated_normals
from hf_any3d.utils.atomic_files import atomic_write
from hf_any3d.utils.messages import printable

# As many points as the packaged encoder has learned from, without colors
_NUM_POINTS, _FEATURES = 1024, ["xyz"]


@dataclass(frozen=True)
class LabeledScans:
    """Scans with their classes, and the features that distinguish them."""

    classes: list[str]  # that have scans
    labels: np.ndarray  # (scans,) int64
    groups: np.ndarray  # (scans,) int64; scans of one number are near-duplicates, or belong together by the data
    digests: list[str]  # checksums of the points
    names: list[str]  # files, or rows

    @property
    def counts(self) -> dict[str, int]:
        """Number of scans of each class."""
        return {name: int((self.labels == number).sum()) for number, name in enumerate(self.classes)}

    @property
    def num_copies(self) -> int:
        """Number of scans that are near-duplicates of another one."""
        return len(self.groups) - len(set(self.groups.tolist()))

    @property
    def twins(self) -> list[tuple[int, int]]:
        """Numbers of scans that are near-duplicates: the first of its group, and each other one."""
        return equal(self.groups.tolist())

    def check(self, origin: str, allow_doubts: bool = False) -> None:
        """Refuse scans of one class; and without `allow_doubts`, which only warns, those that may have wrong labels.

        These are names of classes that differ only in case or spaces, and scans with two labels.
        """
        if len(self.classes) == 1:
            raise ValueError(f"{origin}: all scans are in one class, {self.classes[0]!r}; add scans of a second class")
        doubts = [*names_for_one_class(self.counts)]
        for first, second in equal(self.digests):
            label, other_label = (self.classes[self.labels[number]] for number in (first, second))
            if label != other_label:
                doubts.append(
                    f"{self.names[first]} and {self.names[second]} are the same scan with different labels, "
                    f"{label!r} and {other_label!r}; remove one of them"
                )
        for text in doubts:
            if not allow_doubts:
                raise ValueError(f"{origin}: {text}, or add --allow_doubts to train anyway")
            warnings.warn(printable(f"{origin}: {text}"), stacklevel=2)


@dataclass(frozen=True)
class Examples:
    """Scans with their features, before these are standardized; kept beside the model, to add scans later."""

    scans: LabeledScans
    features: np.ndarray  # (scans, width) float32
    processor: PointCloudProcessor
    views: np.ndarray | None = None  # the same of a view of each scan from one side
    learns_views: bool = False  # whether the head learns the views, too

    def save(self, folder: Path) -> None:
        """Write the features into a folder with a model and its processor."""
        described = asdict(self.scans)
        texts = {name: json.dumps(described[name]) for name in ("classes", "digests", "names")}
        texts |= {"learns_views": json.dumps(self.learns_views)}
        tensors = {name: torch.from_numpy(described[name]) for name in ("labels", "groups")}
        if self.views is not None:
            tensors["views"] = torch.from_numpy(self.views)
        with atomic_write(folder / STORE) as unfinished:
            save_file({"features": torch.from_numpy(self.features), **tensors}, unfinished, metadata=texts)

    @classmethod
    def load(cls, folder: Path) -> Examples:
        """Read what `save` wrote."""
        with safe_open(folder / STORE, framework="numpy") as file:
            texts = {name: json.loads(text) for name, text in file.metadata().items() if name != "format"}
            features, labels, groups = (file.get_tensor(name) for name in ("features", "labels", "groups"))
            views = file.get_tensor("views") if "views" in file.keys() else None  # noqa: SIM118
        scans = LabeledScans(texts["classes"], labels, groups, texts["digests"], texts["names"])
        learns_views = texts.get("learns_views", False)  # models before did not
        return cls(scans, features, PointCloudProcessor.from_pretrained(folder), views, learns_views)


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
        learns_views: Whether a view of each scan from one side is learned, too.
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
    learns_views: bool

    @classmethod
    def read(cls, request: FewScans, rows: DatasetDict | None = None) -> Scans:
        """Load scans, and look at them; `rows` are the scans if they are loaded.

        Raises:
            PointCloudFileError: No file of the folder can be read.
            ValueError: There is one class, two labels for the same scan, or settings that the earlier model has.
        """
        arguments = request.arguments
        num_points, features = _NUM_POINTS, _FEATURES
        earlier = None
        if arguments.from_model is not None:
            request.check_settings_of_earlier()
            earlier = Examples.load(Path(arguments.from_model))
            num_points, features = earlier.processor.num_points, earlier.processor.features
        # What the data's own arguments say counts first.
        data = replace(
            request.data,
            num_points=request.data.num_points or num_points,
            features=request.data.features or list(features),
        )
        splits, _ = divide(load_rows(data) if rows is None else rows, data)
        # What the user says wins over what the files imply, and that over what the scans look like.
        implied = implied_up_axis(data, splits["train"])
        found = None
        if earlier is None and data.up_axis is None and implied is None:
            found = find_up_axis(splits["train"])
        data.up_axis = data.up_axis or implied or ("y" if found is None else found.axis)
        processor = build_processor(data, {}) if earlier is None else earlier.processor
        splits = with_estimated_normals(splits, processor)
        origin = data.train_file or data.data_dir or data.dataset_name
        new = look_at(splits["train"], origin, data.group_column)
        together, kept = (new, None) if earlier is None else joined(earlier.scans, new)
        # Together: a class that is alone among new scans has others in the earlier model, and a label may differ from
        # its.
        together.check(origin, arguments.allow_doubts)
        return cls(
            data=data,
            origin=origin if earlier is None else f"{origin} and the earlier ones",
            splits=splits,
            processor=processor,
            new=new,
            earlier=earlier,
            together=together,
            kept=kept,
            implied_up_axis=implied,
            found_up_axis=found,
            # What is added to a model that has learned views is learned with its view, too.
            learns_views=arguments.views or (earlier is not None and earlier.learns_views),
        )

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


def look_at(rows: Dataset, origin: str, group_column: str | None = None) -> LabeledScans:
    """Look at scans that are to be learned, rows with `points` and a ClassLabel `label`; messages name their origin.

    Equal values of `group_column` belong together, as near-duplicates do.
    """
    names = class_names(rows, origin)
    plain = rows.with_format(None)
    labels = np.asarray(plain["label"][:], dtype=np.int64)
    counts = np.bincount(labels, minlength=len(names))
    present = np.flatnonzero(counts)
    empty = [name for number, name in enumerate(names) if not counts[number]]
    if empty:
        warnings.warn(
            printable(f"{origin}: no scan of {', '.join(map(repr, empty))}; the class is not in the model"),
            stacklevel=2,
        )
    digests = []
    clouds = []
    processor = PointCloudProcessor(num_points=SAMPLE)
    for row in numpy_rows(rows):
        digests.append(checksum_of_points(to_cloud(row, ("xyz",)).points))
        if len(rows) <= MOST_COMPARED:
            # Repeated points of a smaller cloud make it unlike all but equal ones.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                clouds.append(processor([row], return_tensors="pt")["points"][0])
    ties = equal(digests) + (near_duplicates(torch.stack(clouds)) if clouds else [])
    if group_column is not None:
        require_columns([group_column], rows.column_names)
    column = group_column or ("group" if "group" in rows.column_names else None)
    if column is not None:
        ties += equal(plain[column][:])
    return LabeledScans(
        classes=[names[number] for number in present],
        # Numbers of the classes that have scans, without gaps.
        labels=np.searchsorted(present, labels),
        groups=np.array(groups_of(len(rows), ties), dtype=np.int64),
        digests=digests,
        names=file_names(rows),
    )


def joined(earlier: LabeledScans, later: LabeledScans) -> tuple[LabeledScans, np.ndarray]:
    """Add scans to earlier ones, and return which of these are kept, (earlier scans,) bool; they are the first.

    Scans of equal points are one, with the later label. Classes are in alphabetical order.
    """
    kept = ~np.isin(earlier.digests, later.digests)
    classes = sorted({*(earlier.classes[label] for label in earlier.labels[kept]), *later.classes})
    labels = [classes.index(earlier.classes[label]) for label in earlier.labels[kept]]
    labels += [classes.index(later.classes[label]) for label in later.labels]
    numbers = np.flatnonzero(kept)
    # Numbers of groups are arbitrary; those of the later scans must only differ from the earlier ones.
    groups = np.concatenate([earlier.groups[kept], later.groups + len(earlier.labels) + 1])
    together = LabeledScans(
        classes=classes,
        labels=np.array(labels, dtype=np.int64),
        groups=groups.astype(np.int64),
        digests=[earlier.digests[number] for number in numbers] + later.digests,
        names=[earlier.names[number] for number in numbers] + later.names,
    )
    return together, kept


def equal(keys: Sequence[Any]) -> list[tuple[int, int]]:
    """Return pairs of places with equal keys: the first one, and each later one."""
    first: dict[Any, int] = {}
    return [(first[key], number) for number, key in enumerate(keys) if first.setdefault(key, number) != number]


def implied_up_axis(data: DataArguments, rows: Dataset) -> str | None:
    """Return the up axis that the dataset or the format of all its files implies, or None."""
    # A dataset of the catalog says its axis itself.
    if (axis := up_axis_of(data.dataset_name)) is not None:
        return axis
    # In these formats z is the elevation.
    if all(Path(name).suffix.lower() in (".las", ".laz") for name in file_names(rows)):
        return "z"
    first = read_first(data, rows)
    return None if first is None else first.up_axis
