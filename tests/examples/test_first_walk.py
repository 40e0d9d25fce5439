"""The program that times the first steps; its commands run in this process."""

import shutil

import pytest

from hf_any3d.data.files.text import is_prose
from tests import first_walk
from tests.cli.conftest import run
from tests.tiny_encoders import saved_encoder

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")
SMALL = "--points 32 --epochs 1 --batch-size 4 --num_tokens 4 --tokenizer_neighbors 4 --use_cpu --peft none"


def test_the_walk_trains_pushes_and_loads_the_same_model_elsewhere(hub, tmp_path, monkeypatch):
    def command(folder, *words):
        monkeypatch.chdir(folder)
        code, out, err = run(*words)
        assert code == 0, err
        return out

    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    elsewhere.mkdir()
    scan = first_walk.write_scans(here / "scans", count=2)
    assert len(list((here / "scans").glob("*/*.ply"))) == 8 and not is_prose(scan)
    shutil.copy(scan, elsewhere / "scan.ply")
    options = ["--encoder", saved_encoder("bert"), *SMALL.split()]
    steps = list(first_walk.walk(command, here, elsewhere, "me/first-walk", options))
    assert len(steps) == 4 and all(seconds > 0 for _, seconds in steps) and "8 files" in steps[0][0]
    assert "model.safetensors" in hub.files("me/first-walk")
