"""Search by words, files and points: what is found, and that only changed files are encoded again."""

import shutil

import numpy as np
import pytest

from examples import search_shapes
from hf_any3d import PointCloudProcessor
from hf_any3d.data.files import read_point_cloud
from tests.examples.conftest import EXAMPLES
from tests.tiny_text_towers import tiny_zero_shot_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Directory of a tiny model that compares clouds with texts."""
    directory = tmp_path_factory.mktemp("model")
    tiny_zero_shot_model().save_pretrained(directory)
    PointCloudProcessor(num_points=48).save_pretrained(directory)
    return str(directory)


@pytest.fixture
def shapes(tmp_path):
    """A folder of three shapes and a damaged file."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    for number in range(3):
        np.save(folder / f"cloud{number}.npy", np.random.default_rng(number).normal(size=(60, 3)).astype("float32"))
    shutil.copy(EXAMPLES / "data" / "chair.ply", folder)
    (folder / "broken.ply").write_bytes(b"ply\nformat ascii 1.0\n")
    return folder


@pytest.mark.slow
def test_shapes_are_found_by_words_files_and_points(model, shapes, tmp_path, capsys):
    pytest.importorskip("faiss")
    words = ["index", str(shapes), "--model", model, "--output", str(tmp_path / "index"), "--batch-size", "2"]
    search_shapes.main(words)
    assert "4 shapes in" in (printed := capsys.readouterr().out) and "1 files could not be read" in printed
    encoder = search_shapes.Encoder(model)
    points = read_point_cloud(shapes / "cloud1.npy").points
    found = search_shapes.search(tmp_path / "index", ["a chair", str(shapes / "chair.ply"), points], encoder, top_k=4)
    assert [one[0]["file"].rpartition("/")[2] for one in found[1:]] == ["chair.ply", "cloud1.npy"]
    assert found[1][0]["score"] == pytest.approx(1, abs=1e-5)
    names = [one["file"] for one in found[0]]
    expected = encoder.of_words(["a chair"]) @ encoder.of_clouds([read_point_cloud(name) for name in names]).T
    np.testing.assert_allclose([one["score"] for one in found[0]], expected[0], atol=1e-5)
    assert sorted(expected[0], reverse=True) == list(expected[0])
