"""Which shards of a conversion are complete."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_any3d.data.benchmarks.atomic import read_json


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
    """

    file: str
    start: int
    stop: int
    size: int
    skipped: list[str]
    statistics: Mapping

    def as_dict(self) -> dict:
        """Give the record as plain values."""
        return asdict(self)


def record_path(folder: Path, split: str, number: int) -> Path:
    """Where the record of a shard lies."""
    return folder / "journal" / f"{split}-{number:05d}.json"


def finished_shards(folder: Path, split: str, num_units: int) -> list[ShardRecord]:
    """Read the records of a split up to the first shard that is missing, damaged or does not follow the one before.

    Args:
        folder: of the conversion.
        split: its name.
        num_units: units of the source.
    """
    records: list[ShardRecord] = []
    while True:
        found = read_json(record_path(folder, split, len(records)))
        try:
            record = ShardRecord(**found)
            size = (folder / "data" / record.file).stat().st_size
        except (TypeError, OSError):
            return records
        follows = record.start == (records[-1].stop if records else 0) and record.start < record.stop <= num_units
        if size != record.size or not follows:
            return records
        records.append(record)
