"""The coloured clouds of Objaverse that PointLLM published, one file an object."""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Array2D, DatasetDict, Features, IterableDatasetDict

from hf_any3d.data.conversion.shards import checked_row
from hf_any3d.data.files import PointCloudError, PointCloudFileError
from hf_any3d.data.files.npy import parse_array

NUM_POINTS = 8192
SUFFIX = f"_{NUM_POINTS}.npy"
MOST_SHARDS = 256

logger = logging.getLogger(__name__)


def cloud_features(colors: bool) -> Features:
    """The columns that clouds give."""
    names = ("points", "colors") if colors else ("points",)
    return Features({name: Array2D((NUM_POINTS, 3), "float32") for name in names})


def cloud_path(folder: Path, object_id: str) -> Path:
    """Where the cloud of an object lies."""
    return folder / f"{object_id}{SUFFIX}"


def find_clouds(folders: Iterable[Path]) -> Path | None:
    """Give the first folder that has clouds; looks at no more of a folder than it must."""
    for folder in folders:
        if folder.is_dir():
            with os.scandir(folder) as entries:
                if any(entry.name.endswith(SUFFIX) for entry in entries):
                    return folder
    return None


def read_cloud(path: Path) -> dict[str, np.ndarray]:
    """Read `points` and `colors`, each (8192, 3); colours are red, green and blue from 0 to 1.

    Raises:
        FileNotFoundError: no such file.
        PointCloudFileError: a damaged file, or an array of another shape; Python objects are refused.
    """
    try:
        table = parse_array(path.read_bytes())
        if table.shape != (NUM_POINTS, 6) or table.dtype.kind not in "fiu":
            raise PointCloudError(
                f"an array of shape {table.shape} and type {table.dtype}; expected ({NUM_POINTS}, 6) of numbers"
            )
    except PointCloudError as error:
        raise PointCloudFileError(f"{path}: {error}") from None
    return {"points": table[:, :3], "colors": table[:, 3:]}


def stamp_clouds(folder: Path, object_ids: Iterable[str]) -> tuple[str, list[Path]]:
    """Look whether clouds are there and have changed, without keeping a record of each.

    Args:
        folder: of the clouds.
        object_ids: the objects wanted.

    Returns:
        A digest of the names, sizes and times of their files, and the files that are not there.
    """
    digest, missing = hashlib.sha256(), []
    for object_id in object_ids:
        try:
            status = os.stat(f"{folder}/{object_id}{SUFFIX}")
            digest.update(f"{object_id} {status.st_size} {status.st_mtime_ns}\n".encode())
        except FileNotFoundError:
            missing.append(cloud_path(folder, object_id))
    return digest.hexdigest(), missing


@dataclass(frozen=True)
class CloudAdder:
    """Add the clouds to a batch of rows.

    Attributes:
        folder: of the clouds.
        features: the columns of clouds that are wanted.
        skip: leave out rows whose cloud cannot be read, with a warning, instead of stopping.
    """

    folder: Path
    features: Features
    skip: bool

    def __call__(self, batch: Mapping[str, Sequence]) -> dict[str, list]:
        """Give the batch with the columns of clouds, without the rows left out."""
        kept, clouds = [], []
        for number, object_id in enumerate(batch["object_id"]):
            try:
                clouds.append(self._cloud(str(object_id)))
            except (PointCloudError, FileNotFoundError) as error:
                if not self.skip:
                    raise
                logger.warning("left out %s", error)
                continue
            kept.append(number)
        rows = {name: [values[number] for number in kept] for name, values in batch.items()}
        return {**{name: [cloud[name] for cloud in clouds] for name in self.features}, **rows}

    def _cloud(self, object_id: str) -> dict[str, object]:
        path = cloud_path(self.folder, object_id)
        cloud = read_cloud(path)
        try:
            return checked_row(cloud, self.features)
        except PointCloudError as error:
            raise PointCloudFileError(f"{path}: {error}") from None


def stream_clouds(splits: DatasetDict, adder: CloudAdder) -> IterableDatasetDict:
    """Give rows with clouds that are read from their files when the row is; nothing is copied.

    Args:
        splits: rows with `object_id`.
        adder: reads the clouds.
    """
    streams = {}
    for split, rows in splits.items():
        stream = rows.to_iterable_dataset(num_shards=min(MOST_SHARDS, len(rows)))
        features = Features({**adder.features, **rows.features})
        streams[split] = stream.map(adder, batched=True, batch_size=1, features=features)
        for name in ("description", "citation", "homepage", "license"):
            setattr(streams[split].info, name, getattr(rows.info, name))
    return IterableDatasetDict(streams)
