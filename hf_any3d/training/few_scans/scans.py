"""Scans before they are learned: classes, counts, doubts about labels, near-duplicates, and their features.

In the order of this file: what scans are and how they are stored, `look_at` and `check`, scans added to earlier ones,
near-duplicates, the axis that points up, and the features of scans, of views of them and of things of no class.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Array2D, Dataset, Features
from safetensors import safe_open
from safetensors.torch import save_file

from hf_any3d.data.axes import turn_up_axis
from hf_any3d.data.catalog import up_axis_of
from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.near_duplicates import MOST_COMPARED, SAMPLE, near_duplicates
from hf_any3d.data.numpy_rows import numpy_rows
from hf_any3d.modeling.point_encoders.packaged_encoder import PACKAGED_UP_AXIS, packaged_rows
from hf_any3d.modeling.point_encoders.packaged_metric import in_metric, packaged_metric
from hf_any3d.modeling.point_features import (
    PointFeaturesConfig,
    PointFeaturesForPointCloudClassification,
    PointFeaturesModel,
)
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.few_scans.no_class import draw_things
from hf_any3d.training.few_scans.one_side import one_side
from hf_any3d.training.frozen_features import frozen_features
from hf_any3d.training.rows import class_names
from hf_any3d.utils.atomic_files import atomic_write
from hf_any3d.utils.messages import printable

# Not pushed to the hub, as all files that start with an underscore.
_STORE = "_features.safetensors"
LEAST, MOST = 20, 60
"""Scans below which nothing is said, and scans that are looked at."""
SHARE, NEARER = 0.55, 0.065
"""Share of the scans that an axis must win before it is named, and how much nearer to the shapes of the package they
must be with it, on average, than with the next best one: electronic parts look more like upright furniture if they
stand on an edge, but not by that much."""
_POINTS = 1024


@dataclass(frozen=True)
class Scans:
    """Labeled scans, as training sees them."""

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


@dataclass(frozen=True)
class Examples:
    """Scans with their features, before these are standardized; kept beside the model, to add scans later."""

    scans: Scans
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
        with atomic_write(folder / _STORE) as unfinished:
            save_file({"features": torch.from_numpy(self.features), **tensors}, unfinished, metadata=texts)

    @classmethod
    def load(cls, folder: Path) -> Examples:
        """Read what `save` wrote."""
        with safe_open(folder / _STORE, framework="numpy") as file:
            texts = {name: json.loads(text) for name, text in file.metadata().items() if name != "format"}
            features, labels, groups = (file.get_tensor(name) for name in ("features", "labels", "groups"))
            views = file.get_tensor("views") if "views" in file.keys() else None  # noqa: SIM118
        scans = Scans(texts["classes"], labels, groups, texts["digests"], texts["names"])
        learns_views = texts.get("learns_views", False)  # models before did not
        return cls(scans, features, PointCloudProcessor.from_pretrained(folder), views, learns_views)


def look_at(rows: Dataset, origin: str, group_column: str | None = None) -> Scans:
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
        warnings.warn(printable(f"{origin}: no scan of {', '.join(map(repr, empty))}; not learned"), stacklevel=2)
    digests = []
    clouds = []
    processor = PointCloudProcessor(num_points=SAMPLE)
    for row in numpy_rows(rows):
        points = np.ascontiguousarray(to_cloud(row, ("xyz",)).points, dtype=np.float32)
        digests.append(hashlib.sha256(points.tobytes()).hexdigest()[:32])
        if len(rows) <= MOST_COMPARED:
            # Repeated points of a smaller cloud make it unlike all but equal ones.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                clouds.append(processor([row], return_tensors="pt")["points"][0])
    ties = equal(digests) + (near_duplicates(torch.stack(clouds)) if clouds else [])
    column = group_column or ("group" if "group" in rows.column_names else None)
    if column is not None:
        ties += equal(plain[column][:])
    return Scans(
        classes=[names[number] for number in present],
        # Numbers of the classes that have scans, without gaps.
        labels=np.searchsorted(present, labels),
        groups=_joined(len(rows), ties),
        digests=digests,
        names=file_names(rows),
    )


def check(scans: Scans, origin: str, allow_doubts: bool = False) -> None:
    """Refuse scans of one class; and without `allow_doubts`, which only warns, those that may have wrong labels.

    These are names of classes that differ only in case or spaces, and scans with two labels.
    """
    if len(scans.classes) == 1:
        raise ValueError(f"{origin}: all scans are of one class, {scans.classes[0]!r}; expected at least two classes")
    doubts = []
    counts = scans.counts
    first_names: dict[str, str] = {}
    for name in scans.classes:
        other = first_names.setdefault(" ".join(name.casefold().replace("_", " ").split()), name)
        if other != name:
            doubts.append(
                f"classes {other!r} ({counts[other]} scans) and {name!r} ({counts[name]}) differ only in case or "
                "spaces; give them one name"
            )
    for first, second in equal(scans.digests):
        label, other_label = (scans.classes[scans.labels[number]] for number in (first, second))
        if label != other_label:
            doubts.append(
                f"{scans.names[first]} and {scans.names[second]} are the same scan with two labels, {label!r} and "
                f"{other_label!r}; remove one of them"
            )
    for text in doubts:
        if not allow_doubts:
            raise ValueError(f"{origin}: {text}, or add --allow_doubts")
        warnings.warn(printable(f"{origin}: {text}"), stacklevel=2)


def joined(earlier: Scans, later: Scans) -> tuple[Scans, np.ndarray]:
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
    together = Scans(
        classes=classes,
        labels=np.array(labels, dtype=np.int64),
        groups=groups.astype(np.int64),
        digests=[earlier.digests[number] for number in numbers] + later.digests,
        names=[earlier.names[number] for number in numbers] + later.names,
    )
    return together, kept


def file_names(rows: Dataset) -> list[str]:
    """Return the file of each row, or "row 3"."""
    if "file" in rows.column_names:
        return [str(name) for name in rows.with_format(None)["file"][:]]
    return [f"row {number}" for number in range(len(rows))]


def equal(keys: Sequence[Any]) -> list[tuple[int, int]]:
    """Return pairs of places with equal keys: the first one, and each later one."""
    first: dict[Any, int] = {}
    return [(first[key], number) for number, key in enumerate(keys) if first.setdefault(key, number) != number]


def _joined(count: int, ties: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return a number for each of `count` scans, (count,): equal for those that ties connect."""
    parent = list(range(count))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    # The smaller number wins, so that groups do not depend on the order of the ties.
    for first, second in ties:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    return np.array([root(number) for number in range(count)], dtype=np.int64)


