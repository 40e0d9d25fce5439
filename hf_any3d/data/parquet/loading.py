"""Load published files as a DatasetDict: converted once, then opened from the cache."""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets import DatasetDict, Features, IterableDatasetDict, config, load_dataset
from datasets.exceptions import DatasetGenerationError
from filelock import FileLock

from hf_any3d.atomic_files import read_json, remove_temporaries, write_error, write_json
from hf_any3d.data.parquet.journal import ShardChecks, ShardRecord, verify_checksums
from hf_any3d.data.parquet.published_dataset import PublishedDataset, SplitSource
from hf_any3d.data.parquet.shards import SplitStatistics, convert_split
from hf_any3d.modeling.file_stamps import file_stamp

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Version of the cache and of `meta/stats.json`; raised when either changes its format."""


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
) -> DatasetDict | IterableDatasetDict:
    """Convert the files of a dataset to Parquet, unless the cache has them, and open them.

    The cache is keyed by the names, sizes and times of the files and by everything that determines the rows. An
    interrupted conversion resumes with the first incomplete shard. Several processes may call this at once: one
    converts, the others wait. A damaged shard is converted again, with those after it; see `ShardChecks`.

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
        streaming: read the Parquet files row by row, without the Arrow copy that random access needs.

    Returns:
        The splits in the order of `sources`, with description, citation, homepage and license in their `info`.

    Raises:
        ValueError: a wrong option; another number of clouds than published; a file that cannot be read or has
            another checksum.
        FileNotFoundError: a file that no longer exists.
        OSError: the disk is full; names the file. What was converted before stays usable.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'skip'")
    expected = dataset.expected_counts.get(variant, {}) if verify else {}
    what = dataset.name if variant == "default" else f"{dataset.name} ({variant})"
    for split, source in sources.items():
        if on_error == "raise":
            dataset.require(source.missing, root)
        if source.num_rows is not None:
            _check_count(what, split, source.num_rows, expected.get(split), root)

    stamps = {split: [*_file_stamps(source.files, root), source.digest] for split, source in sources.items()}
    settings = {
        "format_version": FORMAT_VERSION,
        "name": dataset.name,
        "revision": dataset.revision,
        "variant": variant,
        "options": dict(options or {}),
        "features": features.to_dict(),
    }
    # Whatever changes the rows is part of the key, and names another folder.
    text = json.dumps({**settings, "files": stamps}, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    caches = Path(config.HF_DATASETS_CACHE) / "hf_any3d" if cache_dir is None else Path(cache_dir)
    folder = caches / dataset.name / f"{variant}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    # Processes of one training start at the same time: the first converts, and the others find the result.
    with FileLock(f"{folder}.lock"):
        # Nobody else writes while the lock is held, so unfinished files are those of an interrupted call.
        for part in ("data", "journal", "meta"):
            remove_temporaries(folder / part)
        is_complete = (folder / "meta" / "stats.json").is_file()
        has_copy = any((folder / "arrow").rglob("*.arrow"))
        checks = ShardChecks(folder, trust_times=is_complete and (has_copy or streaming))
        if verify and not is_complete:
            verify_checksums(root, {file for source in sources.values() for file in source.files})
        records, skip = {}, on_error == "skip"
        for split, source in sources.items():
            progress = f"Converting {what}, {split}"
            records[split] = convert_split(source, split, features, folder, checks, skip=skip, progress=progress)
            _check_converted(what, split, records[split], expected.get(split), root, skip)
        statistics = {split: _statistics(some) for split, some in records.items()}
        described = {key: value for key, value in settings.items() if key != "features"} | {"splits": statistics}
        # Its existence marks the conversion as complete, so it comes last.
        if read_json(folder / "meta" / "stats.json") != described:
            write_json(folder / "meta" / "stats.json", described)
        checks.save()
        splits = _open(folder, records, streaming)
    for rows in splits.values():
        rows.info.description = dataset.description
        rows.info.citation = dataset.citation
        rows.info.homepage = dataset.homepage
        rows.info.license = str(dataset.license)
    return splits


def _file_stamps(files: Iterable[Path], root: Path) -> list[tuple]:
    """Return name, size and times of files."""
    return [(os.path.relpath(file, root), *file_stamp(file)) for file in files]


def _check_count(what: str, split: str, found: int, expected: int | None, root: Path) -> None:
    if expected is None or found == expected:
        return
    difference = f"{abs(expected - found):,} {'are missing' if found < expected else 'too many'}"
    raise ValueError(
        f"{root}: {what}, split {split}, has {found:,} clouds; expected {expected:,}, so {difference}. "
        "Check that the files are complete and of this variant, or pass verify=False for a subset of your own"
    )


def _check_converted(
    what: str, split: str, records: list[ShardRecord], expected: int | None, root: Path, skip: bool
) -> None:
    skipped = [text for record in records for text in record.skipped]
    found = sum(record.statistics["num_rows"] for record in records)
    if skipped and not skip:
        raise ValueError(
            f"{root}: {what}, split {split}, was converted without {len(skipped)} pieces that could not be read, the "
            f"first: {skipped[0]}. Repair the files, or pass on_error='skip'"
        )
    if not found:
        reason = f"the first error: {skipped[0]}" if skipped else "there are none"
        raise ValueError(f"{root}: {what}, split {split}, has no clouds that could be read; {reason}")
    if skipped:
        logger.warning("%s, split %s: %d clouds, and %d pieces left out", what, split, found, len(skipped))
    else:
        _check_count(what, split, found, expected, root)


def _statistics(records: list[ShardRecord]) -> dict:
    total = SplitStatistics()
    for record in records:
        total.merge(SplitStatistics.from_dict(record.statistics))
    return {**total.as_dict(), "num_skipped": sum(len(record.skipped) for record in records)}


def _open(
    folder: Path, records: Mapping[str, list[ShardRecord]], streaming: bool
) -> DatasetDict | IterableDatasetDict:
    files = {split: [str(folder / "data" / record.file) for record in some] for split, some in records.items()}
    try:
        return load_dataset("parquet", data_files=files, cache_dir=str(folder / "arrow"), streaming=streaming)
    except DatasetGenerationError as error:
        cause = error.__cause__
        # A full disk is the usual reason, which the error of `datasets` hides.
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise write_error(folder / "arrow", cause) from cause
        raise
