"""Write rows of clouds as Parquet that `datasets` and Ray open, in parts that an interruption does not undo."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hf_any3d.data.feature import local_path
from hf_any3d.data.files.input_files import InputFile
from hf_any3d.data.options import at_least
from hf_any3d.data.tables.file_conversion import rows_at_a_time
from hf_any3d.many_files.executors import EXECUTORS, Workers
from hf_any3d.many_files.rows import CloudRows
from hf_any3d.many_files.runs import Done, run
from hf_any3d.many_files.work import OPEN, Shard, cut
from hf_any3d.model_card.run_report import peak_memory
from hf_any3d.utils.atomic_files import atomic_write, claim, remove_temporaries
from hf_any3d.utils.messages import as_text
from hf_any3d.utils.progress import progress_bar

if TYPE_CHECKING:
    from datasets import Features
    from datasets.arrow_writer import ParquetWriter

MANIFEST = ".manifest.json"
"""Settings of the rows of a folder; hidden, so that it does not count as data."""


@dataclass(frozen=True)
class Written:
    """Summary of a folder after a run.

    Attributes:
        folder: The folder.
        rows: Its rows, one for each file.
        before: Those of them that earlier runs wrote.
        failed: Those with an error.
        processes: The processes of this run, as host:id.
    """

    folder: str
    rows: int
    before: int
    failed: int
    processes: tuple[str, ...]


def to_parquet(
    rows: CloudRows,
    folder: str | os.PathLike,
    *,
    engine: str = "ray",
    workers: int | None = None,
    cpus: float = 1,
    gpus: float = 0,
    files_per_part: int = 256,
    retry: bool = False,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Written:
    """Compute rows in processes of this machine or of a Ray cluster, and write them; the same call resumes a run.

    The folder gets `part-00000.parquet`, …, each written whole or not at all, with one row for each of
    `files_per_part` files. A process of Ray that dies is replaced, and its part is done again. The next call skips all
    files that have a row, and computes those of new and of changed files.

    `datasets.load_dataset("parquet", data_files=f"{folder}/*.parquet")` and `ray.data.read_parquet(folder)` open it.

    Args:
        rows: What to write.
        folder: A folder that all machines see, or a URL of fsspec.
        engine: "ray" for a cluster of Ray, by default a new one of all CPUs of this machine; "local" for this process,
            or `workers` others of this machine, without Ray.
        workers: Processes; with Ray None for one on each CPU, or GPU where `gpus` are given.
        cpus: CPUs of each, the threads of its model; this process keeps its own number.
        gpus: GPUs of each; 0.5 lets two processes of Ray share one.
        files_per_part: Files in a part, which is what a process that dies loses.
        retry: Read files again that failed before.
        progress: Called with each part that is finished, a dict of its name `part`, `rows`, `failed`, the `process`
            as host:id, seconds `wall` and `cpu`, and the peak of the process's `memory` in bytes
            where the system reports it.

    Raises:
        ValueError: The folder holds rows of other settings, or other files.
        BlockingIOError: Another process writes there.
        ChildProcessError: A process of the local engine was killed; the same call continues the run.
    """
    at_least(1, workers=workers, files_per_part=files_per_part)
    executor = EXECUTORS[engine](Workers(workers, cpus, gpus))
    parts = Parts(folder, rows.settings)
    processes: set[str] = set()

    def execute(left: list[str]) -> Iterator[dict[str, Any]]:
        # New parts follow those of earlier calls, whose numbers stay.
        shards = cut(left, files_per_part, first=1 + max(parts.numbers(), default=-1))
        # Without the names of all files, which each process would get.
        writer = PartWriter(replace(rows, files=()), str(parts.local or folder), "cuda" if gpus else "cpu")
        with progress_bar(total=len(left), unit=" files", desc=str(folder)) as bar:
            for part in executor.run(writer, shards):
                processes.add(part["process"])
                bar.update(part["rows"])
                if progress is not None:
                    progress(part)
                yield part

    before, done = run(parts, rows.files, lambda name: InputFile(name).stamp(), execute, retry=retry)
    return Written(str(folder), done.rows, before, done.failed, tuple(sorted(processes)))


class Parts:
    """The parts in a folder of this machine or of a bucket, an output of `runs.run`.

    A hidden file beside each part has the stamps of its files. Rows of other settings are refused.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any]):
        from fsspec.core import url_to_fs

        self.folder = os.fspath(folder)
        self.settings = {"format": 2, **settings}
        local = local_path(self.folder)
        # Processes may start in another folder.
        self.local = None if local is None else Path(os.path.abspath(local))
        self.system, self.root = url_to_fs(self.folder if self.local is None else str(self.local))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock a folder of this machine, remove what killed processes left, and note the settings."""
        # Buckets have no locks.
        with nullcontext() if self.local is None else claim(self.local / ".lock", self.local):
            if self.local is not None:
                remove_temporaries(self.local)
            path = f"{self.root}/{MANIFEST}"
            manifest = json.loads(self.system.cat_file(path)) if self.system.exists(path) else None
            if manifest is None:
                self.system.makedirs(self.root, exist_ok=True)
                # Other files in the folder would be read as rows of this dataset.
                names = map(os.path.basename, self.system.ls(self.root, detail=False))
                if any(not name.startswith(".") for name in names):
                    raise ValueError(f"{self.folder} has other files; give a new folder")
                self.system.pipe_file(path, json.dumps(self.settings, indent=2).encode())
            elif manifest != self.settings:
                name = next(name for name in self.settings if manifest.get(name) != self.settings[name])
                raise ValueError(
                    f"{self.folder}: its rows have other settings, {name} {manifest.get(name)}; expected "
                    f"{self.settings[name]}, or another folder"
                )
            yield

    def resume(self, stamps: Mapping[str, str], retry: bool) -> set[str]:
        """Write parts again without the rows of files that have changed, and return the files of the others."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        files: set[str] = set()
        names = {as_text(name): name for name in stamps}
        # A list, since the loop writes parts anew.
        for name, table in list(self._columns("path", "error")):
            stored = json.loads(self.system.cat_file(self.stamps_of(os.path.basename(name))))
            paths = [names.get(path, path) for path in map(str, table["path"].to_pylist())]
            rows = list(zip(paths, table["error"].to_pylist(), strict=True))
            # Files that this run is not asked for keep their rows.
            kept = []
            for path, error in rows:
                stamp = stored.get(path)
                kept.append(stamps.get(path, stamp) == stamp and not (retry and error))
            files |= {path for (path, _), is_kept in zip(rows, kept, strict=True) if is_kept}
            if not all(kept):
                with self.system.open(name, "rb") as file:
                    # The two columns told which rows go; only parts that lose some are read whole.
                    complete = parquet.read_table(file)
                with self.writing(os.path.basename(name)) as unfinished:
                    parquet.write_table(complete.filter(pa.array(kept)), unfinished)
        return files

    def add(self, result: Mapping[str, Any], stamps: Mapping[str, str]) -> None:
        """Do nothing: the process has written the part."""

    def finish(self, files: Iterable[str]) -> Done:
        """Count the rows, and check that each file has one."""
        counts = Counter()
        failed = 0
        # Two columns only, since points and features of all parts may not fit into memory.
        for _, table in self._columns("path", "error"):
            counts.update(table["path"].to_pylist())
            failed += len(table) - table["error"].null_count
        # Rows of files that earlier calls were asked for count too.
        if wrong := [name for name in {*map(as_text, files), *counts} if counts[name] != 1]:
            raise RuntimeError(f"{self.folder}: {len(wrong)} files have no row or several, such as {min(wrong)}")
        return Done(len(counts), failed)

    def names(self) -> list[str]:
        """List the parts in the file system."""
        # fsspec remembers listings, while other processes add parts.
        self.system.invalidate_cache()
        return sorted(self.system.glob(f"{self.root}/part-*.parquet"))

    def numbers(self) -> list[int]:
        """Return the numbers of the parts."""
        return [int(match[1]) for name in self.names() if (match := re.search(r"part-(\d+)[^/]*$", name))]

    def stamps_of(self, part: str) -> str:
        """Return the file with the stamps of the files of a part."""
        return f"{self.root}/.{part}.stamps.json"

    @contextmanager
    def writing(self, name: str) -> Iterator[Path | BinaryIO]:
        """Yield a path or an open file for what gets its name in the folder when it is complete."""
        if self.local is not None:
            with atomic_write(self.local / name) as unfinished:
                yield unfinished
            return
        # Without a name, so that a process that is killed leaves nothing.
        with tempfile.TemporaryFile() as file:
            # A second handle, since pyarrow closes what it has written to.
            with open(os.dup(file.fileno()), "wb") as written:
                yield written
            file.seek(0)
            with self.system.open(f"{self.root}/{name}", "wb") as target:
                shutil.copyfileobj(file, target)

    def _columns(self, *columns: str) -> Iterator[tuple[str, Any]]:
        import pyarrow.parquet as parquet

        for name in self.names():
            with self.system.open(name, "rb") as file:
                yield name, parquet.read_table(file, columns=list(columns))