def implied_up_axis(data: DataArguments, rows: Dataset) -> str | None:
    """Return the up axis that the dataset or the format of all its files implies, or None."""
    # In these formats z is the elevation.
    are_aerial = all(Path(name).suffix.lower() in (".las", ".laz") for name in file_names(rows))
    # A dataset of the catalog says its axis itself.
    return up_axis_of(data.dataset_name) or ("z" if are_aerial else None)


def hint_of_axis(rows: Dataset, up_axis: str) -> str | None:
    """Return a line if most scans look as if another axis pointed up than the assumed one; None if they do not."""
    if len(rows) < LEAST:
        return None
    distances = distances_by_axis(rows)  # (axes, scans)
    wins = np.bincount(distances.argmin(axis=0), minlength=3)
    best, second = np.argsort(distances.mean(axis=1))[:2]
    nearer = 1 - distances[best].mean() / distances[second].mean()
    axis = "xyz"[best]
    # Both: most scans win with this axis, and clearly.
    if axis == up_axis or wins[best] < SHARE * distances.shape[1] or nearer < NEARER:
        return None
    return (
        f"up axis: {up_axis} was assumed, but {wins[best]} of {distances.shape[1]} scans look as if {axis} pointed "
        f"up; if it does: --up_axis {axis}"
    )


