"""A damaged file of any kind gives sound arrays or one error that names it, in bounded time and memory.

`make fuzz` tries ten thousand inputs of each kind.
"""

import time
import warnings
import zlib
from contextlib import nullcontext

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData, PointCloudError, PointCloudFileError, read_point_cloud
from hf_any3d.data.files.hdf5 import open_hdf5, read_slice
from hf_any3d.data.files.registry import READERS
from hf_any3d.data.files.restricted_pickle import read_pickle
from tests.mutations import TooLong, bounded, mutate, mutations, traced

from .seeds import SEEDS

MUTATIONS = mutations(250)
TRACED = 8


def read_hdf5(path):
    with open_hdf5(path) as arrays:
        for array in arrays.values():
            if array.ndim:
                assert read_slice(array, range(min(len(array), 4)), path).dtype == array.dtype


OTHERS = {"h5": read_hdf5, "pkl": read_pickle}
"""Endings that `read_point_cloud` does not read."""


def assert_sound(cloud):
    for name in ("points", "colors", "normals", "face_colors"):
        values = getattr(cloud, name)
        if values is not None:
            assert values.dtype == np.float32 and values.shape[1:] == (3,) and np.isfinite(values).all(), name
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


def allowed_memory(size):
    """What a file of this many bytes may need. The constant part is one block of LAZ, which is 10 MB."""
    return (12 << 20) + 200 * size


def check(path, begin, peak=lambda: 0):
    """Read a file that may be damaged, and say whether it was refused."""
    begin()
    error = None
    try:
        read = OTHERS.get(path.suffix[1:], read_point_cloud)
        made = read(path)
    except PointCloudFileError as refusal:
        error = refusal
    size = sum(file.stat().st_size for file in path.parent.iterdir())
    assert peak() < allowed_memory(size)
    if error is None:
        if isinstance(made, PointCloudData):
            assert_sound(made)
        return False
    text = str(error)
    assert text.startswith(f"{path}: ") and text.count(str(path)) == 1
    assert text.isprintable() and len(text) < len(str(path)) + 400
    return True


def test_every_reader_is_tried():
    tried = {next(iter(seed)).partition(".")[2] for make in SEEDS.values() for seed in make()}
    assert tried == set(READERS) | set(OTHERS)


@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_file_gives_sound_arrays_or_one_error_that_names_it(name, tmp_path):
    seeds = SEEDS[name]()
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    refused, start = 0, time.process_time()
    with bounded(megabytes=128) as begin:
        for seed in seeds:
            files = write(tmp_path, seed)
            assert not check(files[0], begin), "the seed itself must be read"
        for number in range(MUTATIONS):
            seed, other = (seeds[int(place)] for place in generator.integers(len(seeds), size=2))
            names = list(seed)
            hit = names[0] if generator.random() < 0.8 else names[int(generator.integers(len(names)))]
            damaged = mutate(seed[hit], generator, other.get(hit, b""))
            files = write(tmp_path, {**seed, hit: damaged})
            try:
                # Counting all memory makes reading slow; the bound on address space holds for every input.
                with traced() if number % TRACED == 0 else nullcontext(lambda: 0) as peak:
                    refused += check(files[0], begin, peak)
            except (Exception, TooLong) as error:
                raise AssertionError(f"{name}, input {number}: {hit} is {damaged[:2000]!r}") from error
    seconds = time.process_time() - start
    print(f"{name}: {MUTATIONS} inputs, {refused} refused, {seconds:.1f} s of CPU")
    assert refused > MUTATIONS // 10


def write(folder, seed):
    files = [folder / name for name in seed]
    for file, content in zip(files, seed.values(), strict=True):
        file.write_bytes(content)
    return files


def test_one_file_warns_a_few_times_at_most(tmp_path):
    generator = np.random.default_rng(0)
    for name, make in SEEDS.items():
        seed = make()[0]
        for _ in range(3):
            first = next(iter(seed))
            path = write(tmp_path, {**seed, first: mutate(seed[first], generator)})[0]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    OTHERS.get(path.suffix[1:], read_point_cloud)(path)
                except PointCloudError:
                    pass
            assert len(caught) <= 3, name
