"""Annotations in the formats of programs for labeling: written here as these programs write them, and round trips."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest

from hf_any3d.data.annotations.annotation_files import BOX_FORMS, read_label_cloud_points, write_boxes
from hf_any3d.data.annotations.box_files import NamedBox, read_label_cloud
from hf_any3d.data.catalog.scans_with_boxes import boxes_of
from hf_any3d.data.files import PointCloudData, PointCloudFileError, read_point_cloud, write_point_cloud
from tests.cli.conftest import run
from tests.data.files.builders import las, pcd
from tests.errors import raises

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

BOXES = {
    "a.pcd": [
        NamedBox("car & trailer", (1.5, -2.25, 0.75, 4.0, 1.75, 1.5, 0.3)),
        NamedBox("dog", (0.0, 8.0, 0.25, 0.75, 0.25, 0.5, -3.0)),
    ],
    "b.pcd": [],
    "c.pcd": [NamedBox("dog", (2.0, 8.0, 0.25, 0.75, 0.25, 0.5, math.pi / 2))],
}


def plain(boxes):
    """Boxes by the names of their files without endings, rounded."""
    rounded = {}
    for file, own in boxes.items():
        rounded[file.split("/")[-1].partition(".")[0]] = [
            (box.label, np.round(box.numbers, 6).tolist()) for box in own
        ]
    return rounded


@pytest.mark.parametrize("form", BOX_FORMS)
def test_boxes_are_the_same_after_a_round_trip(form, tmp_path):
    written = write_boxes(tmp_path, BOXES, form)
    assert all(path.is_file() for path in written)
    assert plain(boxes_of(tmp_path)) == plain(BOXES)


@pytest.mark.parametrize("form", BOX_FORMS)
def test_the_command_converts_from_every_format_to_every_other(form, tmp_path):
    write_boxes(tmp_path / "one", BOXES, form)
    for other in BOX_FORMS:
        code, out, _ = run("data", "annotations", tmp_path / "one", "--to", other, "--output", tmp_path / other)
        assert code == 0 and "3 boxes of 3 clouds" in out
        assert plain(boxes_of(tmp_path / other)) == plain(BOXES)
    file = tmp_path / "json" / "boxes.json"
    assert run("data", "annotations", file, "--to", "datumaro", "--output", tmp_path / "new").code == 0
    assert "not empty" in run("data", "annotations", file, "--to", "datumaro", "--output", tmp_path / "new").err


def test_files_for_cvat_hold_what_its_own_tests_look_for(tmp_path):
    # cvat/apps/engine/tests/test_rest_api_3D.py of cvat-ai/cvat, `_check_dump_content` and `cuboid_example`.
    center, turn, size = (0.16, 0.20, -0.26), -0.14, (4.84, 4.48, 4.12)
    boxes = {"000001.pcd": [NamedBox("car", (*center, *size, turn))], "000002.pcd": []}
    write_boxes(tmp_path / "sly", boxes, "supervisely")
    found = {path.relative_to(tmp_path / "sly").as_posix() for path in (tmp_path / "sly").rglob("*.json")}
    assert found == {"key_id_map.json", "meta.json", "ds0/ann/000001.pcd.json", "ds0/ann/000002.pcd.json"}
    write_boxes(tmp_path / "kitti", boxes, "kitti-raw")
    root = ElementTree.parse(tmp_path / "kitti/tracklet_labels.xml").getroot()
    assert root.tag == "boost_serialization" and len(root.findall("./tracklets/item")) == 1
    # Its cuboids are center, rotation about x, y and z, and size; Datumaro passes them on as they are.
    write_boxes(tmp_path / "datumaro", boxes, "datumaro")
    (item, empty) = json.loads((tmp_path / "datumaro/annotations/default.json").read_text())["items"]
    (cuboid,) = item["annotations"]
    assert [*cuboid["position"], *cuboid["rotation"], *cuboid["scale"]] == pytest.approx([*center, 0, 0, turn, *size])
    assert empty["annotations"] == []


def label_cloud(folder, form, angle, **box):
    """A folder as Label Cloud writes it; `form` None stands for its early versions."""
    (folder / "labels").mkdir(parents=True)
    if form is not None:
        classes = {"classes": [{"name": "car", "id": 0, "color": "#FF0000"}], "default": 0, "type": "object_detection"}
        (folder / "labels" / "_classes.json").write_text(json.dumps({**classes, "format": form}))
    centroid = {
        "centroid": {"x": 1.0, "y": 2.0, "z": 3.0},
        "dimensions": {"length": 4.0, "width": 2.0, "height": 1.0},
        "rotations": {"x": 0.0, "y": 0.0, "z": angle},
    }
    content = {"folder": "pointclouds", "filename": "a.ply", "objects": [{"name": "car", **(box or centroid)}]}
    (folder / "labels" / "a.json").write_text(json.dumps(content))
    return folder / "labels" / "a.json"


@pytest.mark.parametrize(
    ("form", "angle", "heading"),
    [
        ("centroid_rel", 1.5, 1.5),
        ("centroid_abs", 1.5, math.radians(1.5)),
        ("centroid_abs", 270.0, -math.pi / 2),
        (None, 270.0, -math.pi / 2),
        (None, -1.5, -1.5),
        (None, 0.0, 0.0),
    ],
)
def test_angles_of_label_cloud_have_the_unit_of_its_format(form, angle, heading, tmp_path):
    file = label_cloud(tmp_path, form, angle)
    assert boxes_of(tmp_path)["a.ply"][0].numbers == pytest.approx((1, 2, 3, 4, 2, 1, heading))
    if form is None:
        assert read_label_cloud(file)["a.ply"][0].numbers[6] == pytest.approx(heading)


def test_angles_that_may_be_of_either_unit_are_refused(tmp_path):
    with raises(PointCloudFileError, naming="_classes.json"):
        boxes_of(label_cloud(tmp_path, None, 1.5).parents[1])


def corners(tilt=0.0):
    """Vertices of a box of 4 x 2 x 1 around (1, 2, 3) that is turned by 30 degrees, in the order of Label Cloud."""
    around = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]])
    box = np.array([(*place, up) for up in (-1, 1) for place in around]) * [2, 1, 0.5]
    cosine, sine = math.cos(math.pi / 6), math.sin(math.pi / 6)
    box = box @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    box[:, 2] += tilt * box[:, 0]
    return np.round(box + [1, 2, 3], 3).tolist()


def test_vertices_of_label_cloud_are_a_box_unless_it_is_tilted(tmp_path):
    label_cloud(tmp_path / "one", "vertices", 0, vertices=corners())
    found = boxes_of(tmp_path / "one")["a.ply"][0].numbers
    assert found == pytest.approx((1, 2, 3, 4, 2, 1, math.pi / 6), abs=2e-3)
    for name, wrong in (("tilted", corners(0.2)), ("few", corners()[:7])):
        label_cloud(tmp_path / name, "vertices", 0, vertices=wrong)
        with raises(PointCloudFileError, naming="vertices"):
            boxes_of(tmp_path / name)


def test_text_of_label_cloud_is_in_the_frame_that_its_format_names(tmp_path):
    label_cloud(tmp_path, "kitti_untransformed", 0).unlink()
    (tmp_path / "labels" / "a.txt").write_text("car 0 0 0 0 0 0 0 1.0 2.0 4.0 1.0 2.0 3.0 0.5\n")
    assert boxes_of(tmp_path)["a"] == [NamedBox("car", (1, 2, 3, 4, 2, 1, 0.5))]
    label_cloud(tmp_path / "other", "kitti", 0)
    (tmp_path / "other" / "labels" / "a.txt").write_text("car 0 0 0 0 0 0 0 1.0 2.0 4.0 1.0 2.0 3.0 0.5\n")
    with raises(PointCloudFileError, naming="calib"):
        boxes_of(tmp_path / "other")


def test_tracklets_of_kitti_itself_are_refused(tmp_path):
    """They have no list of frames, and mean other things by the same names."""
    write_boxes(tmp_path, BOXES, "kitti-raw")
    (tmp_path / "frame_list.txt").unlink()
    with raises(PointCloudFileError, naming="frame_list.txt"):
        boxes_of(tmp_path)


@pytest.mark.parametrize(
    ("form", "name", "old", "new"),
    [
        ("kitti-raw", "tracklet_labels.xml", "<first_frame>0<", "<first_frame>9<"),
        ("kitti-raw", "tracklet_labels.xml", "<w>", "<v>"),
        ("kitti-raw", "tracklet_labels.xml", "<rx>0.0<", "<rx>0.5<"),
        ("kitti-raw", "tracklet_labels.xml", "<!DOCTYPE boost_serialization>", '<!DOCTYPE a [<!ENTITY b "c">]>'),
        ("supervisely", "ds0/ann/a.pcd.json", '"classTitle"', '"title"'),
        ("supervisely", "ds0/ann/a.pcd.json", '"dimensions"', '"size"'),
        ("datumaro", "annotations/default.json", '"label_id": 1', '"label_id": 9'),
    ],
)
def test_damaged_files_are_named(form, name, old, new, tmp_path):
    write_boxes(tmp_path, BOXES, form)
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new))
    with raises(PointCloudFileError, naming=name):
        boxes_of(tmp_path)


def with_others(form, folder, *, boxes=True):
    """Add what is no box to the files of a format, and attributes of a box; return what the command says of them."""
    if form == "datumaro":
        path = folder / "annotations" / "default.json"
        content = json.loads(path.read_text())
        own = content["items"][0]["annotations"]
        own[0]["attributes"]["parked"] = True
        own[:] = own if boxes else []
        own += [{"type": kind} for kind in ("polygon", "label", "polygon", "points")]
        if not boxes:
            content["items"] = content["items"][:1]
        path.write_text(json.dumps(content))
        return "2 polygons, 1 label, 1 set of points"
    if form == "supervisely":
        path = folder / "ds0" / "ann" / "a.pcd.json"
        content = json.loads(path.read_text())
        content["objects"][0]["tags"] = [{"name": "parked"}]
        content["tags"] = [{"name": "rain"}]
        content["figures"] = content["figures"] if boxes else []
        content["objects"].append({"key": "road", "classTitle": "road", "tags": []})
        geometry = {"indices": [0, 2, 3]}
        content["figures"].append({"objectKey": "road", "geometryType": "point_cloud", "geometry": geometry})
        path.write_text(json.dumps(content))
        if not boxes:
            (folder / "ds0" / "ann" / "c.pcd.json").unlink()
        return "1 segment"
    if form == "kitti-raw":
        path = folder / "tracklet_labels.xml"
        told = "<attributes><attribute><name>parked</name><value>true</value></attribute></attributes></item></poses>"
        path.write_text(path.read_text().replace("</item></poses>", told, 1))
    if form == "label-cloud":
        path = folder / "labels" / "a.json"
        content = json.loads(path.read_text())
        content["objects"][0]["attributes"] = {"parked": True}
        path.write_text(json.dumps(content))
    if form == "json":
        path = folder / "boxes.json"
        content = json.loads(path.read_text())
        content["a.pcd"][0]["attributes"] = {"parked": True}
        path.write_text(json.dumps(content))
    return ""


@pytest.mark.parametrize("form", BOX_FORMS)
def test_what_is_annotated_beside_boxes_is_named_and_counted(form, tmp_path):
    write_boxes(tmp_path / "one", BOXES, form)
    others = with_others(form, tmp_path / "one")
    code, out, _ = run("data", "annotations", tmp_path / "one", "--to", "json", "--output", tmp_path / "made")
    assert code == 0 and "3 boxes of 3 clouds; left out: " in out and "attributes of 1 box" in out and others in out
    if others:
        write_boxes(tmp_path / "none", BOXES, form)
        with_others(form, tmp_path / "none", boxes=False)
        done = run("data", "annotations", tmp_path / "none", "--to", "json", "--output", tmp_path / "empty")
        assert done.code == 1 and "no boxes, but " in done.err and others in done.err


def test_regions_of_kitti_without_labels_are_counted(tmp_path):
    region = "DontCare -1 -1 -10 0 0 0 0 -1 -1 -1 -1000 -1000 -1000 -10\n"
    for name, text in (
        ("label_2", f"{region}Car 0 0 0 0 0 0 0 1.5 1.6 4 1 2 9 0.1\n"),
        ("calib", "R0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 1 0 0 0 0 1 0 0 0 0 1 0\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "000001.txt").write_text(text)
    code, out, _ = run("data", "annotations", tmp_path, "--to", "json", "--output", tmp_path / "made")
    assert code == 0 and "1 box of 1 cloud; left out: 1 region called DontCare" in out


def test_segments_are_labels_of_points(tmp_path):
    write_boxes(tmp_path / "one", BOXES, "supervisely")
    with_others("supervisely", tmp_path / "one")
    (tmp_path / "one" / "ds0" / "pointcloud").mkdir()
    for name in BOXES:
        points = np.arange(15.0, dtype="<f4").reshape(5, 3)
        stored = pcd("x y z", "4 4 4", "F F F", points.tobytes(), 5)
        (tmp_path / "one" / "ds0" / "pointcloud" / name).write_bytes(stored)
    code, out, _ = run("data", "annotations", tmp_path / "one", "--to", "ply", "--output", tmp_path / "made")
    assert code == 0 and "labels of the points of 3 clouds; left out: " in out and "3 boxes" in out
    assert read_point_cloud(tmp_path / "made" / "a.ply").labels.tolist() == [0, -1, 0, 0, -1]
    assert json.loads((tmp_path / "made" / "classes.json").read_text()) == {"0": "road"}
    path = tmp_path / "one" / "ds0" / "ann" / "a.pcd.json"
    path.write_text(path.read_text().replace("[0, 2, 3]", "[0, 2, 5]"))
    done = run("data", "annotations", tmp_path / "one", "--to", "ply", "--output", tmp_path / "wrong")
    assert done.code == 1 and "a segment of 'road' names points 0 to 5 of 5" in done.err


def test_labels_of_points_go_to_label_cloud_and_back(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "tile.las").write_bytes(las(False, 7, 40)[1])
    cloud = read_point_cloud(tmp_path / "scans" / "tile.las")
    made = tmp_path / "made"
    assert run("data", "annotations", tmp_path / "scans", "--to", "label-cloud", "--output", made).code == 0
    classes = json.loads((made / "labels" / "_classes.json").read_text())
    assert classes["type"] == "semantic_segmentation" and classes["classes"][2]["name"] == "ground"
    assert [entry["id"] for entry in classes["classes"]] == list(range(int(cloud.labels.max()) + 1))
    stored = np.fromfile(made / "labels" / "segmentation" / "tile.bin", np.int8)
    assert (stored == cloud.labels).all()
    assert len(read_point_cloud(made / "pointclouds" / "tile.ply")) == len(cloud)
    # A correction in Label Cloud.
    stored[:5] = 6
    stored.tofile(made / "labels" / "segmentation" / "tile.bin")
    assert run("data", "annotations", made, "--to", "ply", "--output", tmp_path / "back").code == 0
    back = read_point_cloud(tmp_path / "back" / "tile.ply")
    assert back.labels.tolist() == [6] * 5 + cloud.labels[5:].tolist()
    assert json.loads((tmp_path / "back" / "classes.json").read_text())["6"] == "building"


def test_labels_that_do_not_fit_are_refused(tmp_path):
    points = np.random.default_rng(0).normal(size=(5, 3))
    for name, labels in (("none", None), ("negative", [-100, 0, 0, 0, 0]), ("many", [128, 0, 0, 0, 0])):
        write_point_cloud(tmp_path / f"{name}.npz", PointCloudData(points, labels=labels))
        done = run("data", "annotations", tmp_path / f"{name}.npz", "--to", "label-cloud", "--output", tmp_path / name)
        assert done.code == 1 and f"{name}.npz" in done.err and "labels" in done.err
    (tmp_path / "labels" / "segmentation").mkdir(parents=True)
    (tmp_path / "labels" / "segmentation" / "a.bin").write_bytes(bytes(4))
    with raises(PointCloudFileError, naming="a.bin"):
        read_label_cloud_points(tmp_path, "a.ply", 5)
    write_point_cloud(tmp_path / "good.npz", PointCloudData(points, labels=[0, 1, 2, 3, 4]))
    done = run("data", "annotations", tmp_path / "good.npz", "--to", "datumaro", "--output", tmp_path / "boxes")
    assert done.code == 1 and "--to" in done.err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
         "property float scalar_Classification\nend_header\n0 0 0 2\n1 0 0 6\n0 1 0 5\n"),
        ("a.txt", "//X Y Z Classification\n3\n0 0 0 2.000000\n1 0 0 6.000000\n0 1 0 5.000000\n"),
    ],
)  # fmt: skip
def test_scalar_fields_of_cloudcompare_are_labels(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert read_point_cloud(tmp_path / name).labels.tolist() == [2, 6, 5]


TWO_PARTS = """\
o chair
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 0 0 -1
{seat} the seat
f 1 2 3 4
{leg} leg
f 1 2 5
"""


@pytest.mark.parametrize("statement", ["g", "o", "usemtl"])
def test_parts_of_meshes_with_names_are_labels_of_faces(statement, tmp_path):
    (tmp_path / "meshes").mkdir()
    text = TWO_PARTS.format(seat=statement, leg=statement)
    (tmp_path / "meshes" / "a.obj").write_text(text)
    # A part that no class is named for: its faces are not learned.
    (tmp_path / "meshes" / "b.obj").write_text(text.replace("the seat", "gum"))
    code, out, _ = run("data", "annotations", tmp_path / "meshes", "--to", "ply", "--output", tmp_path / "all")
    assert code == 0 and "labels of 2 meshes" in out
    names = {int(code): name for code, name in json.loads((tmp_path / "all" / "classes.json").read_text()).items()}
    # `o` names the part that the first line has, too, but no face is in it.
    assert names == {0: "gum", 1: "leg", 2: "the seat"}
    assert read_point_cloud(tmp_path / "all" / "a.ply").face_labels.tolist() == [2, 2, 1]
    assert read_point_cloud(tmp_path / "all" / "b.ply").face_labels.tolist() == [0, 0, 1]
    called = json.dumps({"7": "the seat", "3": "leg"})
    code, *_ = run(
        *("data", "annotations", tmp_path / "meshes", "--to", "ply", "--output", tmp_path / "named", "--names", called)
    )
    assert code == 0
    assert read_point_cloud(tmp_path / "named" / "a.ply").face_labels.tolist() == [7, 7, 3]
    assert read_point_cloud(tmp_path / "named" / "b.ply").face_labels.tolist() == [-1, -1, 3]


def test_meshes_without_such_parts_are_refused(tmp_path):
    (tmp_path / "a.obj").write_text(TWO_PARTS.format(seat="g", leg="g").replace("the seat", "leg"))
    arguments = ("data", "annotations", tmp_path / "a.obj", "--output", tmp_path / "new")
    code, _, err = run(*arguments, "--to", "ply")
    assert code != 0 and "no groups, objects or materials of two names" in err
    code, _, err = run(*arguments, "--to", "ply", "--names", '{"1": "tooth"}')
    assert code != 0 and "called tooth" in err
    code, _, err = run(*arguments, "--to", "label-cloud")
    assert code != 0 and "labels of meshes go to ply" in err


def test_labels_of_vertices_stand_in_a_json_file_beside_each_mesh(tmp_path):
    # As in Teeth3DS: numbers of teeth by the FDI notation, 0 for the gum.
    text = TWO_PARTS.format(seat="g", leg="g")
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    for name in ("a", "b"):
        (meshes / f"{name}.obj").write_text(text)
        content = {"id_patient": name, "jaw": "lower", "labels": [0, 0, 44, 44, 45], "instances": [0, 0, 1, 1, 2]}
        (meshes / f"{name}.json").write_text(json.dumps(content))
    arguments = ("data", "annotations", meshes, "--to", "ply", "--output")
    assert run(*arguments, tmp_path / "new", "--names", '{"0": "gum"}').code == 0
    labeled = read_point_cloud(tmp_path / "new" / "b.ply")
    assert labeled.labels.tolist() == [0, 0, 44, 44, 45] and labeled.face_labels is None
    (meshes / "b.json").write_text(json.dumps({"labels": [0, 44]}))
    code, _, err = run(*arguments, tmp_path / "short")
    assert code != 0 and "2 labels for the 5 vertices of b.obj" in err
    (meshes / "b.json").unlink()
    code, _, err = run(*arguments, tmp_path / "missing")
    assert code != 0 and "b.json: no such file" in err
