"""Doubts: kinds of places in which answers are often wrong are told, and others are not."""

import warnings

import numpy as np
import pytest
from transformers import pipeline

import hf_any3d  # noqa: F401  registers the pipeline
from hf_any3d_survey.inventory.doubt import find_tree_doubts
from survey.studies import scenes


@pytest.fixture(scope="module")
def pipe():
    return pipeline("point-cloud-inventory")


def said_of(pipe, cloud):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pipe(cloud)
    return [str(warning.message) for warning in told if "may be wrong" in str(warning.message)]


PLACE = scenes.village(3, 50.0, steepest=0.05)
CHANGES = {
    "as in photogrammetry": scenes.by_photogrammetry,
    "like water": lambda cloud: scenes.with_water(cloud, level=0.0),
    "roofs on steep ground": lambda _: scenes.steepened(PLACE, 0.8),
    "slopes reach": lambda cloud: scenes.steepened(cloud, 1.3),
    "are noise": lambda cloud: scenes.with_noise(cloud, 0.06),
    "m wide": lambda cloud: scenes.rows_of(cloud, np.flatnonzero(cloud.points[:, 0] < 18)),
}


@pytest.mark.parametrize("words", CHANGES)
def test_what_may_be_wrong_is_told_in_one_sentence(pipe, words):
    said = said_of(pipe, CHANGES[words](PLACE))
    assert len(said) == 1 and words in said[0] and "\n" not in said[0]


def test_without_returns_the_reason_is_the_ground_that_is_not_seen(pipe):
    forest = scenes.by_photogrammetry(scenes.steepened(scenes.wood(3, "broadleaf", 50.0), 0.7))
    (said,) = said_of(pipe, forest)
    assert "roofs on steep ground" in said and "ground under trees is not seen" in said
    assert "rock" not in said and "leaf-off" not in said


@pytest.mark.parametrize("cloud", [PLACE, scenes.wood(3, "broadleaf", 50.0), scenes.hedges(3, 50.0)])
def test_usual_places_are_not_doubted(pipe, cloud):
    assert not said_of(pipe, cloud)


def test_a_count_that_depends_on_the_cut_is_that_of_the_trees_given():
    # Squares count the trees around them once more.
    (doubt,) = find_tree_doubts([0.9] * 100, count=300, recount=390)
    assert "100 here, but about 130 with" in doubt.text
    assert not find_tree_doubts([0.9] * 100, count=300, recount=310)
