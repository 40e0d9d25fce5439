"""The search for a recipe: its design, the average of weights, and estimated effects."""

import itertools

import numpy as np
import pytest

from examples import quickstart
from hf_any3d.modeling.any2point.small_data_defaults import LIGHT
from studies import recipe, recipe_report
from tests.errors import raises

FIRST = recipe.ROUNDS[0]


def test_a_run_changes_what_it_names_and_nothing_else():
    base, changed = recipe.settings_of([]), recipe.settings_of(["tokens", "mild"])
    assert changed["model"] == {**base["model"], "num_tokens": 64}
    assert changed["augmentation"] != base["augmentation"]
    assert {**changed, "model": None, "augmentation": None} == {**base, "model": None, "augmentation": None}
    both = recipe.settings_of(["turned", "dropped"])
    assert both == {**base, "more_augmentation": ["rotate:axis=y,limit=0.26", "dropout:max_ratio=0.5"]}


def test_the_quickstart_has_what_was_adopted():
    adopted = recipe.settings_of(recipe.ADOPTED)
    *_, before, last = recipe.RECIPES.values()
    assert recipe.settings_of(before) == adopted | {
        "model": adopted["model"] | {"tokenizer_weights": "generated_shapes"}
    }
    chosen = recipe.settings_of(last)
    assert chosen["augmentation"] != adopted["augmentation"]
    assert chosen["model"] == {**LIGHT, **quickstart.MODEL} and chosen["adapter"] == quickstart.ADAPTER
    assert chosen["training"] == quickstart.TRAINING and chosen["augmentation"] == quickstart.AUGMENTATION
    assert chosen["smoothing"] == quickstart.LABEL_SMOOTHING and recipe.VOTES == quickstart.VOTES


@pytest.mark.parametrize(
    ("search", "seeds"), zip(recipe.ROUNDS, (range(4), range(4, 8), (8, 9), range(12, 16), (16, 17)), strict=True)
)
def test_the_design_separates_changes_from_each_other_from_pairs_and_from_seeds(search, seeds):
    runs, count = recipe.design(search), len(search.factors)
    assert all(changes[: len(search.start)] == search.start for changes, _ in runs)
    signs = np.array([[1 if name in changes else -1 for name in search.factors] for changes, _ in runs])
    assert (signs.T @ signs == len(runs) * np.eye(count)).all()
    for i, j in itertools.combinations(range(count), 2):
        assert not (signs.T @ (signs[:, i] * signs[:, j])).any()
    drawn = np.array([seed for _, seed in runs])
    assert set(drawn) == set(seeds)
    for seed in seeds:
        assert (drawn == seed).sum() == len(runs) / len(seeds) and not signs[drawn == seed].sum(axis=0).any()


def test_effects_are_found_whatever_the_seeds_are_worth():
    runs = recipe.design(FIRST)
    true = {"epochs": 2.0, "rate": -1.0}
    values = np.array([sum(true.get(name, 0) for name in changes) + 10.0 * seed**2 for changes, seed in runs])
    found = recipe_report.effects(values, runs, FIRST.factors)
    assert {name: round(effect, 9) for name, (effect, _) in found.items()} == {name: 0 for name in found} | true
    noise = np.random.default_rng(0).normal(size=16)
    assert found["gate"][1] < 1e-9 < recipe_report.effects(values + noise, runs, FIRST.factors)["gate"][1]
    with raises(ValueError, naming="do not separate"):
        recipe_report.effects(values[:8], runs[:8], FIRST.factors)
