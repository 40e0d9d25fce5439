"""Files of other programs and under other names: the same words at every door, one culprit, one next step."""

import gzip
import io
import re
import struct
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from hf_any3d.data.feature import PointCloud
from hf_any3d.data.files import PointCloudFileError, read_point_cloud, supported_file_types
from hf_any3d.data.files.contents import _ENDINGS, foreign_ending
from hf_any3d.data.files.input_files import InputFile
from hf_any3d.registry import FORMATS
from hf_any3d.serving import ServeLimits
from hf_any3d.serving.inputs import Upload
from hf_any3d.serving.limits import Refused
from tests.cli.conftest import FILES, run
from tests.errors import raises
from tests.turns import some

from .builders import e57, las, npy, ply_square, ptx, spz, threemf_plate

ROWS = b"".join(b"%.3f %.3f %.3f\n" % tuple(row) for row in np.random.default_rng(0).random((30, 3)))
CUBE = np.random.default_rng(1).random((9, 3))


def archive(name, content=b"x"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr(name, content)
    return file.getvalue()


# What a file is by its content -> a word that names it.
CONTENTS = {
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(200)),
    "JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(90),
    "PDF": b"%PDF-1.7\n%\xe2\xe3\n1 0 obj",
    "HTML": b"<!DOCTYPE html>\n<html><body>404</body></html>",
    "gzip": gzip.compress(b"LASF" + bytes(400)),
    "bzip2": b"BZh91AY&SY" + bytes(90),
    "zip": archive("scan.ply", ply_square("ascii")),
    "USDZ": archive("scene.usdc"),
    "spreadsheet": archive("xl/workbook.xml"),
    "SOG": archive("means_l.webp"),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "UTF-16": "x y z\n1 2 3\n".encode("utf-16"),
    "FBX": b"Kaydara FBX Binary  \0\x1a\0" + bytes(60),
    "Blender": b"BLENDER-v300" + bytes(60),
    "COLLADA": b'<?xml version="1.0"?>\n<COLLADA xmlns="http://x">\n</COLLADA>',
    "DWG": b"AC1032" + bytes(90),
    "DXF": b"  0\r\nSECTION\r\n  2\r\nHEADER\r\n",
    "STEP": b"ISO-10303-21;\nHEADER;\nFILE_SCHEMA(('AUTOMOTIVE_DESIGN'));",
    "IFC": b"ISO-10303-21;\nHEADER;\nFILE_SCHEMA(('IFC4'));",
    "3D Studio": b"MM" + struct.pack("<IHI", 99, 2, 10) + bytes(60),
    "CloudCompare": b"CCB2" + bytes(60),
    "packet capture": b"\xd4\xc3\xb2\xa1\2\0\4\0" + bytes(60),
    "ROS": b"#ROSBAG V2.0\n" + bytes(60),
    "EPT": b'{"bounds": [0, 1], "dataType": "laszip", "hierarchyType": "json"}',
    "Potree": b'{"version": "2.0", "name": "a", "hierarchy": {"firstChunkSize": 22}}',
    "3D Tiles tileset index": b'{"asset": {"version": "1.0"}, "geometricError": 1, "root": {}}',
}
# Content of our own formats by their types; of rows of text and OBJ, which have no signature, the type is to be told.
KNOWN = {
    "ply": ply_square("ascii"),
    "las": las(False)[1],
    "e57": e57(),
    "npy": npy(CUBE),
    "pcd": (FILES / "chair.pcd").read_bytes(),
    "glb": (FILES / "bottle.glb").read_bytes(),
    "npz": (FILES / "chair.npz").read_bytes(),
    "off": (FILES / "lamp.off").read_bytes(),
    "stl": (FILES / "lamp.stl").read_bytes(),
    "3mf": threemf_plate(),
    "spz": spz(CUBE, CUBE, [255] * 9),
    "ptx": ptx((np.c_[np.arange(6.0)[:, None] + [1, 2, 3], np.ones(6)], np.eye(4))),
}
UNSIGNED = {"txt": ROWS, "obj": b"# made\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"}
# Endings of other programs, unusual ones, and none.
FOREIGN = [ending for ending in _ENDINGS if ending not in FORMATS]
OTHERS = ["xyzrgb", "dat", "neu", "foo", "", "las.gz", "LAS.BAK"]


