"""Damaged content that is packed again, so that it leads past checksums and decompression into the whole reader."""

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.data.files.seeds import SEEDS, Seed
from tests.fuzz.damage import mutate
from tests.fuzz.fuzz_files import FilesOf


class Repacked(FilesOf):
    """The content of files of one kind is damaged and packed again."""

    inputs = 200

    def __init__(self, kind: str, seeds: list[str], repack: Callable[[bytes, np.random.Generator], bytes]):
        self.name, self.kind, self.names, self.repack = f"repacked {kind}", kind, seeds, repack

    def prepare(self, folder: Path) -> None:  # noqa: D102
        self.files = [data for name in self.names for seed in SEEDS[name]() for data in seed.values()]
        self.attempt({f"some.{self.kind}": self.files[0]}, folder)

    def make(self, generator: np.random.Generator, folder: Path) -> Seed:  # noqa: D102
        data = self.files[int(generator.integers(len(self.files)))]
        return {f"some.{self.kind}": self.repack(data, generator)}


def _gzip(data: bytes, generator: np.random.Generator) -> bytes:
    return gzip.compress(mutate(gzip.decompress(data), generator), compresslevel=1, mtime=0)


def _zip(data: bytes, generator: np.random.Generator) -> bytes:
    """Damage one file of an archive, mostly the model."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        names = archive.namelist()
        hit = names[int(generator.integers(len(names)))] if generator.random() < 0.3 else names[-1]
        for name in names:
            content = archive.read(name)
            made.writestr(name, mutate(content, generator) if name == hit else content)
    return file.getvalue()


TARGETS = [Repacked("spz", [f"spz {version}" for version in (1, 2, 3)], _gzip), Repacked("3mf", ["3mf"], _zip)]
