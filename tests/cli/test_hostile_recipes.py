"""Recipes of strangers are refused at once, by their name, however few bytes stand for however many values."""

import pytest

from tests.cli.test_cli import run

NINE = ", ".join(["*{0}"] * 9)
LETTERS = "abcdefghi"


def doubled(first: str, row: str) -> str:
    """A value, and others of which each names the one before nine times."""
    rows = [f"{name}: &{name} {row % NINE.format(before)}" for before, name in zip(LETTERS, LETTERS[1:], strict=False)]
    return "\n".join([f"a: &a {first}", *rows, "dataset_options: *i"])


RECIPES = {
    "aliases.yaml": doubled("[l, l, l]", "[%s]"),
    "merged.yaml": doubled("{k: 1, l: 2}", "{<<: [%s]}"),
    "in_itself.yaml": "dataset_options: &a {b: *a}",
    "deep.yaml": "dataset_options: " + "{a: " * 400 + "1" + "}" * 400,
    "deep.json": '{"dataset_options": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "long.yaml": "output_dir: " + "x" * 300_000,
    "extends_itself.yaml": "extends: extends_itself.yaml",
    "extends_in_a_circle.yaml": "extends: [other.yaml]",
    "extends_a_number.yaml": "extends: 3",
    "nothing.yaml": "",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe_is_refused_by_its_name(name, tmp_path):
    (tmp_path / "other.yaml").write_text("extends: ./extends_in_a_circle.yaml")
    (tmp_path / name).write_text(RECIPES[name])
    code, out, err = run("train", tmp_path / name)
    assert code == 1 and out == "" and len(err.splitlines()) == 1 and name in err and len(err) < 1000


def test_a_recipe_may_extend_one_file_twice(tmp_path):
    from hf_any3d.training.recipes import read_settings

    (tmp_path / "base.yaml").write_text("dataset_options: {a: 1, b: 2}\nnum_points: 3")
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"extends: base.yaml\ndataset_options: {{b: {name}}}")
    (tmp_path / "both.yaml").write_text("extends: [one.yaml, two.yaml]")
    assert read_settings(tmp_path / "both.yaml") == {"dataset_options": {"a": 1, "b": "two"}, "num_points": 3}
