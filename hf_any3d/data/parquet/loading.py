"""Load published files as a DatasetDict: converted once by `datasets`, then opened from the cache."""

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset, DatasetDict, Features, IterableDatasetDict, NamedSplit, concatenate_datasets, config
from datasets.exceptions import DatasetGenerationError

from hf_any3d.data.files import PointCloudError, file_errors
from hf_any3d.data.options import one_of
from hf_any3d.data.parquet.published_dataset import PublishedDataset, SplitSource
from hf_any3d.data.parquet.reading import read_lines
from hf_any3d.data.parquet.rows import checked_row
from hf_any3d.data.tables.file_conversion import rows_at_a_time
from hf_any3d.modeling.file_stamps import file_stamp, sha256_of
from hf_any3d.utils.messages import cut
from hf_any3d.utils.progress import progress_bar

logger = logging.getLogger(__name__)

Splits = TypeVar("Splits", DatasetDict, IterableDatasetDict)

_FORMAT_VERSION = 2  # of the cache; raised when its format changes
_PIECES, _LEAST_UNITS, _STREAM_SHARDS = 16, 64, 64  # an interrupted conversion loses one piece
_CHECKSUMS = "SHA256SUMS"
# `sha256sum` writes a star before files that it read as binary.
_CHECKSUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def load_published(
    dataset: PublishedDataset,
    root: Path,
    sources: Mapping[str, SplitSource],
    features: Features,
    *,
    variant: str = "default",
    options: Mapping[str, object] | None = None,
    cache_dir: str | os.PathLike | None = None,
    verify: bool = True,
    on_error: str = "raise",
    streaming: bool = False,
    partial: bool = False,
) -> DatasetDict | IterableDatasetDict:
    """Convert the files of a dataset to Arrow, unless the cache has them, and open them.

    The cache is keyed by the names, sizes and times of the files and by everything that determines the rows. A split
    is converted in pieces, and an interrupted conversion resumes with the first piece that is missing. Several
    processes may call this at once: one converts, the others wait.

    Args:
        dataset: its description.
        root: the folder of its files.
        sources: where the rows of each split come from.
        features: the columns.
        variant: a key of `dataset.expected_counts`.
        options: whatever else determines the rows, as plain values.
        cache_dir: where conversions are kept; None takes the folder `hf_any3d` in the cache of `datasets`.
        verify: check the number of clouds against the published one, and the files against SHA256SUMS if that file
            is in `root`; pass False for subsets of your own.
        on_error: "raise" stops at what cannot be read; "skip" leaves it out with a warning.
        streaming: return streams, in the order of the rows.
        partial: read what is there of a part of the files: listed files that are missing are left out, so are splits
            without any, and numbers are not compared with the published ones.

    Returns:
        The splits in the order of `sources`, with description, citation, homepage and license in their `info`.
    """
    skip = one_of("on_error", on_error, ("raise", "skip")) == "skip"
    expected = dataset.expected_counts.get(variant, {}) if verify and not partial else {}
    if partial:
        there = {split: _units_there(source) for split, source in sources.items()}
        sources = {split: source for split, source in there.items() if source.units}
        if not sources:
            raise dataset.not_found(f"{root}: no file of {dataset.name} that its lists name")
    name = dataset.name if variant == "default" else f"{dataset.name} ({variant})"
    place = {split: f"{root}: {name}, split {split}," for split in sources}  # for errors
    for split, source in sources.items():
        # Missing files stop before anything is read, unless they are to be left out.
        if not skip:
            dataset.require(source.missing, root)
        _check_count(place[split], source.num_rows, expected.get(split))
    # Of everything that changes the rows; by relative paths, so that a moved folder keeps its cache.
    stamps: dict[str, list] = {}
    for split, source in sources.items():
        stamps[split] = [(os.path.relpath(file, root), *file_stamp(file)) for file in source.files]
        stamps[split].append(source.digest)
    parts = [_FORMAT_VERSION, dataset.revision, dict(options or {}), features.to_dict(), stamps, skip]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    caches = Path(config.HF_DATASETS_CACHE) / "hf_any3d" if cache_dir is None else Path(cache_dir)
    folder = caches / dataset.name / f"{variant}-{key}"
    # Only before the first conversion, since all files are read for it.
    if verify and not folder.exists():
        _verify_checksums(root, sources.values())
    splits = DatasetDict()
    for split, source in sources.items():
        try:
            rows = _convert(source, split, features, folder, key, skip)
        except _NoRows as error:
            raise ValueError(f"{place[split]} has {error}") from None
        # How many clouds were left out is not known any more when rows come from the cache. The published number
        # counts where the files do not tell theirs.
        missing = (source.num_rows or expected.get(split) or 0) - len(rows)
        if skip and missing > 0:
            logger.warning("%s has %d clouds; %d were skipped", place[split], len(rows), missing)
        else:
            _check_count(place[split], len(rows), expected.get(split))
        splits[split] = rows
    if not streaming:
        return _described(splits, dataset)
    # Workers of a DataLoader share a stream by its shards.
    streams = {split: rows.to_iterable_dataset(min(len(rows), _STREAM_SHARDS)) for split, rows in splits.items()}
    return _described(IterableDatasetDict(streams), dataset)


