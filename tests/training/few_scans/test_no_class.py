"""Things of no class: the same ones on every machine, of several kinds, with the given axis up."""

import numpy as np

from hf_any3d.training.few_scans.no_class import KINDS, SOLID, draw_things
from tests.golden import assert_stored


def test_things_are_equal_for_a_seed_and_fill_the_unit_sphere():
    things = draw_things(21, 100)
    assert things.shape == (21, 100, 3) and things.dtype == np.float32
    assert np.array_equal(things, draw_things(21, 100)) and not np.array_equal(things, draw_things(21, 100, seed=1))
    np.testing.assert_allclose(np.linalg.norm(things, axis=-1).max(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(things.mean(axis=1), 0, atol=1e-5)
    # Those of the first places do not depend on how many there are.
    assert np.array_equal(things[:5], draw_things(5, 100))


def test_things_are_those_of_earlier_versions():
    # As many as have all forms of each kind.
    stored = [0.544092, -0.102129, -0.004899, -0.499077, 0.102676, 0.085469, -0.441544]
    kinds = [kind for kind in KINDS if kind != SOLID]
    things = draw_things(19 * len(kinds), 64, kinds=kinds)
    assert_stored([things[number :: len(kinds)] for number in range(len(kinds))], stored)
