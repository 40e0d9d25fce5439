"""Rows that are no points are left out and counted: heights that stand for no data, and rows that are no splats."""

import warnings

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud, write_labels
from hf_any3d.data.files.no_data import NO_DATA, no_data_height

from .builders import npy, npz, pcd, ply, splat_rows

RANDOM = np.random.default_rng(2)
# Places of a raster on a map, whose digits need an offset
PLACES = (RANDOM.random((40, 3)) * [30, 30, 5] + [412_345, 5_432_109, 400]).round(3)
HAVE_DATA = np.arange(40) % 5 > 0


def raster(value):
    places = PLACES.copy()
    places[~HAVE_DATA, 2] = value
    return places


def header(kind, names="xyz"):
    return "\n".join(["element vertex 40", *(f"property {kind} {name}" for name in names)])


FILES = {
    "xyz": lambda rows: "\n".join(" ".join(map(repr, row)) for row in rows.tolist()).encode(),
    "csv": lambda rows: "\n".join(["x,y,z", *(",".join(map(repr, row)) for row in rows.tolist())]).encode(),
    "ply": lambda rows: ply(header("double"), rows.tobytes()),
    "pcd": lambda rows: pcd("x y z", "8 8 8", "F F F", rows.tobytes(), 40),
    "npy": lambda rows: npy(rows),
    "npz": lambda rows: npz(points=rows),
}


@pytest.mark.parametrize("form", FILES)
def test_heights_that_stand_for_no_data_are_left_out_and_counted(form, tmp_path):
    for value in NO_DATA:
        path = tmp_path / f"a.{form}"
        path.write_bytes(FILES[form](raster(value)))
        for on_invalid in ("raise", "drop"):
            with pytest.warns(UserWarning, match=r"8 of 40 points have the height .*, which stands for no data"):
                cloud = read_point_cloud(path, on_invalid=on_invalid)
            # As precise as a file without such rows
            np.testing.assert_allclose(cloud.points + cloud.offset, PLACES[HAVE_DATA], atol=1e-3)
    if form == "npy":
        return  # without names, a copy has no place for labels
    # Labels are those of the points that were read, and the others have none.
    write_labels(path, tmp_path / f"b.{form}", np.arange(32) % 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_point_cloud(tmp_path / f"b.{form}").labels.tolist() == (np.arange(32) % 3).tolist()


def test_labels_beside_a_raster_are_of_all_its_rows(tmp_path):
    rows = raster(-9999)
    rows[1] = np.nan
    np.save(tmp_path / "labels.npy", np.arange(40))
    (tmp_path / "a.ply").write_bytes(FILES["ply"](rows))
    with pytest.warns(UserWarning, match="1 of 32 points have NaN"):
        cloud = read_point_cloud(tmp_path / "a.ply", on_invalid="drop", label_file=tmp_path / "labels.npy")
    assert cloud.labels.tolist() == [row for row in range(40) if HAVE_DATA[row] and row != 1]


def test_a_height_of_a_place_is_never_taken_for_none():
    assert no_data_height(np.array([0.0, 5, -9999, 3]), exact=True) == -9999
    # Millimeters of a deep place; a cloud of two points; all of one height; a mesh
    assert no_data_height(np.linspace(-9999, 200, 9000), exact=True) is None
    assert no_data_height(np.array([-9999.0, -9998.5, -9990]), exact=True) is None
    assert no_data_height(np.full(3, -9999.0), exact=True) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mesh = b"v 0 0 -9999\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
        assert len(read_point_cloud(mesh, file_type="obj")) == 3


def splats(colors, opacities, turns):
    names = ["x", "y", "z", *colors, "opacity", *(f"scale_{axis}" for axis in range(3))]
    names += [f"rot_{part}" for part in range(4)]
    rows = np.full((40, len(names)), -4.0)
    rows[:, :3] = PLACES
    rows[:, 3 : 3 + len(colors)] = 100 if colors and colors[0] == "red" else 0.5
    rows[:, names.index("opacity")] = opacities
    rows[:, -4:] = turns
    rows[~np.any(turns, axis=1)] = 0
    lines = [" ".join(f"{value:.10g}" for value in row) for row in rows]
    return ply(header("float", names).replace("float red", "uchar red"), "\n".join(lines).encode(), "ascii")


@pytest.mark.parametrize("colors", [["f_dc_0", "f_dc_1", "f_dc_2"], ["red", "green", "blue"], []], ids=len)
def test_rows_that_are_no_splats_are_no_points(colors, tmp_path):
    """Colors are harmonics, or plain ones as nerfstudio writes them with `--ply-color-mode rgb`."""
    turns = np.tile([1.0, 0, 0, 0], (40, 1))
    turns[:10] = 0
    opacities = np.where(np.arange(40) < 20, -5.0, 3.0)
    (tmp_path / "a.ply").write_bytes(splats(colors, opacities, turns))
    with pytest.warns(UserWarning) as told:
        cloud = read_point_cloud(tmp_path / "a.ply")
    said = [str(one.message).partition(": ")[2] for one in told]
    assert "10 of 40 rows are empty, no Gaussian splats, and are skipped" in said
    assert "10 of 40 Gaussian splats have an opacity below 0.1 and are skipped" in said
    assert len(said) == 2 and len(cloud) == 20 and (cloud.colors is not None) == bool(colors)
    write_labels(tmp_path / "a.ply", tmp_path / "b.ply", np.arange(20))


def test_empty_rows_of_web_viewers_are_no_points():
    data = bytearray(splat_rows(PLACES[:3], np.full((3, 3), 9), [255] * 3))
    data[32 + 28 : 64] = b"\x80" * 4  # a rotation of 0 0 0 0
    data[64 + 12 : 64 + 24] = bytes(12)  # no size
    with pytest.warns(UserWarning, match="2 of 3 rows are empty"):
        assert len(read_point_cloud(bytes(data), file_type="splat")) == 1


def test_a_file_of_empty_rows_alone_is_refused():
    with (
        pytest.warns(UserWarning, match="40 of 40 rows are empty"),
        pytest.raises(PointCloudFileError, match="no points"),
    ):
        read_point_cloud(splats([], np.zeros(40), np.zeros((40, 4))), file_type="ply")


def test_a_sample_tells_of_raw_arrays_and_text_is_looked_at_as_a_whole():
    heights = np.arange(100_000) % 50 / 10
    heights[1] = -9999
    assert no_data_height(heights, exact=True) == -9999 and no_data_height(heights, exact=False) is None
    heights[5_000:6_000] = -9999
    assert no_data_height(heights, exact=False) == -9999
