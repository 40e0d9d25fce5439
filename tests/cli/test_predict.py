"""Which word is the model; others test the commands."""

import importlib

import pytest

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
    with pytest.raises(ValueError, match="MODEL is a model; expected files too"):
        inputs.split_model(["MODEL"], None)
