"""Options and files as people write them: with - or _, of the wrong kind, without a model or a network."""

import json
import os
import subprocess
import sys

import pytest

from tests.cli.conftest import run

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


def test_options_are_spelled_with_either_mark(models, scans):
    words = ("predict", scans / "chair.ply", "--model", models("classifier"), "--json")
    spelled = [
        run(*words, *options).out for options in (("--top-k", 1, "--up-axis", "z"), ("--top_k", 1, "--up_axis=z"))
    ]
    assert spelled[0] == spelled[1] and len(json.loads(spelled[0])[0]["predictions"]) == 1
    assert "--up-axis" in run("train", "--help").out
    code, _, err = run(*words, "--top_q", 1)
    assert code == 2 and "--top-q" in err and "--top-k" in err


def test_features_are_by_default_those_of_the_packaged_encoder(scans, tmp_path):
    made = run("features", scans / "chair.ply", "--json")
    assert made.code == 0 and "using the bundled encoder of household objects" in made.err
    (row,) = json.loads(made.out)
    many = run("features", scans / "chair.ply", "--output", tmp_path / "a.jsonl", "--resume")
    assert many.code == 0
    assert json.loads((tmp_path / "a.jsonl").read_text())["features"] == pytest.approx(row["features"], abs=1e-5)


def test_a_point_file_is_no_checkpoint(scans, tmp_path):
    code, _, err = run("convert", scans / "chair.ply", "--output", tmp_path / "x.ply")
    assert code == 1 and f"hf-any3d data convert {scans / 'chair.ply'} --to FORMAT" in err
    (tmp_path / "scan.pth").write_bytes((scans / "chair.ply").read_bytes())
    code, _, err = run("convert", tmp_path / "scan.pth", "--output", tmp_path / "x")
    assert code == 1 and "scan.pth: not a PyTorch checkpoint" in err and "ply" in err and " or " not in err


def test_a_push_without_a_network_is_one_line(models):
    command = [sys.executable, "-c", "from hf_any3d_command import main; main()", "push", models("classifier"), "me/x"]
    # A name that is nowhere known, with the variables of a shell.
    environment = {"PATH": os.environ["PATH"], "HF_ENDPOINT": "https://hub.invalid"}
    made = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (1, "error: me/x: nothing was pushed; the Hub did not answer\n")
