"""Damaged real files of every readable kind."""

import warnings
from pathlib import Path

import numpy as np

from hf_any3d.data.files import PointCloudData, PointCloudError, PointCloudFileError, read_point_cloud
from hf_any3d.registry import FORMATS
from tests.data.files.seeds import SEEDS, Seed
from tests.fuzz.damage import mutate
from tests.fuzz.target import Target


def read_file(path: Path) -> object:
    """Read a file of any kind and assert that the result is valid."""
    result = read_point_cloud(path)
    assert_valid(result)
    return result


def assert_valid(cloud: PointCloudData) -> None:
    """Assert that types, shapes and ranges are those that `PointCloudData` promises."""
    for name in ("points", "colors", "normals", "face_colors"):
        values = getattr(cloud, name)
        if values is not None:
            kinds = (np.float32, np.float64) if name == "points" else (np.float32,)
            assert values.dtype in kinds and values.shape[1:] == (3,) and np.isfinite(values).all(), name
            assert "colors" not in name or not values.size or (0 <= values.min() and values.max() <= 1), name
            assert len(values) == (len(cloud.faces) if name == "face_colors" else len(cloud)), name
    assert len(cloud)
    assert cloud.labels is None or (cloud.labels.dtype == np.int64 and cloud.labels.shape == (len(cloud),))
    assert cloud.offset is None or (cloud.offset.shape == (3,) and np.isfinite(cloud.offset).all())
    if cloud.is_mesh:
        assert cloud.faces.dtype == np.int64 and cloud.faces.shape[1:] == (3,)
        assert 0 <= cloud.faces.min() and cloud.faces.max() < len(cloud)
        try:
            assert np.isfinite(cloud.sample_surface(4).points).all()
        except PointCloudError as error:
            assert "area" in str(error)


class FilesOf(Target):
    """Files given as name -> bytes, the one to read first; a refusal names it once in printable text."""

    refusals = (PointCloudFileError,)
    strict_warnings = True
    megabytes = 128  # these files are a few kB

    def attempt(self, case: Seed, folder: Path) -> None:  # noqa: D102
        for name, content in case.items():
            (folder / name).write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            read_file(folder / next(iter(case)))
        # Of splats: the rest after the data, transparent ones, normals, colors, and in one line what is left out.
        assert len(caught) <= 5, "one file warns a few times at most, each time of something else"

    def check_refusal(self, error: BaseException, case: Seed, folder: Path) -> None:  # noqa: D102
        path, text = folder / next(iter(case)), str(error)
        assert text.startswith(f"{path}: ") and text.count(str(path)) == 1
        assert text.isprintable() and len(text) < len(str(path)) + 400


class DamagedFiles(FilesOf):
    """Files of one kind, cut from real ones: bytes flipped, numbers replaced, pieces cut, repeated and spliced."""

    inputs = 200

    def __init__(self, kind: str):
        self.name = f"damaged {kind}"
        self.kind = kind

    def prepare(self, folder: Path) -> None:  # noqa: D102
        self.seeds = SEEDS[self.kind]()
        for number, seed in enumerate(self.seeds):
            (folder / str(number)).mkdir()
            self.attempt(seed, folder / str(number))  # the seed itself must be readable

    def make(self, generator: np.random.Generator, folder: Path) -> Seed:  # noqa: D102
        seed, other = (self.seeds[int(place)] for place in generator.integers(len(self.seeds), size=2))
        names = list(seed)
        hit = names[0] if generator.random() < 0.8 else names[int(generator.integers(len(names)))]
        return {**seed, hit: mutate(seed[hit], generator, other.get(hit, b""))}


class RandomBytes(FilesOf):
    """Random bytes and text with the ending of every kind, mostly after the first bytes of the kind."""

    name = "random bytes"
    inputs = 200

    def prepare(self, folder: Path) -> None:  # noqa: D102
        self.starts = {}
        for make in SEEDS.values():
            for seed in make():
                name, content = next(iter(seed.items()))
                self.starts.setdefault(name, []).append(content)
                if len(seed) == 1:
                    self.attempt(seed, folder)

    def make(self, generator: np.random.Generator, folder: Path) -> Seed:  # noqa: D102
        name = str(generator.choice(sorted(self.starts)))
        start = self.starts[name][int(generator.integers(len(self.starts[name])))]
        kept = int(generator.choice([0, 4, 16, 64, 256]))
        size = int(2 ** generator.uniform(0, 14))
        if generator.random() < 0.5:
            return {name: start[:kept] + generator.bytes(size)}
        letters = np.frombuffer(b"0123456789.eE+-nanif#/\\ \t\n\n   ,;{}[]\"':xyzv", np.uint8)
        return {name: start[:kept] + generator.choice(letters, size).tobytes()}


def tried_endings() -> set[str]:
    """Endings of the files that the targets of this module read."""
    return {next(iter(seed)).partition(".")[2] for make in SEEDS.values() for seed in make()}


assert tried_endings() == set(FORMATS), "every reader has seeds"

TARGETS = [*(DamagedFiles(kind) for kind in SEEDS), RandomBytes()]
