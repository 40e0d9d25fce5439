"""The quickstart, on a small encoder and for a few steps: it compares, draws, saves and answers."""

import pytest
from PIL import Image

from tests.examples.conftest import imported_beside_others


@pytest.fixture(scope="module")
def quickstart():
    with imported_beside_others("quickstart") as program:
        yield program


@pytest.fixture
def run(quickstart, tiny_encoder, tmp_path, monkeypatch, capsys):
    """What a short run prints, and where it wrote."""
    monkeypatch.setattr(quickstart.recipe, "ENCODER", tiny_encoder)
    monkeypatch.setitem(quickstart.recipe.MODEL, "num_layers", None)
    quickstart.main(["--output-dir", str(tmp_path), "--max-steps", "2", "--threads", "1"])
    return capsys.readouterr().out, tmp_path


@pytest.mark.slow
def test_quickstart_compares_draws_saves_and_answers(run):
    printed, folder = run
    for row in ("majority class", "PointNet from scratch", "wrap, pretrained encoder"):
        assert row in printed
    assert "chair.ply" in printed and "Try next" in printed
    with Image.open(folder / "shapes.png") as picture:
        assert picture.width > 800
    stored = {file.name for file in (folder / "model").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "preprocessor_config.json"} <= stored


def test_the_file_that_is_asked_about_is_not_trained_on(quickstart):
    rows = quickstart.load_point_dataset("shapes")["train"]
    assert quickstart.CHAIR_NAME in rows["name"]
    assert quickstart.CHAIR_NAME not in quickstart.without_chair(rows)["name"]


def test_majority_answers_the_most_frequent_class_of_the_training_split(quickstart):
    splits = quickstart.load_point_dataset("shapes")
    row = quickstart.majority(splits)
    share = list(splits["test"]["label"]).count(splits["train"].features["label"].str2int("chair"))
    assert row["accuracy"] == pytest.approx(share / len(splits["test"]))
