"""Which word is the model, and which axis is proposed; others test the commands."""

import importlib

import pytest

from tests.errors import raises

predict, inputs = (importlib.import_module(f"hf_any3d.cli.{name}") for name in ("predict", "inputs"))


def test_the_most_familiar_of_the_other_axes_is_proposed_if_it_is_clearly_so():
    rows = {
        "x": {"error": "bad"},
        "y": {"predictions": [{"label": "chair", "unknown": 0.029}]},
        "z": {"predictions": [{"label": "lamp", "unknown": 0.02}]},
    }
    reason = predict.why_unlike(None, "x", 0.4, lambda cloud, axis: rows[axis])
    assert reason == "if z points up it looks like lamp: try --up-axis z"
    assert "y points up" in predict.why_unlike(None, "z", 0.12, lambda cloud, axis: rows[axis])
    assert predict.why_unlike(None, "z", 0.11, lambda cloud, axis: rows[axis]) is None
    rows["y"]["predictions"][0]["label"] = None
    assert predict.why_unlike(None, "z", 1.0, lambda cloud, axis: rows[axis]) is None
    assert predict.why_unlike(None, "z", 1.0, lambda cloud, axis: {"error": "bad"}) is None


@pytest.mark.parametrize(
    ("files", "model", "found"),
    [
        (["a.ply"], "me/m", ("me/m", ["a.ply"])),
        (["me/m", "a.ply"], None, ("me/m", ["a.ply"])),
        (["MODEL", "a.ply"], None, ("MODEL", ["a.ply"])),
        (["ADAPTER", "a.ply", "b.ply"], None, ("ADAPTER", ["a.ply", "b.ply"])),
        (["me/m"], None, (None, ["me/m"])),
        (["a.ply", "b.ply"], None, (None, ["a.ply", "b.ply"])),
        (["a.PLY", "b.ply"], None, (None, ["a.PLY", "b.ply"])),
        (["scans/*", "b.ply"], None, (None, ["scans/*", "b.ply"])),
        (["scans/[ab]", "b.ply"], None, (None, ["scans/[ab]", "b.ply"])),
        (["scans/a?", "b.ply"], None, (None, ["scans/a?", "b.ply"])),
        (["-", "b.ply"], None, (None, ["-", "b.ply"])),
        (["folder", "b.ply"], None, (None, ["folder", "b.ply"])),
    ],
)
def test_the_first_word_may_be_the_model(files, model, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, file in (("MODEL", "config.json"), ("ADAPTER", "adapter_config.json"), ("folder", "a.ply")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    assert inputs.split_model(files, model) == found
    if found[0] is None:
        with raises(ValueError, naming="--model"):
            inputs.split_model(files, model, "segment")
    with pytest.raises(ValueError, match="MODEL is a model; expected files too"):
        inputs.split_model(["MODEL"], None)
