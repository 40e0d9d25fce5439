"""Which word is the model, and the page of the answers; others test the commands."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import run
from tests.errors import raises

inputs = importlib.import_module("hf_any3d.cli.inputs")


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
    with pytest.raises(ValueError, match="MODEL is a model; name the files too"):
        inputs.split_model(["MODEL"], None)


@pytest.mark.slow
def test_a_page_marks_answers_where_folders_are_classes_and_names_no_folder_of_the_machine(
    models, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for folder in ("bottle", "chair", "misc"):
        (tmp_path / "scans" / folder).mkdir(parents=True)
        np.save(tmp_path / "scans" / folder / "0.npy", generator.normal(size=(60, 3)))
    code, out, err = run(
        "predict", tmp_path / "scans", "--model", models("classifier"), "--json", "--output", "a.html"
    )
    assert code == 0, err
    text = Path("a.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["title"] == "Predictions of classifier" and str(tmp_path) not in text
    right = 0
    for panel, row in zip(data["panels"], json.loads(out), strict=True):
        best = row["predictions"][0]
        folder = panel["title"].split("/")[0]
        assert panel["score"] == pytest.approx(best["score"]) and best["label"] in panel["note"]
        expected = {True: "right", False: "wrong"}[best["label"] == folder] if folder != "misc" else ""
        assert panel["status"] == expected and panel["note"].startswith({"right": "✓", "wrong": "✗"}.get(expected, ""))
        right += expected == "right"
    assert data["note"] == f"{right} of 2 predictions are correct (true class: name of the folder)"