def _units_there(source: SplitSource) -> SplitSource:
    """Return the source of a split without the listed files that are missing."""
    if not source.missing:
        return source
    missing = set(source.missing)
    units = [unit for unit in source.units if unit not in missing]
    return replace(source, units=units, num_rows=len(units), missing=())


def _described(splits: Splits, dataset: PublishedDataset) -> Splits:
    """Store source and license in the `info` of the splits."""
    for rows in splits.values():
        rows.info.description = dataset.description
        rows.info.citation = dataset.citation
        rows.info.homepage = dataset.homepage
        # As text, since `datasets` has no type for terms and links
        rows.info.license = str(dataset.license)
    return splits


def generated_dataset(generator: Callable[..., Iterator[dict]], features: Features, **options: Any) -> Dataset:
    """Call `Dataset.from_generator`, and raise errors of files and of the disk as they are.

    `datasets` wraps them in an error that names neither.
    """
    try:
        return Dataset.from_generator(generator, features, **options)
    except DatasetGenerationError as error:
        cause = error.__cause__
        # A full disk, a used up quota, or a limit of the size of files
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            place = options.get("cache_dir") or config.HF_DATASETS_CACHE
            raise OSError(cause.errno, f"{place} could not be written ({os.strerror(cause.errno)})") from cause
        # What readers say about a file or a row
        if isinstance(cause, (ValueError, OSError)):
            raise cause from None
        raise


class _NoRows(ValueError):
    """A piece of a split has no row that can be used."""


def _convert(source: SplitSource, split: str, features: Features, folder: Path, key: str, skip: bool) -> Dataset:
    """Convert a split in pieces; each is in the cache as soon as it is done."""
    pieces = []
    reason = "there are none"
    # At most 16 pieces, and none of fewer than 64 units: each piece is a file of the cache.
    size = max(_LEAST_UNITS, -(-len(source.units) // _PIECES))
    for start in range(0, len(source.units), size):
        # A tuple, which `datasets` does not split; the fingerprint stands for all arguments.
        units = tuple(source.units[start : start + size])
        try:
            rows = generated_dataset(
                _checked_rows,
                features,
                cache_dir=str(folder),
                gen_kwargs={"source": source, "units": units, "features": features, "skip": skip},
                fingerprint=f"{key}-{split}-{start}",
                split=NamedSplit(split),
                writer_batch_size=rows_at_a_time(features),
            )
        except _NoRows as error:  # `datasets` opens no table without rows
            reason = str(error) or reason
            continue
        pieces.append(rows)
    if not pieces:
        raise _NoRows(f"no clouds that could be read; {reason}")
    return concatenate_datasets(pieces, split=NamedSplit(split))


def _checked_rows(source: SplitSource, units: Sequence[Any], features: Features, skip: bool) -> Iterator[dict]:
    """Yield the rows of some units that can be used, checked.

    Raises:
        _NoRows: There are none; its text is the first error.
    """
    # Rows are counted, as a table without any cannot be opened.
    count = 0
    reasons: list[str] = []

    def failed(error: Exception) -> None:
        if not skip:
            raise error
        logger.warning("left out %s", error)
        reasons.append(f"the first error: {error}")

    for unit in units:
        try:
            # A row that does not fit costs only itself; an error while reading ends the unit.
            for number, row in enumerate(source.read(unit)):
                try:
                    with file_errors(f"{source.describe(unit)}, row {number}", "row of this dataset"):
                        checked = checked_row(row, features)
                except PointCloudError as error:
                    failed(error)
                    continue
                count += 1
                yield checked
        except (PointCloudError, FileNotFoundError) as error:
            failed(error)
    if not count:
        raise _NoRows(*reasons[:1])


def _check_count(where: str, count: int | None, expected: int | None) -> None:
    """Compare the number of a split's clouds with the published one, where both are known."""
    if count is None or expected is None or count == expected:
        return
    difference = f"{abs(expected - count):,} {'are missing' if count < expected else 'too many'}"
    raise ValueError(
        f"{where} has {count:,} clouds; expected {expected:,}, so {difference}. "
        "Check that the files are complete and of this variant, or pass verify=False for a subset of your own"
    )


def _verify_checksums(root: Path, sources: Iterable[SplitSource]) -> None:
    """Compare files with `root/SHA256SUMS`, as `sha256sum` writes it, if there is one; others in it are not read."""
    path = root / _CHECKSUMS
    if not path.is_file():
        return
    sums = {}
    for line in read_lines(path):
        match = _CHECKSUM_LINE.fullmatch(line)
        if not match:
            raise ValueError(f"{path}: a line is {cut(line, 60)!r}; expected a SHA-256, two spaces and a file name")
        # Resolved, as names may have dots or lead over links
        sums[(root / match[2]).resolve()] = match[1].lower()
    files = {file for source in sources for file in source.files}
    listed = [file for file in sorted(files) if file.resolve() in sums]
    for file in progress_bar(listed, desc="Checking sums", unit=" files"):
        seen = sha256_of(file)
        expected = sums[file.resolve()]
        if seen != expected:
            raise ValueError(f"{file}: SHA-256 {seen}; {_CHECKSUMS} has {expected}, so download it again")
