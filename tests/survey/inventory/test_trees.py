"""Numbers of single trees: how many are right on generated stands and pines, and what they may not depend on."""

from pathlib import Path

import laspy
import numpy as np
import pytest

from hf_any3d.data.generated.stands import KINDS, draw_stand
from hf_any3d_survey.inventory.agreement import compare_trees
from hf_any3d_survey.inventory.crowns import NAMES, SIGMAS, canopy_of, parts_of
from hf_any3d_survey.inventory.likeness import packaged_likeness
from hf_any3d_survey.inventory.trees import choose_by, number_trees

PLOTS = next((path for up in Path(__file__).parents if (path := up / "shared/data/real/trees").is_dir()), Path("none"))


def stand(kind, seed=1, **settings):
    drawn = draw_stand(kind, seed, **settings)
    tree = drawn.itc > 0
    return drawn.points[tree], drawn.heights[tree], drawn.itc[tree]


@pytest.fixture(scope="module")
def savanna():
    points, heights, truth = stand("savanna", size=50)
    return points, heights, truth, number_trees(points, heights)


@pytest.mark.parametrize(
    ("kind", "floor"),
    [
        ("savanna", 0.75),
        ("mixed conifers", 0.65),
        ("spruces", 0.6),
        ("broadleaf", 0.6),
        ("dense pines", 0.6),
        ("small conifers", 0.75),
        ("plantation", 0.6),
    ],
)
def test_most_trees_of_a_stand_are_found(kind, floor):
    points, heights, truth = stand(kind)
    assert compare_trees(truth, number_trees(points, heights).numbers).f1 >= floor


@pytest.mark.parametrize("name, floor", [("LPine3", 0.75), ("LPine5", 0.6), ("RPine", 0.25)])
def test_numbered_pines_are_found(name, floor):
    if not (PLOTS / f"{name}.laz").is_file():
        pytest.skip("the numbered pines are not here")
    plot = laspy.read(PLOTS / f"{name}.laz")
    tree = np.asarray(plot["VegCls"]) == 2
    points = np.asarray(plot.xyz)[tree]
    truth = np.asarray(plot["itc_ref"]).astype(np.int64)[tree]
    # The plots are small and flat enough for a plane under the lowest point.
    heights = points[:, 2] - np.asarray(plot.z).min()
    assert compare_trees(truth, number_trees(points, heights).numbers).f1 >= floor


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
    assert (unlike.scores == 0).all()


def test_numbered_trees_choose_what_suits_them():
    points, heights, truth = stand("broadleaf", size=60)
    some = np.where(truth <= 20, truth, 0)
    choice = choose_by(points, heights, some)
    chosen = number_trees(points, heights, smoothing=choice.smoothing, evenness=choice.evenness)
    # The chosen is no worse on all trees than the default by more than chance.
    assert (
        compare_trees(truth, chosen.numbers).f1 >= compare_trees(truth, number_trees(points, heights).numbers).f1 - 0.1
    )
    own = number_trees(points, heights, smoothing=0.25)
    again = choose_by(points, heights, own.numbers)
    assert again.smoothing is not None
    assert again.smoothing < 0.4
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
