"""Numbers of single trees: how many are right on generated stands and pines, and what they may not depend on."""

from pathlib import Path

import laspy
import numpy as np
import pytest

from hf_any3d.data.generated.stands import KINDS, draw_stand
from hf_any3d_survey.inventory.agreement import compare_trees
from hf_any3d_survey.inventory.crowns import NAMES, SIGMAS, canopy_of, parts_of
from hf_any3d_survey.inventory.likeness import packaged_likeness
from hf_any3d_survey.inventory.trees import EVENNESS, choose_by, number_trees
from tests.turns import by_turns

PLOTS = next((path for up in Path(__file__).parents if (path := up / "shared/data/real/trees").is_dir()), Path("none"))


def stand(kind, seed=1, **settings):
    drawn = draw_stand(kind, seed, **settings)
    tree = drawn.itc > 0
    return drawn.points[tree], drawn.heights[tree], drawn.itc[tree]


@pytest.fixture(scope="module")
def savanna():
    points, heights, truth = stand("savanna", size=50)
    return points, heights, truth, number_trees(points, heights)


def test_most_trees_are_found_in_stands_of_all_kinds():
    found = {}
    for kind in KINDS:
        points, heights, truth = stand(kind)
        found[kind] = compare_trees(truth, number_trees(points, heights).numbers).f1
    assert min(found.values()) >= 0.45, found
    assert np.mean(list(found.values())) >= 0.7, found


@pytest.mark.parametrize(
    "name, floor", [("LPine3", 0.75), ("LPine5", 0.55), ("RPine", 0.4), ("SMaple", 0.45), ("TAspen", 0.75)]
)
def test_numbered_trees_are_found(name, floor):
    if not (PLOTS / f"{name}.laz").is_file():
        pytest.skip("the numbered stands are not here")
    plot = laspy.read(PLOTS / f"{name}.laz")
    tree = np.asarray(plot["VegCls"]) == 2
    xyz = np.asarray(plot.xyz)
    truth = np.asarray(plot["itc_ref"]).astype(np.int64)[tree]
    # The plots are small and flat enough for a plane under the lowest point.
    heights = xyz[tree, 2] - xyz[:, 2].min()
    found = number_trees(xyz[tree], heights, around=xyz)
    assert compare_trees(truth, found.numbers).f1 >= floor


def test_a_plot_cut_out_of_a_closed_stand_is_no_single_tree():
    points, heights, truth = stand("closed broadleaf", size=60)
    is_in = ((points[:, :2] > 20) & (points[:, :2] < 40)).all(axis=1)
    found = number_trees(points[is_in], heights[is_in])
    assert len(found.tops) >= len(np.unique(truth[is_in])) / 2


def test_numbers_count_trees_from_the_highest_down(savanna):
    points, heights, _, found = savanna
    trees = len(found.tops)
    assert found.numbers.dtype == np.int32
    assert found.scores.dtype == np.float32
    np.testing.assert_array_equal(np.unique(found.numbers[found.numbers > 0]), np.arange(1, trees + 1))
    np.testing.assert_array_equal(found.numbers[found.tops], np.arange(1, trees + 1))
    assert found.scores.shape == (trees,)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    highest = [heights[found.numbers == number].max() for number in range(1, trees + 1)]
    np.testing.assert_array_equal(heights[found.tops], highest)
    assert (np.diff(highest) <= 0).all()


def test_the_order_of_points_does_not_matter(savanna):
    points, heights, _, found = savanna
    order = np.random.default_rng(0).permutation(len(points))
    shuffled = number_trees(points[order], heights[order])
    np.testing.assert_array_equal(shuffled.numbers, found.numbers[order])
    np.testing.assert_array_equal(shuffled.scores, found.scores)


def test_places_that_are_far_away_from_the_origin_get_the_same_numbers(savanna):
    points, heights, _, found = savanna
    np.testing.assert_array_equal(number_trees(points + [652_000, 6_861_000, 0], heights).numbers, found.numbers)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_points_are_no_tree(count):
    points = np.random.default_rng(0).random((count, 3))
    found = number_trees(points, np.full(count, 3.0))
    np.testing.assert_array_equal(found.numbers, np.zeros(count))
    assert found.tops.shape == found.scores.shape == (0,)
    assert found.smoothing == 0


