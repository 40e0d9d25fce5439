"""From published files to Parquet, in pieces that an interruption does not undo."""

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Features
from tqdm.auto import tqdm

from hf_any3d.data.conversion.description import SplitSource
from hf_any3d.data.conversion.journal import ShardRecord, ShardSums, finished_shards, record_path
from hf_any3d.data.conversion.shards import ShardWriter, checked_row
from hf_any3d.data.files import PointCloudError
from hf_any3d.whole_files import write_json

logger = logging.getLogger(__name__)

SHARD_BYTES = 128 << 20
"""A shard is closed when its rows, uncompressed, reach this size."""


def convert_split(
    source: SplitSource,
    split: str,
    features: Features,
    folder: Path,
    sums: ShardSums,
    *,
    skip: bool,
    progress: str,
) -> list[ShardRecord]:
    """Write the rows of a split as Parquet, or go on where an earlier call stopped.

    Args:
        source: the rows.
        split: its name.
        features: the columns.
        folder: gets `data/{split}-00000.parquet`, … and a record of each in `journal/`.
        sums: tells damaged shards, which are written anew.
        skip: leave out what cannot be read, with a warning, instead of stopping.
        progress: words before the progress bar.

    Returns:
        What each shard holds.

    Raises:
        PointCloudError: a unit that cannot be read or does not fit the columns.
        FileNotFoundError: a file of a unit is gone.
        OSError: a shard that cannot be written; what was written before stays and is not written again.
    """
    records = finished_shards(folder, split, len(source.units), sums)
    start = records[-1].stop if records else 0
    bar = tqdm(total=len(source.units), initial=start, desc=progress, unit=" pieces", disable=None)
    with bar:
        while start < len(source.units):
            record = _convert_shard(source, start, split, len(records), features, folder, skip, bar)
            records.append(record)
            sums.note(record)
            start = record.stop
    return records


def _convert_shard(
    source: SplitSource,
    start: int,
    split: str,
    number: int,
    features: Features,
    folder: Path,
    skip: bool,
    bar: tqdm,
) -> ShardRecord:
    path = folder / "data" / f"{split}-{number:05d}.parquet"
    skipped: list[str] = []
    shard = ShardWriter(path, features)
    try:
        for stop in range(start + 1, len(source.units) + 1):
            for row in _rows_of(source, source.units[stop - 1], features, skipped if skip else None):
                shard.add(row)
            bar.update()
            if shard.num_bytes >= SHARD_BYTES:
                break
        size, sha256 = shard.finish()
    except BaseException:
        shard.discard()
        raise
    record = ShardRecord(path.name, start, stop, size, skipped, shard.statistics.as_dict(), sha256)
    # Written after the shard: a shard without its record counts as not written.
    write_json(record_path(folder, split, number), record.as_dict())
    return record


def _rows_of(
    source: SplitSource, unit: Any, features: Features, skipped: list[str] | None
) -> Iterator[dict[str, object]]:
    """Give the checked rows of a unit; errors raise, or are noted where there is a list for them."""

    def failed(error: Exception) -> None:
        if skipped is None:
            raise error
        logger.warning("left out %s", error)
        skipped.append(str(error))

    rows = iter(())
    try:
        rows = enumerate(source.read(unit))
        for number, row in rows:
            try:
                checked = checked_row(row, features)
            except PointCloudError as error:
                failed(PointCloudError(f"{source.describe(unit)}, row {number}: {error}"))
                continue
            yield checked
    except (PointCloudError, FileNotFoundError) as error:
        failed(error)


def stamp_of(files: Iterable[Path], root: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the files that a conversion depends on.

    Raises:
        FileNotFoundError: a file that is gone.
    """
    stamps = []
    for file in files:
        status = os.stat(file)
        stamps.append((os.path.relpath(file, root), status.st_size, status.st_mtime_ns))
    return stamps
