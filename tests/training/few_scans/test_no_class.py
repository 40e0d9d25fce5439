"""Things of no class: the same ones on every machine, of several kinds, with the given axis up."""

import numpy as np
import pytest

from hf_any3d.training.few_scans.no_class import KINDS, SOLID, draw_things
from hf_any3d.training.few_scans.solids import FAMILIES, draw_solid
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


def test_every_second_thing_is_a_solid():
    things, solids = draw_things(28, 64), draw_things(28, 64, kinds=[SOLID])
    assert np.array_equal(things[1::2], solids[1::2]) and not np.array_equal(things[::2], solids[::2])


@pytest.mark.parametrize("family", FAMILIES)
def test_solids_of_a_family_have_their_extents_and_no_two_are_alike(family):
    clouds = [draw_solid(np.random.default_rng(number), 500, family) for number in range(8)]
    extents = np.sort([np.ptp(cloud, axis=0) for cloud in clouds], axis=1)  # (solids, 3)
    assert np.isfinite(extents).all() and (extents[:, 2] > 0.3).all()
    shapes = extents / extents[:, 2:]
    assert shapes[:, :2].std() > 0.02
    assert all(len(np.unique(cloud, axis=0)) == 500 for cloud in clouds)


def test_another_axis_up_turns_things_and_mirrors_none():
    things = draw_things(7, 50)
    for axis, up in (("z", 2), ("x", 0)):
        turned = draw_things(7, 50, axis)
        assert np.array_equal(turned[..., up], things[..., 1])
        product = np.linalg.det(np.linalg.lstsq(things[0], turned[0], rcond=None)[0])
        assert product == pytest.approx(1, abs=1e-4)


def test_things_of_a_kind_differ_in_form():
    things = draw_things(len(KINDS) * 12, 200)
    for number in range(len(KINDS)):
        extents = np.sort(np.ptp(things[number :: len(KINDS)], axis=1), axis=-1)
        assert (extents[:, 0] / extents[:, 2]).std() > 0.02