def test_points_far_from_each_other_are_no_tree():
    flat = np.stack(np.meshgrid(np.arange(10), np.arange(10)), axis=-1).reshape(-1, 2) * 20.0
    points = np.column_stack([flat, np.full(100, 5.0)])
    assert not number_trees(points, points[:, 2]).numbers.any()


def test_points_of_height_zero_have_a_place():
    points, heights, _ = stand("savanna")
    assert number_trees(points, heights * 0).numbers.shape == heights.shape


def test_a_given_smoothing_holds_for_all_trees(savanna):
    points, heights, _, _ = savanna
    few, many = (number_trees(points, heights, smoothing=meters) for meters in (3.8, 0.2))
    assert few.smoothing == 3.8
    assert len(many.tops) > 3 * len(few.tops)


def test_a_likeness_of_ones_own_is_asked(savanna):
    points, heights, _, _ = savanna
    unlike = number_trees(points, heights, evenness=0, likeness=packaged_likeness()._replace(base=-1000.0))
    assert unlike.scores.max() < number_trees(points, heights).scores.min()


@pytest.mark.parametrize(("kind", "count"), by_turns(["broadleaf", "spruces", "savanna"], [1, 5, 20]))
def test_numbered_trees_choose_what_is_no_worse_than_the_defaults(kind, count):
    points, heights, truth = stand(kind, size=60)
    before = compare_trees(truth, number_trees(points, heights).numbers).f1
    gains = []
    for seed in range(5):
        given = np.random.default_rng(seed).permutation(np.unique(truth))[:count]
        choice = choose_by(points, heights, np.where(np.isin(truth, given), truth, 0))
        found = number_trees(points, heights, smoothing=choice.smoothing, evenness=choice.evenness)
        assert choice.is_default == ((choice.smoothing, choice.evenness) == (None, EVENNESS))
        gains.append(compare_trees(truth, found.numbers).f1 - before)
    assert np.mean(gains) >= -0.01


def test_numbers_of_one_smoothing_choose_it():
    points, heights, _ = stand("broadleaf", size=60)
    own = number_trees(points, heights, smoothing=0.25)
    again = choose_by(points, heights, own.numbers)
    assert again.smoothing is not None and again.smoothing < 0.4
    assert again.agreement > 0.95


def test_each_part_is_in_a_larger_one_that_comes_later():
    points, heights, _ = stand("small conifers")
    canopy = canopy_of(points, heights)
    parts = parts_of(canopy)
    assert parts.numbers.shape == (len(parts.parents), len(NAMES))
    assert np.isfinite(parts.numbers).all()
    has = parts.parents >= 0
    assert (parts.births[parts.parents[has]] == parts.deaths[has]).all()
    assert (parts.births < parts.deaths).all()
    assert (parts.deaths[~has] == len(SIGMAS)).all()
    inside = np.zeros(len(has))
    np.add.at(inside, parts.parents[has], parts.areas[has])
    joined = np.bincount(parts.parents[has], minlength=len(has)) > 0
    np.testing.assert_allclose(inside[joined], parts.areas[joined])


@pytest.mark.parametrize(
    ("points", "heights", "settings", "message"),
    [
        (np.zeros((9, 2)), np.zeros(9), {}, r"points \(9, 2\)"),
        (np.zeros((9, 3)), np.zeros(8), {}, r"heights \(8,\)"),
        (np.full((9, 3), np.nan), np.zeros(9), {}, "finite"),
        (np.zeros((9, 3)), np.zeros(9), {"smoothing": 0.0}, "smoothing=0.0"),
    ],
)
def test_what_cannot_be_numbered_is_refused(points, heights, settings, message):
    with pytest.raises(ValueError, match=message):
        number_trees(points, heights, **settings)


def test_choosing_needs_a_numbered_tree(savanna):
    points, heights, _, _ = savanna
    with pytest.raises(ValueError, match="at least one tree"):
        choose_by(points, heights, np.zeros(len(points), dtype=np.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_generated_stands_are_the_same_again(kind):
    first, second = (draw_stand(kind, 3, size=30) for _ in range(2))
    np.testing.assert_array_equal(first.points, second.points)
    np.testing.assert_array_equal(first.itc, second.itc)
    assert first.itc.max() >= 2
    assert (first.return_numbers <= first.return_counts).all()
