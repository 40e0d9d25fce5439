"""Damaged E57 files with checksums of their damage, which lead past the first check into the whole reader."""

from pathlib import Path

import numpy as np

from tests.data.files.builders import paged
from tests.data.files.seeds import SEEDS, Seed
from tests.data.files.test_e57 import SCANS
from tests.fuzz.damage import mutate
from tests.fuzz.fuzz_files import FilesOf


def content_of(data: bytes) -> bytes:
    """The pages of a file without their checksums."""
    return b"".join(data[at : at + 1020] for at in range(0, len(data), 1024))


class ChecksummedE57(FilesOf):
    """The content of the pages is damaged, then they get checksums."""

    name, inputs = "checksummed e57", 200

    def prepare(self, folder: Path) -> None:  # noqa: D102
        self.contents = [content_of(data) for data in [*(seed["some.e57"] for seed in SEEDS["e57"]()), SCANS]]
        for content in self.contents:
            self.attempt({"some.e57": paged(content)}, folder)

    def make(self, generator: np.random.Generator, folder: Path) -> Seed:  # noqa: D102
        one, other = (self.contents[int(place)] for place in generator.integers(len(self.contents), size=2))
        return {"some.e57": paged(mutate(one, generator, other))}


TARGETS = [ChecksummedE57()]
