"""Record which shards of a conversion are complete, and check files against their checksums."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from hf_any3d.atomic_files import read_json, write_json
from hf_any3d.data.parquet.reading import read_lines
from hf_any3d.modeling.file_stamps import file_stamp, sha256_of

logger = logging.getLogger(__name__)

FILE_NAME = "SHA256SUMS"
# `sha256sum` writes a star before files that it read as binary.
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def verify_checksums(root: Path, files: Iterable[Path]) -> None:
    """Compare files with `root/SHA256SUMS`, as `sha256sum` writes it, if there is one.

    Args:
        root: the folder; the names in the list are relative to it.
        files: the files to check; others in the list are not read.

    Raises:
        ValueError: a malformed line, or a file with another checksum; names it.
    """
    path = root / FILE_NAME
    if not path.is_file():
        return
    sums = {}
    for line in read_lines(path):
        found = _LINE.fullmatch(line)
        if not found:
            raise ValueError(f"{path}: a line is {line[:60]!r}; expected a SHA-256, two spaces and a file name")
        sums[(root / found[2]).resolve()] = found[1].lower()
    listed = [file for file in sorted(files) if file.resolve() in sums]
    for file in tqdm(listed, desc="Checking sums", unit=" files", disable=None):
        seen = sha256_of(file)
        if seen != sums[file.resolve()]:
            raise ValueError(f"{file}: SHA-256 {seen}; {FILE_NAME} has {sums[file.resolve()]}, so download it again")


@dataclass(frozen=True)
class ShardRecord:
    """The content of a complete shard.

    Attributes:
        file: its name in `data/`.
        start: the first unit of the source in it.
        stop: the unit after the last one.
        size: bytes of the file.
        skipped: error messages of what was left out.
        statistics: of its rows, as `SplitStatistics.as_dict` returns them.
        sha256: of the file; None in conversions of earlier versions, whose shards are checked by size alone.
    """

    file: str
    start: int
    stop: int
    size: int
    skipped: list[str]
    statistics: Mapping
    sha256: str | None = None


def record_path(folder: Path, split: str, number: int) -> Path:
    """Return the path of a shard's record."""
    return folder / "journal" / f"{split}-{number:05d}.json"


class ShardChecks:
    """Check that shards are as they were written, by their size and SHA-256.

    Hashing a shard means reading it (0.6 seconds per gigabyte from memory), so `meta/checked.json` keeps size and
    times of intact files, and files unchanged since are not read again.

    Args:
        folder: of the conversion.
        trust_times: do not read files whose size and times are unchanged; False reads every shard.
    """

    def __init__(self, folder: Path, trust_times: bool):
        self.folder, self.trust_times = folder, trust_times
        self._path = folder / "meta" / "checked.json"
        known = read_json(self._path)
        self._known: dict[str, list] = known if isinstance(known, dict) else {}
        self._changed = False

    def is_intact(self, record: ShardRecord) -> bool:
        """Return whether the file of a record is as it was written; logs a warning if not."""
        file = self.folder / "data" / record.file
        try:
            stamp = file_stamp(file)
        except OSError:
            return False
        if stamp[0] != record.size:
            logger.warning("%s: %d bytes; expected %d, so it is converted again", file, stamp[0], record.size)
            return False
        # Hashing takes minutes for large datasets, so a file whose size and times did not change is taken as checked.
        if record.sha256 is None or (self.trust_times and self._known.get(record.file) == [*stamp, record.sha256]):
            return True
        if (seen := sha256_of(file)) != record.sha256:
            logger.warning("%s: SHA-256 %s; expected %s, so it is converted again", file, seen, record.sha256)
            return False
        self.note(record)
        return True

    def note(self, record: ShardRecord) -> None:
        """Remember that the file of a record is intact as it is now."""
        stamp = [*file_stamp(self.folder / "data" / record.file), record.sha256]
        self._changed |= self._known.get(record.file) != stamp
        self._known[record.file] = stamp

    def save(self) -> None:
        """Write the noted files to `meta/checked.json`."""
        if self._changed:
            write_json(self._path, self._known)


def finished_shards(folder: Path, split: str, num_units: int, checks: ShardChecks) -> list[ShardRecord]:
    """Read the records of a split up to the first shard that is missing, damaged or does not continue the previous.

    `num_units` is the number of units of the source; `checks` finds damaged shards.
    """
    records: list[ShardRecord] = []
    while True:
        found = read_json(record_path(folder, split, len(records)))
        if not isinstance(found, dict):
            return records
        try:
            # A record of another version has other fields, which is a TypeError.
            record = ShardRecord(**found)
            # Records may be left of a conversion whose shards had other sizes.
            follows = record.start == (records[-1].stop if records else 0) and record.start < record.stop <= num_units
        except TypeError:
            return records
        if not follows or not checks.is_intact(record):
            return records
        records.append(record)
