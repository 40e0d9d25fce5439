"""Two columns of one name: a file is refused where one of them would be read, and only there."""

import io
import warnings
import zipfile

import laspy
import numpy as np
import pandas as pd
import pytest

from hf_any3d.data.files import PointCloudError, PointCloudFileError, read_point_cloud, write_labels
from hf_any3d.data.tables.data_frames import without_tables

from .builders import e57_of_doubles, npy, paged, pcd, ply

POINTS = np.random.default_rng(0).random((9, 3)).round(3) * 7


def table(names):
    """The rows of a file whose columns have these names, x, y and z first."""
    return np.column_stack([POINTS, *(np.arange(9) % 3 + place for place in range(len(names) - 3))])


def text(names, mark=" "):
    rows = [mark.join(map(str, row)) for row in table(names).tolist()]
    return "\n".join([mark.join(names), *rows]).encode()


def of_ply(names):
    header = "\n".join(["element vertex 9", *(f"property float {name}" for name in names)])
    return ply(header, table(names).astype("<f4").tobytes())


def of_pcd(names):
    count = len(names)
    return pcd(" ".join(names), "4 " * count, "F " * count, table(names).astype("<f4").tobytes(), 9)


def of_npy(names):
    """Names of fields are in any case, and differ in it alone."""
    called = [name if name not in names[:place] else name.upper() for place, name in enumerate(names)]
    array = np.zeros(9, [(name, "f8") for name in called])
    for name, column in zip(called, table(names).T, strict=True):
        array[name] = column
    return npy(array)


def of_npz(names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, column in zip(names, table(names).T, strict=True):
            archive.writestr(f"{name}.npy", npy(column))
    return file.getvalue()


FILES = {
    "txt": text,
    "csv": lambda names: text(names, ","),
    "ply": of_ply,
    "pcd": of_pcd,
    "npy": of_npy,
    "npz": of_npz,
}


@pytest.mark.parametrize("form", FILES)
def test_two_columns_of_one_name_are_refused_where_one_is_read(form):
    def read(names, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_point_cloud(FILES[form](names), file_type=form, **options)

    others = ["x", "y", "z", "heat", "heat", "label"]
    assert len(read(others)) == 9 and read(others).labels.tolist() == (np.arange(9) % 3 + 2).tolist()
    for names, options in (
        (others, {"label_field": "heat"}),
        (others, {"columns": ["heat"]}),
        (["x", "y", "z", "label", "label"], {}),
        (["x", "y", "z", "z"], {}),
    ):
        twice = max(names, key=names.count)
        with pytest.raises(PointCloudFileError, match=rf"two columns are called '{twice}'; rename one"):
            read(names, **options)


@pytest.mark.parametrize("form", ["txt", "ply", "pcd"])
def test_a_copy_is_not_labeled_in_one_of_two_columns(form, tmp_path):
    (tmp_path / f"a.{form}").write_bytes(FILES[form](["x", "y", "z", "label", "label"]))
    with pytest.raises(ValueError, match="two columns are called 'label'; rename one"):
        write_labels(tmp_path / f"a.{form}", tmp_path / f"b.{form}", np.arange(9))


@pytest.mark.parametrize("options", [{"label_field": "labelA"}, {"columns": ["labelA"]}, {}], ids=str)
def test_two_extra_dimensions_of_one_name_are_refused_where_one_is_read(options, tmp_path):
    header = laspy.LasHeader(version="1.4", point_format=6)
    for name in ("labelA", "labelB"):
        header.add_extra_dim(laspy.ExtraBytesParams(name, "u1"))
    tile = laspy.LasData(header)
    tile.x, tile.y, tile.z = POINTS.T
    tile.write(tmp_path / "a.las")
    # laspy does not write them, and rlas does.
    (tmp_path / "a.las").write_bytes((tmp_path / "a.las").read_bytes().replace(b"labelB", b"labelA"))
    if options:
        with pytest.raises(PointCloudFileError, match="two columns are called 'labelA'; rename one"):
            read_point_cloud(tmp_path / "a.las", **options)
        with pytest.raises(ValueError, match="two columns are called 'labelA'; rename one"):
            write_labels(tmp_path / "a.las", tmp_path / "b.las", np.arange(9), field="labelA")
        return
    with pytest.warns(UserWarning, match="ignored: extra dimension labelA"):
        assert len(read_point_cloud(tmp_path / "a.las")) == 9


def test_two_fields_of_a_scan_are_refused_where_they_are_read():
    names = ("cartesianX", "cartesianY", "cartesianZ", "intensitx", "intensity")
    stored = e57_of_doubles(dict(zip(names, table("xyzab").T, strict=True)))
    assert len(read_point_cloud(stored, file_type="e57")) == 9
    # The content without checksums, which are made again
    logical = b"".join(stored[at : at + 1020] for at in range(0, len(stored), 1024))
    twice = paged(logical.replace(b"intensitx", b"intensity"))
    with pytest.raises(PointCloudFileError, match="two columns are called 'intensity'; rename one"):
        read_point_cloud(twice, file_type="e57")


def test_a_data_frame_has_no_second_column_of_a_name():
    frame = pd.DataFrame(table("xyzab"), columns=["x", "y", "z", "heat", "heat"])
    with pytest.warns(UserWarning, match="ignored: heat"):
        assert len(without_tables(frame)) == 9
    with pytest.raises(PointCloudError, match="two columns are called 'z'; rename one"):
        without_tables(frame.set_axis(["x", "y", "z", "z", "heat"], axis=1))