@torch.no_grad()
def distances_by_axis(rows: Dataset) -> np.ndarray:
    """Return how far scans are from upright shapes of the package if x, y or z points up: `(3, scans)`."""
    # Evenly over the rows, which are often in the order of their classes.
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), MOST)).astype(int)
    processor = PointCloudProcessor(num_points=_POINTS)
    clouds = [to_cloud(row, ("xyz",)).points for row in numpy_rows(rows.select(chosen))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few points, which learning tells of
        points = processor([cloud[:, :3] for cloud in clouds])["points"].numpy()  # (scans, points, 3)
    model = PointFeaturesModel(PointFeaturesConfig(features=["encoder"], copies=1)).eval()
    stored = packaged_metric()

    def compared(features: torch.Tensor) -> torch.Tensor:
        return in_metric((features - stored["mean"]) / stored["scale"], stored["matrix"])

    upright_shapes = compared(packaged_rows())  # (shapes, width)
    nearest = []
    # The encoder has learned shapes with one axis up; this turn makes a scan upright if `axis` points up in it.
    for axis in "xyz":
        turned = torch.from_numpy(turn_up_axis(points.reshape(-1, 3), axis, PACKAGED_UP_AXIS).reshape(points.shape))
        features = torch.cat([model(points=piece).pooler_output for piece in turned.split(32)])
        nearest.append(torch.cdist(compared(features), upright_shapes).amin(dim=1))
    return torch.stack(nearest).numpy()


def can_have_views(processor: PointCloudProcessor, earlier: Examples | None) -> bool:
    """Return whether views from one side can be made of the scans, and of those of an earlier model."""
    # Of clouds with colors, intensities or normals nobody knows which of those are seen.
    return list(processor.features) == ["xyz"] and (earlier is None or earlier.views is not None)


def compute_examples(
    model: PointFeaturesForPointCloudClassification,
    rows: Dataset,
    processor: PointCloudProcessor,
    scans: Scans,
    earlier: Examples | None,
    one_sided: bool,
) -> Examples:
    """Compute the features of all scans and of a view of each, and add those of an earlier model."""
    has_views = one_sided and can_have_views(processor, earlier)

    def of_scans(rows: Dataset) -> np.ndarray:
        return compute_features(model, rows, processor)

    def of_views(rows: Dataset) -> np.ndarray:
        # Each row as it is seen from one side, drawn by its number
        views = []
        # A generator for each row, so that its view does not depend on how many there are.
        for number, row in enumerate(numpy_rows(rows)):
            xyz = to_cloud(row, ("xyz",)).points[:, :3]
            views.append(one_side(xyz, processor.num_points, model.config.up_axis, np.random.default_rng(number)))
        of_one_side = _rows_of(np.stack(views))
        return compute_features(model, of_one_side, processor)

    if earlier is None:
        return Examples(scans, of_scans(rows), processor, of_views(rows) if has_views else None)
    together, kept = joined(earlier.scans, scans)
    features = _added(rows, scans, earlier.scans, kept, earlier.features, of_scans)
    views = None
    if has_views:
        assert earlier.views is not None
        views = _added(rows, scans, earlier.scans, kept, earlier.views, of_views)
    return Examples(together, features, processor, views)


def _added(
    rows: Dataset,
    scans: Scans,
    earlier: Scans,
    kept: np.ndarray,
    stored: np.ndarray,
    compute: Callable[[Dataset], np.ndarray],
) -> np.ndarray:
    """Add features of scans to the stored ones of an earlier model; those of `kept` earlier scans come first.

    Scans that the earlier model has learned keep the features that were computed then.
    """
    # Scans are known by their points: files may have been moved or written in another format.
    row_of = {digest: number for number, digest in enumerate(earlier.digests)}
    new_scans = [number for number, digest in enumerate(scans.digests) if digest not in row_of]
    learned_scans = [number for number, digest in enumerate(scans.digests) if digest in row_of]
    features = np.empty((len(rows), stored.shape[1]), np.float32)  # (scans, width)
    if new_scans:
        features[new_scans] = compute(rows.select(new_scans))
    features[learned_scans] = stored[[row_of[scans.digests[number]] for number in learned_scans]]
    return np.concatenate([stored[kept], features])


def _rows_of(points: np.ndarray) -> Dataset:
    kinds = Features({"points": Array2D(points.shape[1:], "float32")})
    return Dataset.from_dict({"points": points.astype(np.float32)}, kinds)


def compute_features(
    model: PointFeaturesForPointCloudClassification, rows: Dataset, processor: PointCloudProcessor
) -> np.ndarray:
    """Return the features of rows as they are computed, (rows, width)."""
    # The bar moves with each batch, and a vision model takes a second for a cloud.
    batch_size = 4 if "views" in model.config.features else 32
    computed = frozen_features(model, rows, processor, batch_size).with_format("numpy")
    return np.stack(computed["features"][:]).astype(np.float32)


def compute_things(
    model: PointFeaturesForPointCloudClassification, processor: PointCloudProcessor, count: int
) -> np.ndarray:
    """Return the features of drawn things of no class as they are computed, (things, width).

    There are none for clouds with colors, intensities or normals, which nobody draws.
    """
    if not count or list(processor.features) != ["xyz"]:
        return np.empty((0, model.config.hidden_size), np.float32)
    points = draw_things(count, processor.num_points, model.config.up_axis)
    copies = model.config.copies
    # Of the things alone: copies of them would cost more than all else, and tell nothing better.
    model.config.copies = 1
    try:
        return compute_features(model, _rows_of(points), processor)
    finally:
        model.config.copies = copies
