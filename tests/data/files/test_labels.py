"""Labels in copies of files: only the class is new, byte by byte, whatever else the file has."""

import io
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hf_any3d import read_point_cloud, write_labels
from hf_any3d.data.files import PointCloudFileError
from tests.errors import raises
from tests.turns import some

from . import builders
from .conftest import FILES

laspy = pytest.importorskip("laspy")
REAL = next((path for up in Path(__file__).parents if (path := up / "shared/data/real").is_dir()), None)
REAL_SCANS = [] if REAL is None else sorted(file for file in REAL.rglob("*") if file.suffix in (".las", ".laz"))
COUNT = 300
CLASS_BYTE = {kind: 15 if kind < 6 else 16 for kind in range(11)}


def scan(point_format: int, compressed: bool, version: str = "1.4") -> bytes:
    """A scan with everything that a copy could lose: random records, dimensions, records before and after."""
    header = laspy.LasHeader(point_format=point_format, version=version)
    header.scales, header.offsets = np.full(3, 0.001), np.array([5e5, 5e6, 0])
    header.system_identifier, header.generating_software = "a scanner", "a program"
    header.add_extra_dim(laspy.ExtraBytesParams("height", np.float32, "above the ground"))
    header.add_extra_dim(laspy.ExtraBytesParams("tree", np.uint16))
    header.vlrs.append(laspy.VLR("someone", 7, "of their own", b"what only they know"))
    cloud = laspy.LasData(header)
    cloud.points = laspy.ScaleAwarePointRecord.zeros(COUNT, header=header)
    generator = np.random.default_rng(point_format)
    size = header.point_format.size
    # Colors and others are any bytes; what is no plain number has numbers that a scanner would write.
    records = generator.integers(0, 256, (COUNT, size), np.uint8)
    cloud.points.array[:] = records.reshape(-1).view(cloud.points.array.dtype)
    cloud.x, cloud.y, cloud.z = (generator.random((COUNT, 3)) * 10 + header.offsets).T
    for name in cloud.point_format.dimension_names:
        if name in ("gps_time", "height", "x_t", "y_t", "z_t", "return_point_wave_location"):
            cloud[name] = generator.random(COUNT)
    if point_format in (4, 5, 9, 10):
        cloud.wavepacket_index = generator.integers(0, 3, COUNT)
        if point_format > 5:
            cloud.scanner_channel = np.zeros(COUNT, np.uint8)  # lazrs mixes packets of several channels up
        cloud.wavepacket_size = generator.integers(50, 99, COUNT)
        cloud.wavepacket_offset = np.cumsum(cloud.wavepacket_size)
    if version == "1.4":
        cloud.evlrs = laspy.vlrs.vlrlist.VLRList([laspy.VLR("someone", 8, "after the points", bytes(range(200)))])
    file = io.BytesIO()
    file.close = lambda: None
    cloud.write(file, do_compress=compressed)
    return file.getvalue()


def opened(path) -> "laspy.LasData":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return laspy.read(path)


