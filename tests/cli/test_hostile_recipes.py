"""Recipes of strangers are refused at once, by their name, with limits that small recipes exceed."""

import pytest

from hf_any3d.training import recipes
from tests.cli.test_cli import run

RECIPES = {
    "aliases.yaml": "a: &a [1, 2, 3]\ndataset_options: [*a, *a, *a, *a]",
    "merged.yaml": "a: &a {k: 1, l: 2}\ndataset_options: {<<: [*a, *a, *a, *a]}",
    "in_itself.yaml": "dataset_options: &a {b: *a}",
    "many.json": '{"dataset_options": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]}',
    "deep.yaml": "dataset_options: {a: {b: {c: {d: {e: 1}}}}}",
    "deep.json": '{"dataset_options": [[[[[1]]]]]}',
    "long.yaml": "output_dir: " + "x" * 300_000,
    "extends_itself.yaml": "extends: extends_itself.yaml",
    "extends_in_a_circle.yaml": "extends: [other.yaml]",
    "extends_a_number.yaml": "extends: 3",
    "nothing.yaml": "",
}
EXTENT = {"aliases.yaml", "merged.yaml", "in_itself.yaml", "many.json", "deep.yaml", "deep.json"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe_is_refused_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "_MOST_VALUES", 15)
    monkeypatch.setattr(recipes, "_DEEPEST", 5)
    (tmp_path / "other.yaml").write_text("extends: ./extends_in_a_circle.yaml")
    (tmp_path / name).write_text(RECIPES[name])
    code, out, err = run("train", tmp_path / name)
    assert code == 1 and out == "" and len(err.splitlines()) == 1 and name in err and len(err) < 1000
    assert ("more than 15 values, or lists more than 5 deep" in err) == (name in EXTENT), err


def test_brackets_beyond_the_recursion_of_json_are_refused_by_the_name_of_the_file(tmp_path):
    (tmp_path / "deep.json").write_text('{"dataset_options": ' + "[" * 3000 + "]" * 3000 + "}")
    with pytest.raises(ValueError, match="deep.json: expected names and values of arguments"):
        recipes.read_settings(tmp_path / "deep.json")


def test_a_recipe_may_extend_one_file_twice(tmp_path):
    (tmp_path / "base.yaml").write_text("dataset_options: {a: 1, b: 2}\nnum_points: 3")
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"extends: base.yaml\ndataset_options: {{b: {name}}}")
    (tmp_path / "both.yaml").write_text("extends: [one.yaml, two.yaml]")
    assert recipes.read_settings(tmp_path / "both.yaml") == {"dataset_options": {"a": 1, "b": "two"}, "num_points": 3}
