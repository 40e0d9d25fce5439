"""The PointCloud feature: its inputs, outputs and storage."""

import json
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, Features

from hf_any3d.data import PointCloud, PointCloudCollator, embed_files, files_to_points
from hf_any3d.data.files import PointCloudData, point_cloud_bytes, read_point_cloud
from tests.data.clouds import FILES, assert_same, full_cloud, points
from tests.data.files.builders import SQUARE, TRIANGLES, gltf_square
from tests.errors import raises

needs_mesh = pytest.mark.skipif(not hasattr(datasets, "Mesh"), reason="datasets has Mesh from 5.0 on")


def rows_of(*values, feature=None):
    return Dataset.from_dict({"cloud": list(values)}, features=Features({"cloud": feature or PointCloud()}))


READABLE = sorted(path.name for path in FILES.iterdir() if path.suffix not in (".md", ".mtl"))


@pytest.mark.slow
@pytest.mark.parametrize("name", READABLE)
def test_every_readable_file_decodes_like_its_reader_as_path_and_as_bytes(name):
    path = FILES / name
    by_path, by_bytes = rows_of(str(path), {"path": name, "bytes": path.read_bytes()})["cloud"]
    expected = read_point_cloud(path)
    assert_same(by_path, expected)
    assert_same(rows_of(path.as_uri())[0]["cloud"], expected)
    if path.suffix != ".obj":  # bytes have no material file
        assert_same(by_bytes, expected)


def test_further_columns_of_an_array_are_read_as_in_a_file(tmp_path):
    array = np.concatenate([points(), full_cloud().normals], axis=1)
    np.save(tmp_path / "a.npy", array)
    of_array, of_file = rows_of(array, tmp_path / "a.npy")["cloud"]
    np.testing.assert_array_equal(of_array["normals"], full_cloud().normals)
    assert_same(of_array, PointCloudData(**of_file))


def test_npz_keeps_every_number_and_ply_colors_in_eight_bits():
    cloud = PointCloudData(points(), colors=np.full((8, 3), 0.123))
    in_ply, in_npz = (rows_of(cloud, feature=PointCloud(format=form))[0]["cloud"] for form in ("ply", "npz"))
    assert_same(in_npz, cloud)
    np.testing.assert_array_equal(in_ply["points"], cloud.points)
    np.testing.assert_allclose(in_ply["colors"], 31 / 255, atol=1e-7)


@pytest.mark.parametrize(
    "value",
    [
        "chair.docx",
        "chair",
        b"v 0 0 0\n",
        {"bytes": None, "path": None},
        {},
        3,
        points()[:, :2],
        points()[:0],
        np.full((2, 3), np.nan),
        {"points": np.zeros((4, 6))},
        {"points": points(), "labels": [1, 2]},
    ],
)
def test_values_that_are_not_clouds_are_refused_when_stored(value):
    with pytest.raises((TypeError, ValueError)):
        PointCloud().encode_example(value)