def assert_only_the_class_is_new(old, new, classes=None, new_names=()):
    """Compare all dimensions of all points, the header, and records before and after the points."""
    before, after = opened(old), opened(new)
    kind = before.point_format.id
    names = set(before.points.array.dtype.names)
    assert set(after.points.array.dtype.names) == names | set(new_names)
    for name in names - {"classification", "raw_classification"}:
        assert after.points.array[name].tobytes() == before.points.array[name].tobytes(), name
    if kind < 6:
        flags = [np.asarray(cloud.points.array["raw_classification"]) & 0xE0 for cloud in (before, after)]
        assert (flags[0] == flags[1]).all()
    expected = before.classification if classes is None else classes
    assert (np.asarray(after.classification) == np.asarray(expected)).all()
    one, other = before.header, after.header
    for name in ("version", "system_identifier", "generating_software", "creation_date", "uuid", "file_source_id"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("scales", "offsets", "mins", "maxs", "number_of_points_by_return"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    # Of the compressor, and of dimensions, whose description grows with them.
    others = (22204, 4) if new_names else (22204,)
    records = [
        [(vlr.user_id, vlr.record_id, vlr.record_data_bytes()) for vlr in header.vlrs if vlr.record_id not in others]
        for header in (one, other)
    ]
    assert records[0] == records[1]
    contents = [[vlr.record_data_bytes() for vlr in header.evlrs or ()] for header in (one, other)]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("compressed", [False, True], ids=["las", "laz"])
@pytest.mark.parametrize("point_format", range(11))
def test_of_every_point_format_all_but_the_class_stays(point_format, compressed, tmp_path):
    old = tmp_path / ("a.laz" if compressed else "a.las")
    old.write_bytes(scan(point_format, compressed))
    labels = np.arange(COUNT) % 3
    scores = np.linspace(0, 1, COUNT, dtype=np.float32)
    for ending in ("las", "laz"):
        new = tmp_path / f"new.{ending}"
        write_labels(old, new, labels, codes=[2, 5, 6])
        assert_only_the_class_is_new(old, new, np.array([2, 5, 6])[labels])
        write_labels(old, new, labels, scores=scores, objects=labels * 1000, field="mine")
        assert_only_the_class_is_new(old, new, None, ("mine", "score", "object"))
        cloud = opened(new)
        assert (cloud["mine"] == labels).all() and (cloud["score"] == scores).all()
        assert (cloud["object"] == labels * 1000).all()


@pytest.mark.parametrize("point_format", [0, 1, 3, 5, 6, 8, 10])
def test_of_an_uncompressed_copy_one_byte_of_each_point_differs(point_format, tmp_path):
    data = scan(point_format, False) + b"what someone appended"
    (tmp_path / "a.las").write_bytes(data)
    write_labels(tmp_path / "a.las", tmp_path / "b.las", np.full(COUNT, 7))
    new = np.frombuffer((tmp_path / "b.las").read_bytes(), np.uint8)
    start, _, size = struct.unpack_from("<I4xBH", data, 96)
    places = start + np.arange(COUNT) * size + CLASS_BYTE[point_format]
    expected = np.frombuffer(data, np.uint8).copy()
    expected[places] = 7 if point_format >= 6 else expected[places] & 0xE0 | 7
    np.testing.assert_array_equal(new, expected)


@pytest.mark.parametrize("compressed", [False, True], ids=["las", "laz"])
def test_what_is_appended_to_the_points_stays_the_end_of_the_file(compressed, tmp_path):
    rest = b"what someone appended"
    for version in ("1.2", "1.4"):
        (tmp_path / "a.laz").write_bytes(scan(3, compressed, version) + rest)
        write_labels(tmp_path / "a.laz", tmp_path / "b.laz", np.zeros(COUNT, int), scores=np.zeros(COUNT))
        assert (tmp_path / "b.laz").read_bytes().endswith(rest)
        assert_only_the_class_is_new(tmp_path / "a.laz", tmp_path / "b.laz", np.zeros(COUNT), ("score",))


@pytest.mark.parametrize(
    "file", some(REAL_SCANS, left_out=set(REAL_SCANS) - set(REAL_SCANS[::6])), ids=lambda path: path.stem
)
def test_a_real_scan_keeps_all_but_its_classes(file, tmp_path):
    count = len(read_point_cloud(file))
    labels = np.random.default_rng(0).integers(0, 7, count)
    new = tmp_path / f"new{file.suffix}"
    write_labels(file, new, labels)
    assert_only_the_class_is_new(file, new, labels)
    write_labels(new, tmp_path / "old.las", np.asarray(opened(file).classification))
    assert_only_the_class_is_new(file, tmp_path / "old.las")


def test_dimensions_of_several_records_are_described_in_one(tmp_path):
    if not (files := [file for file in REAL_SCANS if file.stem == "lidarhd_france"]):
        pytest.skip("no such file")
    old, cloud = opened(files[0]), read_point_cloud(files[0])
    write_labels(files[0], tmp_path / "new.las", np.full(len(cloud), 2), scores=np.ones(len(cloud)))
    new = opened(tmp_path / "new.las")
    assert list(new.point_format.extra_dimension_names) == ["Deviation", "confidence", "score"]
    assert (new["confidence"] == old.points.array["ExtraBytes"].reshape(-1)).all() and (new["score"] == 1).all()


def test_a_dimension_that_is_there_is_written_again_or_refused(tmp_path):
    (tmp_path / "a.laz").write_bytes(scan(6, True))
    labels = np.arange(COUNT)
    write_labels(tmp_path / "a.laz", tmp_path / "b.laz", labels, field="tree")
    cloud = opened(tmp_path / "b.laz")
    assert (cloud["tree"] == labels).all() and list(cloud.point_format.extra_dimension_names) == ["height", "tree"]
    write_labels(tmp_path / "b.laz", tmp_path / "c.laz", np.where(labels < 9, -1, 5), field="tree")
    assert (opened(tmp_path / "c.laz")["tree"] == np.where(labels < 9, labels, 5)).all()
    for wrong, field in ((labels + 70_000, "tree"), (labels, "intensity")):
        with raises(ValueError, naming=field):
            write_labels(tmp_path / "a.laz", tmp_path / "d.laz", wrong, field=field)
    assert not (tmp_path / "d.laz").exists()


def test_what_las_cannot_hold_is_an_error_before_anything_is_written(tmp_path):
    (tmp_path / "a.las").write_bytes(scan(3, False, "1.2"))
    (tmp_path / "wave.las").write_bytes(scan(4, False))
    labels = np.zeros(COUNT, int)
    cases = [
        (dict(labels=labels, codes=[64]), "class 64"),
        (dict(labels=labels[1:]), "299 labels for a file with 300 points"),
        (dict(labels=labels.astype(float)), "labels"),
        (dict(labels=labels + 1, codes=[2]), "label 1"),
        (dict(labels=labels, field="a name that is longer than 32 bytes"), "32 bytes"),
        (dict(labels=labels, face_labels=labels), "face_labels"),
    ]
    for arguments, naming in cases:
        with raises(ValueError, naming=naming):
            write_labels(tmp_path / "a.las", tmp_path / "b.las", **arguments)
    for path, naming in (("a.las", "is the input file"), ("b.ply", "expected the ending .las or .laz")):
        with raises(ValueError, naming=naming):
            write_labels(tmp_path / "a.las", tmp_path / path, labels)
    data = scan(6, True)
    for cut in (data[:300], data[: len(data) // 2]):
        with pytest.raises(PointCloudFileError):
            write_labels(cut, tmp_path / "b.laz", labels, file_type="laz")
    assert not (tmp_path / "b.las").exists() and not list(tmp_path.glob(".*"))


def test_waveforms_that_would_be_changed_are_an_error(tmp_path):
    data = bytearray(scan(9, False))
    start, _, size = struct.unpack_from("<I4xBH", data, 96)
    generator = np.random.default_rng(0)
    for place in range(start, start + COUNT * size, size):
        data[place + 30 : place + 59] = generator.integers(0, 256, 29, np.uint8).tobytes()
        data[place + 15] = generator.integers(0, 4) << 4  # of several channels
    write_labels(bytes(data), tmp_path / "b.las", np.zeros(COUNT, int), file_type="las")
    with raises(PointCloudFileError, naming="waveform"):
        write_labels(bytes(data), tmp_path / "b.laz", np.zeros(COUNT, int), file_type="las")
    assert not (tmp_path / "b.laz").exists()


def test_waveforms_in_another_file_are_named(tmp_path):
    data = bytearray(scan(9, False))
    data[6] |= 4
    (tmp_path / "a.las").write_bytes(data)
    with pytest.warns(UserWarning, match=r"a\.wdp"):
        write_labels(tmp_path / "a.las", tmp_path / "b.las", np.zeros(COUNT, int))


def test_waveforms_within_a_file_stay_where_the_header_says(tmp_path):
    data = bytearray(scan(4, False, "1.3"))
    waves = len(data)
    struct.pack_into("<Q", data, 227, waves)
    (tmp_path / "a.las").write_bytes(bytes(data) + b"waveforms")
    write_labels(tmp_path / "a.las", tmp_path / "b.las", np.zeros(COUNT, int), scores=np.zeros(COUNT))
    new = (tmp_path / "b.las").read_bytes()
    assert new[struct.unpack_from("<Q", new, 227)[0] :] == b"waveforms"


PLY_ROWS = [(0, 0, 0, 9), (1, 0, 0, 8), (0, 1, 0, 7), (0, 0, float("nan"), 6)]


def ply(form: str, rows=PLY_ROWS, names="x y z intensity", faces=True, ending="\n") -> bytes:
    head = ["ply", f"format {form} 1.0", "comment of someone", f"element vertex {len(rows)}"]
    head += [f"property float {name}" for name in names.split()]
    if faces:
        head += ["element face 2", "property list uchar int vertex_indices", "property uchar shade"]
    head += ["element camera 1", "property double zoom", "end_header"]
    data = (ending.join(head) + ending).encode()
    corners = [(3, 0, 1, 2, 200), (4, 0, 1, 2, 0, 100)] if faces else []
    if form == "ascii":
        lines = [" ".join(f"{value:g}" for value in row) for row in rows]
        lines += [" ".join(map(str, row)) for row in corners] + ["1.5", ""]
        return data + ending.join(lines).encode()
    order = "<" if "little" in form else ">"
    body = b"".join(struct.pack(f"{order}{len(row)}f", *row) for row in rows)
    body += b"".join(struct.pack(f"{order}B{row[0]}iB", *row) for row in corners)
    return data + body + struct.pack(f"{order}d", 1.5) + b"the end"


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_every_property_and_element_of_ply_stays(form, ending, tmp_path):
    old = ply(form, rows=PLY_ROWS[:3], ending=ending)
    (tmp_path / "a.ply").write_bytes(old)
    write_labels(tmp_path / "a.ply", tmp_path / "b.ply", [4, 5, 6], face_labels=[1, 2, 2])
    new = (tmp_path / "b.ply").read_bytes()
    assert f"property int scalar_Classification{ending}".encode() in new
    assert f"property int label{ending}".encode() in new  # of faces
    cloud, before = read_point_cloud(tmp_path / "b.ply"), read_point_cloud(tmp_path / "a.ply")
    np.testing.assert_array_equal(cloud.labels, [4, 5, 6])
    np.testing.assert_array_equal(cloud.faces, before.faces)
    np.testing.assert_array_equal(cloud.intensity, before.intensity)
    if form == "ascii":
        lines = [line.split() for line in new.decode().split("end_header")[1].split(ending)]
        assert lines[1:6] == [
            [*row.split()] for row in ("0 0 0 9 4", "1 0 0 8 5", "0 1 0 7 6", "3 0 1 2 200 1", "4 0 1 2 0 100 2")
        ]
    # Once more, over what is there now: only the labels differ, and back again nothing does.
    write_labels(tmp_path / "b.ply", tmp_path / "c.ply", [7, 8, 9], face_labels=[3, 3, 3])
    assert len((tmp_path / "c.ply").read_bytes()) == len(new)
    write_labels(tmp_path / "c.ply", tmp_path / "d.ply", [4, 5, 6], face_labels=[1, 2, 2])
    assert (tmp_path / "d.ply").read_bytes() == new


def test_labels_of_read_points_do_not_shift_in_files_with_points_that_are_left_out(tmp_path):
    rows = [(float("nan"), 0, 0, 1), (1, 0, 0, 2), (float("nan"), 1, 0, 3), (0, 2, 1, 4), (5, 5, 5, 5)]
    ascii_pcd = (
        "VERSION .7\nFIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH 5\nHEIGHT 1\nPOINTS 5\n"
        "DATA ascii\n" + "".join(" ".join(f"{value:g}" for value in row) + "\n" for row in rows)
    )
    packed = io.BytesIO()
    kinds = [(name, "<f8") for name in ("x", "y", "z", "intensity")]
    np.savez(packed, points=np.array(rows, kinds))
    contents = {
        "a.ply": ply("ascii", rows, faces=False),
        "b.ply": ply("binary_big_endian", rows, faces=False),
        "a.pcd": ascii_pcd.encode(),
        "a.npz": packed.getvalue(),
        "a.csv": ("x,y,z,intensity\n" + "".join(",".join(f"{v:g}" for v in row) + "\n" for row in rows)).encode(),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        read = read_point_cloud(tmp_path / name, on_invalid="drop")
        assert len(read) == 3
        # The labels are the intensities, so that any shift shows.
        write_labels(tmp_path / name, tmp_path / f"new_{name}", read.intensity.astype(int))
        if name == "a.npz":
            assert np.load(tmp_path / "new_a.npz")["labels"].tolist() == [-1, 2, -1, 4, 5]
            continue
        again = read_point_cloud(tmp_path / f"new_{name}", on_invalid="drop")
        np.testing.assert_array_equal(again.labels, again.intensity, err_msg=name)
        with raises(ValueError, naming=name):
            write_labels(tmp_path / name, tmp_path / f"no_{name}", [1, 2, 3, 4])


def test_splats_that_are_not_seen_have_no_label(tmp_path):
    names = "x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0"
    rows = np.random.default_rng(0).normal(size=(50, 11))
    (tmp_path / "a.ply").write_bytes(ply("binary_little_endian", rows, names, faces=False))
    read = read_point_cloud(tmp_path / "a.ply")
    assert 3 < len(read) < 50
    write_labels(tmp_path / "a.ply", tmp_path / "b.ply", np.arange(len(read)))
    again = read_point_cloud(tmp_path / "b.ply")
    np.testing.assert_array_equal(again.labels, np.arange(len(read)))
    assert (tmp_path / "b.ply").read_bytes().count((-1).to_bytes(4, "little", signed=True)) == 50 - len(read)


def pcd(form: str, labels: bool) -> bytes:
    kinds = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("_", "u1", (3,)), ("label", "<u4"), ("t", "<f8")])
    if not labels:
        kinds = np.dtype([(name, *kinds.fields[name][:1]) for name in kinds.names if name != "label"])
    table = np.zeros(40, kinds)
    for place, name in enumerate(kinds.names):
        table[name] = (np.arange(table[name].size) % 90 + place).reshape(table[name].shape)
    names = kinds.names
    counts = [int(np.prod(kinds[name].shape)) for name in names]
    head = ["# .PCD v0.7 of someone", "VERSION 0.7", "FIELDS " + " ".join(names)]
    head += ["SIZE " + " ".join(str(kinds[name].base.itemsize) for name in names)]
    head += ["TYPE " + " ".join(kinds[name].base.kind.upper() for name in names)]
    head += ["COUNT " + " ".join(map(str, counts)), "WIDTH 40", "HEIGHT 1", "POINTS 40", f"DATA {form}", ""]
    data = "\n".join(head).encode()
    if form == "ascii":
        rows = [[value for name in names for value in np.ravel(row[name]).tolist()] for row in table]
        return data + "".join(" ".join(f"{value:g}" for value in row) + "\n" for row in rows).encode()
    if form == "binary":
        return data + table.tobytes()
    plain = b"".join(np.ascontiguousarray(table[name]).tobytes() for name in names)
    packed = builders.lzf(plain)
    return data + struct.pack("<II", len(packed), len(plain)) + packed


@pytest.mark.parametrize("form", ["ascii", "binary", "binary_compressed"])
def test_fields_of_pcd_stay_and_labels_are_added_or_replaced(form, tmp_path):
    for has_labels in (True, False):
        (tmp_path / "a.pcd").write_bytes(pcd(form, has_labels))
        write_labels(tmp_path / "a.pcd", tmp_path / "b.pcd", np.arange(40), scores=np.full(40, 0.5))
        before, after = read_point_cloud(tmp_path / "a.pcd"), read_point_cloud(tmp_path / "b.pcd")
        np.testing.assert_array_equal(after.points, before.points)
        np.testing.assert_array_equal(after.labels, np.arange(40))
        header = (tmp_path / "b.pcd").read_bytes().split(b"DATA")[0].decode()
        assert header.startswith("# .PCD v0.7 of someone\n")
        fields = header.split("FIELDS ")[1].splitlines()[0].split()
        assert fields == ["x", "y", "z", "_", *(["label", "t"] if has_labels else ["t", "label"]), "score"]
        if form == "ascii":
            write_labels(tmp_path / "b.pcd", tmp_path / "c.pcd", np.arange(40) + 4, field="score", codes=None)
            assert len(read_point_cloud(tmp_path / "c.pcd")) == 40
    if form == "binary":
        # Back to the old labels, the file is the old one.
        (tmp_path / "a.pcd").write_bytes(pcd(form, True))
        old = read_point_cloud(tmp_path / "a.pcd").labels
        write_labels(tmp_path / "a.pcd", tmp_path / "b.pcd", old + 1)
        write_labels(tmp_path / "b.pcd", tmp_path / "c.pcd", old)
        assert (
            (tmp_path / "c.pcd").read_bytes() == (tmp_path / "a.pcd").read_bytes() != (tmp_path / "b.pcd").read_bytes()
        )


def test_arrays_of_npz_stay(tmp_path):
    arrays = {"points": np.random.default_rng(0).random((30, 3)), "seg": np.zeros((30, 1), np.uint8)}
    arrays |= {"other": np.arange(7), "text": np.array(["a", "b"])}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    write_labels(tmp_path / "a.npz", tmp_path / "b.npz", np.arange(30), unknown=np.ones(30))
    with zipfile.ZipFile(tmp_path / "a.npz") as one, zipfile.ZipFile(tmp_path / "b.npz") as other:
        for name in ("points.npy", "other.npy", "text.npy"):
            assert one.read(name) == other.read(name)
    with np.load(tmp_path / "b.npz") as new:
        assert new["seg"].dtype == np.uint8 and new["seg"][:, 0].tolist() == list(range(30))
        assert new["unknown"].tolist() == [1.0] * 30 and "labels" not in new
    with raises(ValueError, naming="seg"):
        write_labels(tmp_path / "a.npz", tmp_path / "b.npz", np.arange(30) + 300)


TEXTS = {
    "named.csv": (
        "x,y,z,class,note\n1,2,3,0,5\n4,5,6,0,6\n7,8,10,0,7\n",
        "x,y,z,class,note\n1,2,3,4,5\n4,5,6,5,6\n7,8,10,6,7\n",
    ),
    "new.csv": (
        '"X","Y","Z"\r\n1,2,3\r\n4,5,6\r\n7,8,10\r\n',
        '"X","Y","Z","Classification"\r\n1,2,3,4\r\n4,5,6,5\r\n7,8,10,6\r\n',
    ),
    "plain.xyz": (
        "# of someone\n1 2  3\n\n4 5 6 // here\n7 8 10",
        "# of someone\n1 2  3 4\n\n4 5 6 5 // here\n7 8 10 6",
    ),
    "last.xyz": ("1 2 3 0\n4 5 6 0\n7 8 10 1\n", "1 2 3 4\n4 5 6 5\n7 8 10 6\n"),
    "counted.txt": ("3\n1\t2\t3\n4\t5\t6\n7\t8\t10\n", "3\n1\t2\t3\t4\n4\t5\t6\t5\n7\t8\t10\t6\n"),
    "commas.txt": ("x;y;z\n1,5;2;3\n4;5;6\n7;8;10\n", "x;y;z;Classification\n1,5;2;3;4\n4;5;6;5\n7;8;10;6\n"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_rows_of_text_stay_with_their_header_and_separators(name, tmp_path):
    old, expected = TEXTS[name]
    (tmp_path / name).write_bytes(old.encode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_labels(tmp_path / name, tmp_path / f"new_{name}", [0, 1, 2], codes=[4, 5, 6])
        assert (tmp_path / f"new_{name}").read_bytes().decode() == expected
        read = read_point_cloud(tmp_path / f"new_{name}")
    np.testing.assert_array_equal(read.labels, [4, 5, 6])


def test_columns_without_names_get_them_where_nothing_else_tells_what_is_new(tmp_path):
    rows = "".join(f"{i % 7} {i * i} 1.5 {i * 0.37:g}\n" for i in range(90))
    (tmp_path / "a.xyz").write_text("# of someone\n" + rows)
    cases: list[tuple[dict, str]] = [
        ({}, "#x y z column_4 Classification"),
        ({"field": "mine"}, "#x y z column_4 mine"),
        ({"scores": np.ones(90)}, "#x y z column_4 Classification score"),
    ]
    for arguments, names in cases:
        write_labels(tmp_path / "a.xyz", tmp_path / "b.xyz", np.arange(90), **arguments)
        first, named, *new = (tmp_path / "b.xyz").read_text().splitlines()
        assert (first, named) == ("# of someone", names)
        assert [" ".join(line.split()[:4]) for line in new] == rows.splitlines()


@pytest.mark.parametrize("name", ["chair.obj", "lamp.off", "lamp.stl", "bottle.glb", "chair.npy", "chair.pts"])
def test_a_format_without_a_place_for_labels_says_so(name, tmp_path):
    with raises(ValueError, naming=name):
        write_labels(FILES / name, tmp_path / name, [0])