def said_by_python(name: str, data: bytes, folder: Path) -> str:
    path = folder / name
    path.write_bytes(data)
    with pytest.raises(PointCloudFileError) as refusal:
        read_point_cloud(path)
    return str(refusal.value).removeprefix(f"{path}: ")


def said_by_file_object(name: str, data: bytes, folder: Path) -> str:
    file = io.BytesIO(data)
    file.name = name
    with pytest.raises(PointCloudFileError) as refusal:
        read_point_cloud(file)
    return str(refusal.value).removeprefix(f"{name}: ")


def said_by_run(name: str, data: bytes, folder: Path) -> str:
    (folder / name).write_bytes(data)
    with pytest.raises(PointCloudFileError) as refusal:
        InputFile(str(folder / name)).read()
    return str(refusal.value).removeprefix(f"{folder / name}: ")


def said_by_service(name: str, data: bytes, folder: Path) -> str:
    del folder
    with pytest.raises(Refused) as refusal:
        Upload(name, data).read(ServeLimits())
    return refusal.value.message.removeprefix(f"{name}: ")


def said_by_feature(name: str, data: bytes, folder: Path) -> str:
    (folder / name).write_bytes(data)
    with pytest.raises(PointCloudFileError) as refusal:
        feature = PointCloud()
        feature.decode_example(feature.encode_example(str(folder / name)))
    return str(refusal.value).removeprefix(f"{folder / name}: ")


DOORS = (said_by_file_object, said_by_run, said_by_service, said_by_feature)


# Every third one, as all are looked up in the same tables.
_ALL, _FOREIGN = [*supported_file_types(), *FOREIGN, *OTHERS], [*FOREIGN, "foo", ""]
ENDINGS = some(_ALL, left_out=set(_ALL) - set(_ALL[::3]))
WITHOUT_A_READER = some(_FOREIGN, left_out=set(_FOREIGN) - set(_FOREIGN[::3]) - {"foo", ""})


@pytest.mark.parametrize("ending", ENDINGS)
def test_content_is_told_in_the_same_words_under_every_ending(ending, tmp_path):
    words = {}
    for what, data in CONTENTS.items():
        said = said_by_python(f"scan.{ending}".rstrip("."), data, tmp_path)
        assert "\n" not in said and len(said) < 200, said
        words[what] = said
    # A container says less than the ending of a program.
    containers = ("zip", "HDF5") if foreign_ending(f"a.{ending}") else ()
    for what, said in words.items():
        if what not in containers:
            assert what in said and said == words_of_content(what)


@cache
def words_of_content(what: str) -> str:
    with pytest.raises(PointCloudFileError) as refusal:
        read_point_cloud(CONTENTS[what], file_type="las")
    return str(refusal.value).partition(": ")[2]


@pytest.mark.parametrize("ending", WITHOUT_A_READER)
def test_every_door_says_the_same_of_an_ending_and_names_a_step(ending, tmp_path):
    name = f"scan.{ending}".rstrip(".")
    data = b"\x01\x02\x03\x04 of some program" * 9
    said = said_by_python(name, data, tmp_path)
    # A step, and no list of all endings
    assert re.search(r"; (export|unpack|save|convert|pass|expected|end|write|open) ", said), said
    assert len(re.findall(r"\.\w+", said)) < 6
    for door in DOORS:
        own = r'pass "file_type": "\1" beside its url' if door is said_by_service else r"\g<0>"
        expected = re.sub(r'pass file_type="(\w+)"', own, said)
        assert door(name, data, tmp_path) == expected, door.__name__


