"""Tests of inputs of the commands: files, folders, globs, standard input; left out and reported ones."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer

from hf_any3d.cli.inputs import Inputs, LeftOutFiles, find_inputs
from hf_any3d.data.files.input_files import InputFile
from hf_any3d.data.files.text import is_prose
from tests.cli.conftest import FILES, run

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

BAD = "bad.ply: has 128 bytes for element 'vertex'"


def names(*given):
    return [file.name for file in find_inputs([str(word) for word in given]).files]


@pytest.mark.slow
def test_a_folder_continues_after_bad_files_and_ends_with_a_summary(models, scans):
    code, out, err = run("predict", scans, "--model", models("classifier"), "--batch-size", 3)
    assert code == 2
    assert [line.split()[0].rpartition("scans/")[2] for line in out.splitlines()] == [
        "chair.ply",
        "holes.npy",
        "inner/lamp.STL",
    ]
    lines = err.splitlines()
    assert lines[-1] == f"error: 1 of 4 files could not be used: {scans / 'bad.ply'}"
    assert sum(BAD in line for line in lines) == 1 and "Traceback" not in err


@pytest.mark.slow
def test_invalid_points_are_left_out_with_a_warning_that_counts_them(models, scans):
    code, out, err = run("predict", scans / "holes.npy", "--model", models("classifier"), "--json")
    (row,) = json.loads(out)
    (text,) = row["warnings"]
    assert code == 0 and err == f"warning: {text}\n" and len(row["predictions"]) == 3
    assert text.startswith(f"{scans / 'holes.npy'}: 2 of 100 points have NaN or infinite coordinates")


@pytest.mark.slow
def test_a_single_bad_file_is_an_error_with_code_1(models, scans):
    code, out, err = run("predict", scans / "bad.ply", "--model", models("classifier"), "--json")
    assert code == 1 and out == "" and BAD in err and err.count("\n") == 1


def test_prose_is_no_cloud(scans, tmp_path):
    assert "notes.txt" not in " ".join(names(scans))
    numbers = {"rows.txt": "1 2 3\n4 5 6\n", "named.csv": "x,y,z\n1,2,3\n", "commented.xyz": "# a scan\n1 2 3\n"}
    words = {"letter.txt": "Dear reader,\n3 chairs are 4 m away.\n", "labels.csv": "file,label\na.ply,chair\n"}
    for name, text in (numbers | words).items():
        (tmp_path / name).write_text(text)
    assert [name for name in numbers if is_prose(tmp_path / name)] == []
    assert [name for name in words if is_prose(tmp_path / name)] == list(words)


@pytest.mark.slow
def test_text_that_is_left_out_of_a_folder_is_named(models, scans):
    assert "left out notes.txt: text without points" in run("data", "check", scans).err


def test_prose_that_is_named_is_an_error(scans):
    code, _, err = run("data", "check", scans / "notes.txt")
    assert code == 2 and "notes.txt: line 1 is 'These are scans" in err


def test_hidden_files_and_metadata_are_left_out(tmp_path):
    for name in ("a.ply", "._a.ply"):
        shutil.copy(FILES / "chair.ply", tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,label\na.ply,chair\n")
    assert names(tmp_path) == [str(tmp_path / "a.ply")]


def test_globs_are_expanded(scans):
    assert names(scans / "*.npy") == [str(scans / "holes.npy")]
    assert names(scans / "**" / "*.STL") == [str(scans / "inner" / "lamp.STL")]
    code, _, err = run("data", "check", scans / "*.laz")
    assert code == 1 and err == f"error: {scans / '*.laz'}: no such file or folder\n"


def test_a_missing_file_suggests_a_similar_name(scans):
    code, _, err = run("data", "check", scans / "chiar.ply")
    hint = f"did you mean {scans / 'chair.ply'}?"
    assert code == 1 and err == f"error: {scans / 'chiar.ply'}: no such file or folder; {hint}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chair.ply", "chair.xyz", "lamp.stl", "chair.npz"])
def test_standard_input_is_a_cloud_of_a_detected_type(models, name):
    model = models("classifier")
    code, out, _ = run("predict", "-", "--model", model, "--json", stdin=(FILES / name).read_bytes())
    (row,) = json.loads(out)
    (expected,) = json.loads(run("predict", FILES / name, "--model", model, "--json").out)
    assert code == 0 and row["file"] == "<stdin>" and row["predictions"] == expected["predictions"]


def test_standard_input_may_list_files(scans):
    code, out, _ = run("data", "check", "-", "--csv", stdin=f"{scans / 'chair.ply'}\n{scans / 'bad.ply'}\n")
    assert code == 2 and [line.split(",")[0] for line in out.splitlines()[1:]] == [
        str(scans / "chair.ply"),
        str(scans / "bad.ply"),
    ]


def test_empty_standard_input_is_an_error():
    assert "the file is empty" in run("data", "check", "-", stdin=b"").err


@pytest.mark.slow
def test_a_cloud_that_the_model_cannot_use_does_not_stop_the_others(models, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    shutil.copy(FILES / "chair.ply", tmp_path / "b.ply")
    code, out, err = run("predict", tmp_path, "--model", models("classifier"), "--json")
    small, good = json.loads(out)
    assert code == 2 and "a.npy: 2 points; expected at least" in small["error"] and len(good["predictions"]) == 3


@pytest.mark.parametrize(
    ("given", "places"),
    [
        (["a/x.ply", "a/y.ply"], ["x", "y"]),
        (["a/x.ply", "a/in/y.v2.ply"], ["x", "in/y.v2"]),
        (["a/x.ply", "a/x.obj"], ["x", "x.obj"]),
        (["<stdin>"], ["stdin"]),
    ],
)
def test_results_have_places_as_their_files_below_the_folder_that_all_share(given, places):
    inputs = Inputs([InputFile(name) for name in given], True)
    assert inputs.places() == dict(zip(given, map(Path, places), strict=True))


def test_captions_have_the_folders_that_tell_files_apart():
    files = ["scans/cup/0.npy", "scans/pen/0.npy"]
    assert list(Inputs([InputFile(name) for name in files], True).titles().values()) == ["cup/0.npy", "pen/0.npy"]


def test_several_words_a_folder_or_a_glob_are_many(scans, tmp_path):
    chair, lone = str(scans / "chair.ply"), tmp_path / "lone"
    lone.mkdir()
    shutil.copy(chair, lone / "a.ply")
    for words, many in (([chair], False), ([chair, chair], True), ([lone], True), ([lone / "*.ply"], True)):
        found = find_inputs(words)
        assert found.are_many is many and len(found) == len(words)
    assert names(scans / "h*.npy", chair) == [str(scans / "holes.npy"), chair]


def test_files_that_the_loader_leaves_out_are_counted_once(capsys):
    logger = logging.getLogger("hf_any3d.data.catalog.folder")
    before = logger.propagate
    with LeftOutFiles() as left_out:
        assert not logger.propagate
        for _ in range(2):  # a command may load its data twice
            logger.warning("%s is damaged", "a.ply")
            logger.warning("left out", extra={"left_out": ["a.ply", "b.ply"], "num_files": 7})
        logger.warning("left out", extra={"left_out": ["b.ply"], "num_files": 2})
    assert logger.propagate is before and left_out not in logger.handlers
    assert capsys.readouterr().err.startswith("warning: a.ply is damaged\n")
    with pytest.raises(typer.Exit):
        left_out.finish()
    assert capsys.readouterr().err == "error: 2 of 7 files could not be used: a.ply, b.ply\n"


def test_standard_input_has_the_type_that_is_given_and_names_in_any_bytes(scans):
    given = run("data", "check", "-", "--json", stdin=b"1 2 3\n4 5 6\n7 8 9\n").out
    assert json.loads(given)[0]["points"] == 3
    odd = os.fsencode(scans) + b"/\xff.npy"
    shutil.copy(scans / "holes.npy", odd)
    found = run("data", "check", "-", "--json", stdin=os.fsencode(scans / "chair.ply") + b"\n\n " + odd + b"\n")
    assert found.code == 0 and len(json.loads(found.out)) == 2
