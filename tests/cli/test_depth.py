"""`hf-any3d data from-depth`: which files belong together, what is passed on, and what is refused."""

import pytest

from hf_any3d.data.files import PointCloudData
from tests.cli.conftest import run

POINTS = [[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the reader of depth images is asked, and which clouds are written; images called bad cannot be read."""
    asked = []

    def read(image, intrinsics, color, **given):
        asked.append((image.name, str(intrinsics), color and str(color), given))
        if image.stem == "bad":
            raise ValueError("bad.png: no\ndepth")
        return PointCloudData(POINTS)

    monkeypatch.setattr("hf_any3d.data.files.rgbd.read_rgbd", read)
    monkeypatch.setattr(
        "hf_any3d.data.files.write_point_cloud", lambda path, cloud: asked.append((str(path), len(cloud)))
    )
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.json", "in/b.json", "in/bad.json", "colors/a.png", "colors/a.jpg", "colors/b.jpeg", "one.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return asked


PLAIN = {"depth_scale": None, "depth_truncation": None}


def depth(*words):
    return run("data", "from-depth", *words)


def test_one_image_is_a_file_or_a_file_of_a_folder(asked, tmp_path):
    for output, path in (("new/out.ply", "new/out.ply"), ("folder", "folder/a.ply"), ("out.OBJ", "out.OBJ")):
        found = depth("a.png", "--intrinsics", "one.json", "--output", output)
        assert (found.code, found.out) == (0, f"{path}: 3 points\n"), found.err
        assert asked[-2:] == [("a.png", "one.json", None, PLAIN), (path, 3)]
    assert (tmp_path / "new").is_dir()
    scaled = ("--depth-scale", 500, "--depth-truncation", 2.5, "--color", "colors/a.png")
    depth("a.png", "--intrinsics", "in", "--output", "out.npz", *scaled)
    numbers = {"depth_scale": 500.0, "depth_truncation": 2.5}
    assert asked[-2:] == [("a.png", "in/a.json", "colors/a.png", numbers), ("out.npz", 3)]


def test_several_images_have_files_of_their_names(asked):
    found = depth("x/a.png", "b.exr", "bad.png", "--intrinsics", "in", "--color", "colors", "--output", "out")
    assert asked == [
        ("a.png", "in/a.json", "colors/a.jpg", PLAIN),
        ("out/a.ply", 3),
        ("b.exr", "in/b.json", "colors/b.jpeg", PLAIN),
        ("out/b.ply", 3),
    ]
    assert (found.code, found.out) == (2, "out/a.ply: 3 points\nout/b.ply: 3 points\n")
    missing = "colors: no bad.jpg or bad.jpeg or bad.png for bad.png"
    assert found.err == f"error: {missing}\nerror: 1 of 3 images could not be used\n"
    found = depth("a.png", "bad.png", "--intrinsics", "in", "--output", "out.v1")
    assert found.code == 2 and found.err.splitlines()[0] == "error: bad.png: no depth"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.png", "b.png", "--output", "out.ply"), "--output: out.ply for 2 images; expected a folder"),
        (
            ("a.png", "b.png", "x/a.exr", "--output", "out"),
            "a.png, x/a.exr: all would be written to out/a.ply; expected images with different names",
        ),
        (("bad.png", "--output", "out.ply"), "bad.png: no depth"),
        (("c.png", "--output", "out.ply"), "in: no c.json for c.png"),
    ],
)
def test_images_that_cannot_be_written_or_read_are_named(words, message, asked):
    found = depth(*words, "--intrinsics", "in")
    assert (found.code, found.out, found.err) == (1, "", f"error: {message}\n")