@pytest.mark.parametrize(
    "name", ["scan.usdz", "scan.fbx", "scan.las.gz", "scan.rcp", "scan.foo", "scan.xyzrgb", "b.las"]
)
def test_commands_say_the_same_with_options_of_their_own(name, tmp_path):
    data = {"las": gzip.compress(b"x"), "xyzrgb": ROWS}.get(name.split(".")[1], b"\1\2 of some program" * 9)
    if name == "b.las":
        data = KNOWN["ply"]
    said = said_by_python(name, data, tmp_path)
    for command in (["predict"], ["data", "check"], ["show"], ["features"]):
        code, out, err = run(*command, tmp_path / name)
        text = out + err
        assert code and "file_type" not in text
        assert re.sub(r'file_type="(\w+)"', r"--file-type \1", said) in text, (command, text)
    if name != "b.las":
        _, _, err = run("train", tmp_path / name)
        assert re.sub(r'pass file_type="(\w+)"', r"end its name with .\1", said) in err
    # Rows of answers, too
    _, out, _ = run("data", "check", tmp_path / name, "--json")
    assert "file_type" not in out
    # Commands without the option read what the ending says.
    (tmp_path / "few" / "a").mkdir(parents=True)
    (tmp_path / "few" / "a" / name).write_bytes(data)
    _, out, err = run("train", "--data", tmp_path / "few", "--output", tmp_path / "model")
    assert "--file-type" not in out + err and "file_type" not in out + err


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("ending", ["dat", "foo", "rcp", "fbx", "bak", "json", ""])
def test_known_content_under_another_ending_is_read_at_every_door(kind, ending, tmp_path):
    name = f"scan.{ending}".rstrip(".")
    data = KNOWN[kind]
    (tmp_path / name).write_bytes(data)
    expected = _read_or_error(data, kind)
    assert _read_or_error(tmp_path / name) == expected
    file = io.BytesIO(data)
    file.name = name
    assert _read_or_error(file) == expected
    if isinstance(expected, int):
        assert len(Upload(name, data).read(ServeLimits())) == expected
        feature = PointCloud()
        assert len(feature.decode_example(feature.encode_example(str(tmp_path / name)))["points"]) == expected


def _read_or_error(source, kind=None):
    try:
        return len(read_point_cloud(source, file_type=kind, label_file=False))
    except PointCloudFileError as error:
        return str(error).partition(": ")[2]


@pytest.mark.parametrize("kind", [*KNOWN, *UNSIGNED])
def test_known_content_under_a_wrong_ending_is_told_with_its_type(kind, tmp_path):
    data = (KNOWN | UNSIGNED)[kind]
    for ending in supported_file_types():
        if FORMATS[ending] in (FORMATS[kind], "bin") or {kind, ending} == {"spz", "3mf"}:
            continue
        if kind == "npz" and ending == "3mf":
            continue  # both are archives
        try:
            said = said_by_python(f"scan.{ending}", data, tmp_path)
        except pytest.fail.Exception:
            raise AssertionError(f"{kind} is read as {ending}") from None
        assert f'pass file_type="{kind}"' in said, (ending, said)
        assert len(read_point_cloud(tmp_path / f"scan.{ending}", file_type=kind))


@pytest.mark.parametrize("kind", UNSIGNED)
@pytest.mark.parametrize("ending", ["xyzrgb", "dat", "neu", "foo", ""])
def test_text_without_a_signature_names_its_type(kind, ending, tmp_path):
    name = f"scan.{ending}".rstrip(".")
    said = said_by_python(name, UNSIGNED[kind], tmp_path)
    assert f'pass file_type="{kind}"' in said
    assert len(read_point_cloud(tmp_path / name, file_type=kind)) >= 3


def test_a_service_names_its_own_field(tmp_path):
    said = said_by_service("scan.dat", ROWS, tmp_path)
    assert said.endswith("end its name with .txt")
    with pytest.raises(Refused) as refusal:
        Upload("cloud", ROWS).read(ServeLimits())
    assert '"file_type": "txt"' in refusal.value.message


def test_bytes_have_the_type_of_their_signature():
    for kind in ("ply", "las", "npy", "e57"):
        assert len(read_point_cloud(KNOWN[kind])) == len(read_point_cloud(KNOWN[kind], file_type=kind))


def test_a_folder_of_another_program_says_what_its_files_are(tmp_path):
    (tmp_path / "scan.rcs").write_bytes(b"\1\2")
    (tmp_path / "notes.md").write_text("of May")
    for command in (["predict"], ["data", "check"]):
        code, _, err = run(*command, tmp_path)
        assert code == 1 and "scan.rcs is an Autodesk ReCap scan; export it" in err


@pytest.mark.parametrize(("file_type", "rows"), [("bin", "16 or 20"), ("kitti", "16"), ("nuscenes", "20")])
def test_sweeps_that_are_cut_off_say_how_long_rows_are(file_type, rows):
    with raises(PointCloudFileError, naming=f"63 bytes; expected rows of {rows} bytes"):
        read_point_cloud(bytes(63), file_type=file_type)
