"""Which shards of a conversion are complete and as they were written."""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from hf_any3d.atomic_files import read_json, write_json
from hf_any3d.data.conversion.reading import read_lines

FILE_NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify_checksums(root: Path, files: Iterable[Path]) -> None:
    """Compare files with the sums in `root/SHA256SUMS`, as `sha256sum` writes it; nothing where there is no such file.

    Args:
        root: the folder; the names in the list are relative to it.
        files: the files that matter now; others in the list are not read.

    Raises:
        ValueError: a line that is none, or a file with another sum; names it.
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
            raise ValueError(f"{file}: SHA-256 {seen}; {FILE_NAME} says {sums[file.resolve()]}, so fetch it again")


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardRecord:
    """What a complete shard holds.

    Attributes:
        file: its name in `data/`.
        start: the first unit of the source in it.
        stop: the unit behind the last one.
        size: bytes of the file, which tell a damaged one.
        skipped: what was left out, in words.
        statistics: of its rows, as `SplitStatistics.as_dict` gives them.
        sha256: of the file; None in conversions of earlier versions, whose shards are known by their size alone.
    """

    file: str
    start: int
    stop: int
    size: int
    skipped: list[str]
    statistics: Mapping
    sha256: str | None = None

    def as_dict(self) -> dict:
        """Give the record as plain values."""
        return asdict(self)


def record_path(folder: Path, split: str, number: int) -> Path:
    """Where the record of a shard lies."""
    return folder / "journal" / f"{split}-{number:05d}.json"


class ShardSums:
    """Tells whether shards are as they were written, by their size and SHA-256.

    To hash a shard costs reading it (0.6 seconds for a gigabyte from memory), so `meta/checked.json` keeps size and
    times of the files that were right, and those that are unchanged since are not read again.

    Args:
        folder: of the conversion.
        trusting: rely on unchanged times; False reads every shard.
    """

    def __init__(self, folder: Path, trusting: bool):
        self.folder, self.trusting = folder, trusting
        known = read_json(self._path)
        self._known: dict[str, list] = known if isinstance(known, dict) else {}
        self._changed = False

    @property
    def _path(self) -> Path:
        return self.folder / "meta" / "checked.json"

    def are_right(self, record: ShardRecord) -> bool:
        """Whether the file of a record is there and as it was written; a warning says what is wrong with it."""
        file = self.folder / "data" / record.file
        try:
            stamp = _stamp(file)
        except OSError:
            return False
        if stamp[0] != record.size:
            logger.warning("%s: %d bytes; expected %d, so it is converted anew", file, stamp[0], record.size)
            return False
        if record.sha256 is None or (self.trusting and self._known.get(record.file) == [*stamp, record.sha256]):
            return True
        if (seen := sha256_of(file)) != record.sha256:
            logger.warning("%s: SHA-256 %s; expected %s, so it is converted anew", file, seen, record.sha256)
            return False
        self.note(record)
        return True

    def note(self, record: ShardRecord) -> None:
        """Remember that the file of a record is right as it is now."""
        stamp = [*_stamp(self.folder / "data" / record.file), record.sha256]
        self._changed |= self._known.get(record.file) != stamp
        self._known[record.file] = stamp

    def save(self) -> None:
        """Keep what was noted."""
        if self._changed:
            write_json(self._path, self._known)


def finished_shards(folder: Path, split: str, num_units: int, sums: ShardSums) -> list[ShardRecord]:
    """Read the records of a split up to the first shard that is missing, damaged or does not follow the one before.

    Args:
        folder: of the conversion.
        split: its name.
        num_units: units of the source.
        sums: tells damaged shards.
    """
    records: list[ShardRecord] = []
    while True:
        found = read_json(record_path(folder, split, len(records)))
        try:
            record = ShardRecord(**found)
            follows = record.start == (records[-1].stop if records else 0) and record.start < record.stop <= num_units
        except TypeError:
            return records
        if not follows or not sums.are_right(record):
            return records
        records.append(record)


def _stamp(file: Path) -> list[int]:
    status = os.stat(file)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
