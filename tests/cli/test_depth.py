"""`hf-any3d data from-depth`: which files belong together, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_any3d import read_point_cloud
from tests.cli.conftest import run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with depth images `a.png`, `b.png` and a damaged `bad.png`, colors, and intrinsics."""
    monkeypatch.chdir(tmp_path)
    for name in ("in", "colors"):
        (tmp_path / name).mkdir()
    for number, name in enumerate("ab"):
        Image.fromarray(np.full((6, 8), 1000 + number, np.uint16)).save(f"{name}.png")
        Image.fromarray(np.full((6, 8, 3), 255, np.uint8)).save(f"colors/{name}.png")
    (tmp_path / "bad.png").write_bytes(b"none")
    for name in ("in/a", "in/b", "in/bad", "one"):
        camera = {"K": [6, 0, 4, 0, 6, 3, 0, 0, 1], "width": 8, "height": 6}
        (tmp_path / f"{name}.json").write_text(json.dumps(camera))
    return tmp_path


def depth(*words):
    return run("data", "from-depth", *words)


def test_one_image_is_a_file_or_a_file_of_a_folder(place):
    for output, path in (("new/out.ply", "new/out.ply"), ("folder", "folder/a.ply"), ("out.OBJ", "out.OBJ")):
        made = depth("a.png", "--intrinsics", "one.json", "--output", output)
        assert (made.code, made.out) == (0, f"{path}: 48 points\n"), made.err
    (place / "out.v2").mkdir()
    assert depth("a.png", "--intrinsics", "one.json", "--output", "out.v2").out.startswith("out.v2/a.ply")
    upright = read_point_cloud(place / "folder/a.ply").points
    assert upright[:, 2] == pytest.approx(-1.0) and upright[0, 1] > 0 > upright[-1, 1]
    scaled = ("--depth-scale", 500, "--depth-truncation", 2.5, "--color", "colors/a.png")
    assert depth("a.png", "--intrinsics", "in", "--output", "out.npz", *scaled).code == 0
    cloud = read_point_cloud(place / "out.npz")
    assert cloud.points[:, 2] == pytest.approx(-2.0) and cloud.colors == pytest.approx(1.0)


def test_several_images_have_files_of_their_names(place):
    made = depth("a.png", "b.png", "bad.png", "--intrinsics", "in", "--color", "colors", "--output", "out")
    assert (made.code, made.out) == (2, "out/a.ply: 48 points\nout/b.ply: 48 points\n")
    assert made.err.startswith("error: bad.png: ") and "1 of 3 images could not be used" in made.err
    assert depth("a.png", "b.png", "--intrinsics", "in", "--output", "out.v1").out.startswith("out.v1/a.ply")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.png", "b.png", "--output", "out.ply"), "--output: out.ply has type '.ply'; expected one of a folder"),
        (("a.png", "--output", "out.xyz"), "--output: out.xyz has type '.xyz'"),
        (("a.png", "colors/a.png", "--output", "out"), "a.png, colors/a.png: all would be written to out/a.ply"),
        (("bad.png", "--output", "out.ply"), "bad.png"),
        (("gone.png", "--output", "out.ply"), "gone.png: no depth image"),
        (("in", "--output", "out"), "in: no depth image"),
    ],
)
def test_images_that_cannot_be_written_or_read_are_named(words, message, place):
    made = depth(*words, "--intrinsics", "in")
    assert (made.code, made.out) == (1, "") and message in made.err and made.err.count("\n") == 1
