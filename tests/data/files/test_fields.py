"""Fields of a cloud that are asked for by name: they are those of the whole file, and nothing else is read."""

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData, read_point_cloud, write_point_cloud
from hf_any3d.data.files.point_cloud import FIELDS

laspy = pytest.importorskip("laspy")


def _scan(path, point_format, *, infrared=False):
    header = laspy.LasHeader(point_format=point_format, version="1.4" if point_format >= 6 else "1.2")
    header.scales = [0.01] * 3
    header.offsets = [650_000, 6_860_000, 0]
    header.add_extra_dim(laspy.ExtraBytesParams("height", "f4"))
    header.add_extra_dim(laspy.ExtraBytesParams("tree", "u2"))
    rng = np.random.default_rng(0)
    count = 70_000  # more than a chunk of LAZ, and than the readers' blocks
    scan = laspy.LasData(header)
    scan.x = 650_000 + rng.uniform(0, 500, count)
    scan.y = 6_860_000 + rng.uniform(0, 500, count)
    scan.z = rng.uniform(0, 40, count)
    for name, most in (("intensity", 3000), ("classification", 20), ("user_data", 250), ("point_source_id", 60_000)):
        scan[name] = rng.integers(1, most, count)
    scan.return_number = rng.integers(1, 5, count)
    scan.number_of_returns = rng.integers(1, 5, count)
    scan.withheld = rng.integers(0, 2, count)
    for channel in ("red", "green", "blue", *(["nir"] * infrared)):
        scan[channel] = rng.integers(0, 65_535, count)
    scan.height = rng.uniform(0, 30, count).astype(np.float32)
    scan.tree = rng.integers(0, 900, count)
    scan.write(path)
    return scan


def _arrays(cloud):
    return {name: value for name, value in vars(cloud).items() if isinstance(value, np.ndarray)}


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "point_format"), [("laz", 7), ("laz", 8), ("laz", 3), ("las", 7), ("las", 2)])
def test_fields_of_las_are_those_of_the_whole_file(tmp_path, ending, point_format):
    path = tmp_path / f"scan.{ending}"
    scan = _scan(path, point_format, infrared=point_format == 8)
    whole = read_point_cloud(path, columns=["height"])
    np.testing.assert_array_equal(whole.labels, scan.classification)
    np.testing.assert_array_equal(whole.further["withheld"], np.asarray(scan.withheld, bool))
    for fields in ((), ("labels",), ("intensity", "colors"), ("return_number",)):
        few = read_point_cloud(path, columns=["height"], fields=fields)
        found = _arrays(few)
        assert found.keys() == {"points", "offset", *fields}
        for name, values in found.items():
            np.testing.assert_array_equal(values, getattr(whole, name))
        for name in ("height", "withheld"):
            np.testing.assert_array_equal(few.further[name], whole.further[name])
    for name in ("user_data", "point_source_id", "tree"):
        chosen = read_point_cloud(path, label_field=name, fields={"labels"})
        np.testing.assert_array_equal(chosen.labels, scan[name])


@pytest.mark.parametrize("ending", ["ply", "npz"])
def test_fields_of_other_formats_are_those_of_the_whole_file(tmp_path, ending, recwarn):
    rng = np.random.default_rng(0)
    cloud = PointCloudData(
        rng.normal(size=(50, 3)),
        colors=rng.random((50, 3)),
        normals=rng.normal(size=(50, 3)),
        labels=rng.integers(0, 5, 50),
        faces=rng.integers(0, 50, (20, 3)),
        face_labels=rng.integers(0, 3, 20),
        intensity=rng.random(50),
        label_names=("a", "b", "c", "d", "e") if ending == "npz" else None,
    )
    path = tmp_path / f"cloud.{ending}"
    write_point_cloud(path, cloud)
    whole = _arrays(read_point_cloud(path))
    for fields in ([], ["labels"], ["normals", "faces"], ["faces", "face_labels"], list(FIELDS)):
        found = read_point_cloud(path, fields=fields)
        assert _arrays(found).keys() == {"points", *fields} & whole.keys()
        for name, values in _arrays(found).items():
            np.testing.assert_array_equal(values, whole[name])
        assert (found.label_names is None) == (ending == "ply" or "labels" not in fields)
    # What nobody asked for is not told of as left out.
    assert not recwarn.list


def test_an_unknown_field_is_named():
    with pytest.raises(
        ValueError, match="a name in fields is 'color'; expected one of colors, normals, labels, faces"
    ):
        read_point_cloud(b"", file_type="ply", fields=["labels", "color", "intensities"])


@pytest.mark.parametrize("fields", ["labels", [1], 3])
def test_fields_are_a_list_of_names(fields):
    with pytest.raises(ValueError, match="fields is .*; expected a list of names, or None for all"):
        read_point_cloud(b"", file_type="ply", fields=fields)


def test_chosen_labels_must_be_among_the_fields(tmp_path):
    path = tmp_path / "cloud.csv"
    path.write_text("x,y,z,kind\n0,0,0,1\n1,0,0,2\n1,1,0,3\n")
    assert read_point_cloud(path, label_field="kind", fields=["labels"]).labels.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="label_field is 'kind', and fields has no labels"):
        read_point_cloud(path, label_field="kind", fields=[])


def test_labels_beside_a_cloud_are_read_only_if_they_are_asked_for(tmp_path):
    path = tmp_path / "cloud.xyz"
    path.write_text("0 0 0\n1 0 0\n1 1 0\n")
    path.with_suffix(".labels").write_text("1\n2\n3\n")
    with pytest.warns(UserWarning, match="labels are read from cloud.labels"):
        assert read_point_cloud(path, fields=["labels"]).labels.tolist() == [1, 2, 3]
    assert read_point_cloud(path, fields=[]).labels is None