def test_other_formats_are_named():
    with raises(ValueError, naming="'obj'; expected one of ply"):
        PointCloud(format="obj")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "gone.ply", "gone.ply: no such file"),
        (lambda folder: {"path": "cut.ply", "bytes": point_cloud_bytes(full_cloud())[:-9]}, "cut.ply: "),
        (lambda folder: {"path": "none.off", "bytes": b"OFX"}, "none.off: "),
        (lambda folder: b"ply\nformat nothing", "<18 bytes>: "),
        (lambda folder: f"file://{folder}/gone.ply", "gone.ply: no such file"),
        (lambda folder: f"zip://gone.ply::{folder}/gone.zip", "gone.zip: no such file"),
    ],
)
def test_files_that_cannot_be_read_are_named(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        rows_of(make(tmp_path))[0]


@needs_mesh
def test_columns_of_meshes_become_clouds():
    meshes = Dataset.from_dict({"cloud": [str(FILES / "chair.ply")]}, features=Features({"cloud": datasets.Mesh()}))
    assert len(meshes.cast_column("cloud", PointCloud())[0]["cloud"]["points"]) == 1742


@needs_mesh
def test_batches_of_meshes_and_files_say_how_to_read_them():
    meshes = Dataset.from_dict({"points": [str(FILES / "chair.ply")]}, features=Features({"points": datasets.Mesh()}))
    clouds = meshes.cast_column("points", PointCloud())
    for rows in (meshes, clouds, meshes.cast_column("points", datasets.Mesh(decode=False))):
        with raises(ValueError, naming="files_to_points"):
            PointCloudCollator(num_points=8)([rows[0]])
    read = files_to_points(clouds, num_points=8)
    assert PointCloudCollator()([read[0]])["points"].shape == (1, 8, 3)


def test_columns_of_other_types_are_refused():
    for values in ([1, 2], [[1.0], [2.0]], [{"a": 1}]):
        with pytest.raises((TypeError, ValueError)):
            Dataset.from_dict({"cloud": values}).cast_column("cloud", PointCloud())
    ragged = Dataset.from_dict({"cloud": [[[1.0, 2, 3], [1.0, 2], [1.0, 2, 3, 4]]]})
    with pytest.raises(ValueError):
        ragged.cast_column("cloud", PointCloud())


def test_embedded_files_include_the_files_they_refer_to(tmp_path):
    names = ["screwdriver.obj", "bottle.glb", "lamp.off"]
    rows = rows_of(*(str(FILES / name) for name in names), None)
    embedded = embed_files(rows)
    stored = embedded.cast_column("cloud", PointCloud(decode=False))["cloud"][:]
    assert [file and file["path"] for file in stored] == ["screwdriver.obj.ply", "bottle.glb", "lamp.off", None]
    assert stored[2]["bytes"] == (FILES / "lamp.off").read_bytes()
    before, after = rows[0]["cloud"], embedded[0]["cloud"]
    np.testing.assert_array_equal(after["faces"], before["faces"])
    # The colors come from the material file.
    np.testing.assert_allclose(after["face_colors"], before["face_colors"], atol=0.5 / 255)
    embedded.to_parquet(tmp_path / "clouds.parquet")
    assert str(FILES).encode() not in (tmp_path / "clouds.parquet").read_bytes()


def test_a_gltf_with_a_separate_buffer_is_embedded_as_one_file(tmp_path):
    content, buffer = gltf_square(asset={"version": "2.0"}, buffers=[{"uri": "parts.bin", "byteLength": 60}])
    (tmp_path / "a.gltf").write_text(json.dumps(content))
    (tmp_path / "parts.bin").write_bytes(buffer)
    embedded = embed_files(rows_of(str(tmp_path / "a.gltf")))
    (tmp_path / "parts.bin").unlink()
    assert_same(embedded[0]["cloud"], PointCloudData(SQUARE, faces=TRIANGLES))


def test_a_missing_file_is_named_when_it_is_embedded():
    with raises(ValueError, naming="gone.off"):
        embed_files(rows_of("gone.off"))


def test_embedding_can_be_limited_to_local_or_remote_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(FILES / "lamp.off", "lamp.off")
    url, path = f"zip://lamp.off::{tmp_path}/scans.zip", str(FILES / "lamp.off")
    storage = pa.array([{"bytes": None, "path": url}, {"bytes": None, "path": path}], PointCloud.pa_type)
    for options, expected in (({"remote_files": False}, [None, True]), ({"local_files": False}, [True, None])):
        found = PointCloud().embed_storage(storage, **options).to_pylist()
        assert [row["bytes"] and True for row in found] == expected
        assert [row["path"] for row in found] == [
            "lamp.off" if embedded else old for embedded, old in zip(expected, (url, path), strict=True)
        ]


def test_a_file_inside_an_archive_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(FILES / "lamp.off", "inner/lamp.off")
    rows = rows_of(f"zip://inner/lamp.off::{tmp_path}/scans.zip")
    assert_same(rows[0]["cloud"], read_point_cloud(FILES / "lamp.off"))
    stored = embed_files(rows).cast_column("cloud", PointCloud(decode=False))[0]["cloud"]
    assert stored["path"] == "lamp.off" and stored["bytes"] == (FILES / "lamp.off").read_bytes()


def test_files_of_a_repository_are_read_in_place(hub):
    hub.commit("me/loose-files", {"scans/lamp.off": (FILES / "lamp.off").read_bytes()}, kind="dataset")
    rows = rows_of("hf://datasets/me/loose-files/scans/lamp.off", "hf://datasets/me/loose-files/scans/gone.off")
    assert_same(rows[0]["cloud"], read_point_cloud(FILES / "lamp.off"))
    with raises(ValueError, naming="//datasets/me/loose-files/scans/gone.off"):
        rows[1]
