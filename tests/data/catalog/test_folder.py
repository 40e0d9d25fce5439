import logging

import numpy as np
import pytest
from datasets import Array2D, Value

from hf_any3d.data import load_point_dataset
from tests.errors import raises

TRIANGLES = "OFF\n4 2 0\n0 0 0\n2 0 0\n2 2 0\n0 2 0\n3 0 1 2\n3 0 2 3\n"


def cloud(num_points, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (num_points, 3)).astype(np.float32)


def write(path, num_points=8, seed=0):
    """A cloud or mesh at `path`, in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    points = cloud(num_points, seed)
    if path.suffix == ".npy":
        np.save(path, points)
    elif path.suffix == ".xyz":
        np.savetxt(path, points)
    elif path.suffix == ".off":
        path.write_text(TRIANGLES)
    elif path.suffix == ".ply":
        colors = np.arange(num_points * 3).reshape(-1, 3)
        head = f"ply\nformat ascii 1.0\nelement vertex {num_points}\n"
        head += "".join(f"property float {name}\n" for name in "xyz")
        head += "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
        rows = ("{:.6f} {:.6f} {:.6f} {} {} {}".format(*p, *c) for p, c in zip(points, colors, strict=True))
        path.write_text(head + "end_header\n" + "\n".join(rows) + "\n")
    return points


@pytest.fixture
def scans(tmp_path):
    root = tmp_path / "scans"
    write(root / "mug" / "a.npy", 8)
    write(root / "mug" / "b.xyz", 12, seed=1)
    write(root / "tile" / "c.off")
    return root


def load(root, cache_dir, **options):
    return load_point_dataset("folder", data_dir=root, cache_dir=cache_dir, **options)


def test_files_of_any_format_become_rows_with_the_folder_as_label(scans, cache_dir):
    splits = load(scans, cache_dir)
    rows = splits["train"]
    assert list(splits) == ["train"] and rows.features["label"].names == ["mug", "tile"]
    assert rows.features["points"] == Array2D((None, 3), "float32") and rows.features["file"] == Value("string")
    assert rows["file"][:].tolist() == ["mug/a.npy", "mug/b.xyz", "tile/c.off"]
    assert rows["label"][:].tolist() == [0, 0, 1]
    assert [row["points"].shape for row in rows] == [(8, 3), (12, 3), (2048, 3)]
    np.testing.assert_array_equal(rows[0]["points"], cloud(8))
    np.testing.assert_allclose(rows[1]["points"], cloud(12, seed=1), atol=1e-6)


def test_a_number_of_points_gives_clouds_of_one_size(scans, cache_dir):
    rows = load(scans, cache_dir, num_points=10, split="train")
    assert rows.features["points"] == Array2D((10, 3), "float32")
    assert rows["points"][:].shape == (3, 10, 3)
    # Eight points fill ten places: all of them, and two once more.
    assert len(np.unique(rows[0]["points"], axis=0)) == 8
    assert {tuple(point) for point in rows[0]["points"]} == {tuple(point) for point in cloud(8)}


def test_the_points_drawn_depend_only_on_the_seed_and_the_file(scans, tmp_path, cache_dir):
    def tile(seed, cache):
        return load(scans, str(tmp_path / cache), seed=seed, mesh_points=16).pop("train")[-1]["points"]

    first, other_seed = tile(0, "one"), tile(1, "two")
    write(scans / "jug" / "new.npy")
    np.testing.assert_array_equal(tile(0, "three"), first)
    assert not np.array_equal(first, other_seed)


def test_a_file_without_a_requested_column_is_named(scans, cache_dir):
    with raises(ValueError, naming="a.npy"):
        load(scans, cache_dir, columns=["colors"])


def test_a_class_that_training_lacks_is_named(tmp_path, cache_dir):
    write(tmp_path / "scans" / "train" / "cup" / "a.npy")
    write(tmp_path / "scans" / "test" / "jug" / "b.npy")
    with raises(ValueError, naming="jug"):
        load(tmp_path / "scans", cache_dir)


def test_an_unreadable_file_is_named_or_left_out_with_a_warning(scans, cache_dir, caplog):
    (scans / "mug" / "broken.ply").write_text("this is no ply")
    with raises(ValueError, naming="broken.ply"):
        load(scans, cache_dir)
    with caplog.at_level(logging.WARNING, logger="hf_any3d"):
        rows = load(scans, cache_dir, on_error="skip", split="train")
    assert len(rows) == 3 and "left out" in caplog.text and "broken.ply" in caplog.text


def test_a_folder_without_readable_files_is_an_error(tmp_path, cache_dir):
    (tmp_path / "scans" / "mug").mkdir(parents=True)
    (tmp_path / "scans" / "mug" / "broken.ply").write_text("this is no ply")
    with raises(ValueError, naming="broken.ply"):
        load(tmp_path / "scans", cache_dir, on_error="skip")


def test_a_column_that_no_file_has_is_the_reason_why_none_can_be_used(scans, cache_dir):
    with pytest.raises(ValueError, match="none of the . files of a split can be used; .* has no intensity"):
        load(scans, cache_dir, columns=["intensity"], on_error="skip")


def test_compressed_files_are_named(scans, cache_dir, caplog):
    (scans / "mug" / "more.ply.gz").write_bytes(b"\x1f\x8b")
    (scans / "mug" / "others.ZIP").write_bytes(b"PK")
    with caplog.at_level(logging.WARNING, logger="hf_any3d"):
        load(scans, cache_dir)
    assert "left out mug/more.ply.gz, mug/others.ZIP: compressed, unpack it first" in caplog.text


def test_files_of_unknown_types_are_logged(scans, cache_dir, caplog):
    (scans / "mug" / "a.blend").touch()
    (scans / "mug" / "a.mtl").touch()
    with caplog.at_level(logging.WARNING, logger="hf_any3d"):
        load(scans, cache_dir)
    assert "ignored files of types .blend" in caplog.text and ".mtl" not in caplog.text


@pytest.mark.parametrize(
    "options", [{"on_error": "ignore"}, {"columns": "normals"}, {"columns": ["color"]}, {"data_dir": None}]
)
def test_wrong_options_are_named(options, scans):
    with pytest.raises(ValueError):
        load_point_dataset("folder", **{"data_dir": scans, **options})
