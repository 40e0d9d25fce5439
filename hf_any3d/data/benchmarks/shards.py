"""One Parquet file of a conversion."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from datasets import Features
from datasets.arrow_writer import ParquetWriter

from hf_any3d.data.benchmarks.checksums import sha256_of
from hf_any3d.data.benchmarks.statistics import SplitStatistics
from hf_any3d.whole_files import not_written, publish, temporary_path

BUFFER_BYTES = 16 << 20
"""Rows are handed to Parquet when they are this large together: what bounds the memory of a conversion."""


class ShardWriter:
    """Write rows to a temporary file that gets its name when it is complete.

    Args:
        path: the file to be.
        features: the columns.

    Raises:
        OSError: the disk is full or cannot be written, in any method; names the shard, and nothing is left of it.
    """

    def __init__(self, path: Path, features: Features):
        self.path = path
        self.features = features
        self.statistics = SplitStatistics()
        self.num_bytes = 0
        self._buffered = 0
        self._temporary = temporary_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer: ParquetWriter | None = None
        self._guarded(self._open)

    def add(self, row: Mapping[str, object]) -> None:
        """Write one checked row."""
        size = sum(_size(value) for value in row.values())
        self.num_bytes += size
        self._buffered += size
        self.statistics.add(row, self.features)
        self._guarded(self._writer.write, dict(row))
        if self._buffered >= BUFFER_BYTES:
            self._guarded(self._writer.write_examples_on_file)
            self._buffered = 0

    def finish(self) -> tuple[int, str]:
        """Complete the file; gives its size in bytes and its SHA-256."""
        self._guarded(self._writer.finalize)
        size, sha256 = self._temporary.stat().st_size, sha256_of(self._temporary)
        self._guarded(publish, self._temporary, self.path)
        return size, sha256

    def discard(self) -> None:
        """Leave nothing behind."""
        try:
            if self._writer is not None:
                self._writer.close()
        except Exception:  # what cannot be closed cannot be kept either
            pass
        self._temporary.unlink(missing_ok=True)

    def _open(self) -> None:
        self._writer = ParquetWriter(features=self.features, path=str(self._temporary))

    def _guarded(self, function, *arguments) -> None:
        try:
            function(*arguments)
        except OSError as error:
            self.discard()
            raise not_written(self.path, error) from error
        except BaseException:
            self.discard()
            raise


def _size(value: object) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return len(value) if isinstance(value, (str, bytes)) else 8
