import numpy as np
import pytest


def _random(generator, count):
    return generator.standard_normal((count, 3))


def _grid(generator, count):
    # Integers: most points are equally far as another one.
    return generator.integers(-2, 3, (count, 3))


def _duplicates(generator, count):
    return generator.standard_normal((max(1, count // 4), 3))[generator.integers(0, max(1, count // 4), count)]


def _same(generator, count):
    return np.full((count, 3), 0.5)


@pytest.fixture(params=[_random, _grid, _duplicates, _same], ids=lambda make: make.__name__.strip("_"))
def make_clouds(request):
    """Function (batch, count, seed) -> (batch, count, 3) float32 clouds of one kind."""

    def make(batch, count, seed=0):
        generator = np.random.default_rng(seed)
        return np.stack([request.param(generator, count) for _ in range(batch)]).astype(np.float32)

    return make