def parquet_writer(target: Path | BinaryIO, features: Features) -> ParquetWriter:
    """Return a writer of rows with some columns to a path or an open file; a context manager."""
    from datasets.arrow_writer import ParquetWriter

    place: dict[str, Any] = {"path": str(target)} if isinstance(target, Path) else {"stream": target}
    return ParquetWriter(features=features, writer_batch_size=rows_at_a_time(features), **place)


@dataclass(frozen=True)
class PartWriter:
    """The work of one process: computing and writing parts."""

    rows: CloudRows
    folder: str
    device: str = "cpu"

    def open(self) -> Callable[[Shard], list[dict[str, Any]]]:
        """Open the models and return the function that writes a part and describes it."""
        compute = self.rows.open(self.device)
        return lambda shard: [self._write(shard, compute(shard.files))]

    def given_up(self, shard: Shard, error: str) -> list[dict[str, Any]]:
        """Write a part with the error of a file that ends processes; the next call does it again."""
        # All other columns are None, as of any bad file.
        row = dict.fromkeys(self.rows.features) | {"path": as_text(shard.files[0]), "error": error}
        return [self._write(shard, [row], is_open=True)]

    def _write(self, shard: Shard, rows: Iterable[Mapping[str, Any]], is_open: bool = False) -> dict[str, Any]:
        name = f"part-{shard.name}.parquet"
        failed = 0
        parts = Parts(self.folder, self.rows.settings)
        # Rows are computed while they are written, so the time is that of both.
        wall = time.perf_counter()
        cpu = time.process_time()
        # Before the files are read: one that changes in between has an outdated stamp and is read again. Before the
        # part, too, whose existence makes the stamps valid.
        stamps = {file: OPEN if is_open else InputFile(file).stamp() for file in shard.files}
        parts.system.pipe_file(parts.stamps_of(name), json.dumps(stamps).encode())
        with parts.writing(name) as unfinished, parquet_writer(unfinished, self.rows.features) as written:
            for row in rows:
                written.write(dict(row))
                failed += row["error"] is not None
            written.finalize()
        return {
            "part": name,
            "rows": len(shard.files),
            "failed": failed,
            "process": f"{socket.gethostname()}:{os.getpid()}",
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "memory": peak_memory().get("process"),
        }
