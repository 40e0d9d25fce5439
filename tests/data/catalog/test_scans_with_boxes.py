"""Folders of scans with boxes in every layout, and what is wrong with them."""

import json
import math
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_any3d import load_point_dataset
from hf_any3d.data.files import PointCloudFileError
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.modeling.layers.boxes import points_in_boxes
from tests.errors import raises

BOX = {"label": "chair", "center": [1.0, 2.0, 0.5], "size": [0.6, 0.4, 1.0], "heading": 0.3}


def scan() -> np.ndarray:
    """Points on a floor, and 40 inside the box."""
    generator = np.random.default_rng(0)
    inside = (generator.random((40, 3)) - 0.5) * BOX["size"]
    cos, sin = math.cos(BOX["heading"]), math.sin(BOX["heading"])
    inside[:, :2] = inside[:, :2] @ np.array([[cos, sin], [-sin, cos]])
    floor = np.concatenate([generator.uniform(-3, 3, (60, 2)), np.full((60, 1), -0.2)], axis=1)
    return np.concatenate([inside + BOX["center"], floor]).astype(np.float32)


def check(row: dict) -> None:
    """Check that the box holds the points of the object, and no others."""
    boxes = torch.as_tensor(np.asarray(row["boxes"])).double()
    inside = points_in_boxes(torch.from_numpy(row["points"]).double(), boxes, tolerance=1e-4)[0]
    assert inside[:40].all() and not inside[40:].any()
    assert np.asarray(row["box_labels"]).tolist() == [0]


def write_own(folder):
    np.save(folder / "room.npy", scan())
    (folder / "boxes.json").write_text(json.dumps({"room.npy": [BOX]}))


def write_answers(folder):
    np.save(folder / "room.npy", scan())
    box = {name: BOX[name] for name in ("center", "size", "heading")}
    found = [{"file": "room.npy", "boxes": [{"label": "chair", "score": 0.7, "box": box}]}]
    (folder / "boxes.json").write_text(json.dumps(found))


def write_table(folder):
    np.save(folder / "room.npy", scan())
    pq.write_table(pa.Table.from_pylist([{"file": "room.npy", **BOX}]), folder / "boxes.parquet")


def write_label_cloud(folder):
    np.save(folder / "room.npy", scan())
    (folder / "labels").mkdir()
    box = {
        "name": "chair",
        "centroid": dict(zip("xyz", BOX["center"], strict=True)),
        "dimensions": dict(zip(("length", "width", "height"), BOX["size"], strict=True)),
        "rotations": {"x": 0, "y": 0, "z": 360 + math.degrees(BOX["heading"])},
    }
    (folder / "labels" / "room.json").write_text(json.dumps({"filename": "room.npy", "objects": [box]}))


def write_datumaro(folder):
    np.save(folder / "room.npy", scan())
    (folder / "annotations").mkdir()
    cuboid = {"type": "cuboid_3d", "label_id": 1, "position": BOX["center"], "scale": BOX["size"]}
    cuboid["rotation"] = [0, 0, BOX["heading"]]
    labels = {"label": {"labels": [{"name": "table"}, {"name": "chair"}]}}
    items = [{"id": "room", "annotations": [cuboid, {"type": "label", "label_id": 0}]}]
    (folder / "annotations" / "default.json").write_text(json.dumps({"categories": labels, "items": items}))


def write_kitti(folder):
    for place in ("velodyne", "label_2", "calib"):
        (folder / place).mkdir()
    points = np.concatenate([scan(), np.ones((100, 1), np.float32)], axis=1)
    (folder / "velodyne" / "000007.bin").write_bytes(points.astype("<f4").tobytes())
    # The camera looks along x, its x points right and its y down.
    (folder / "calib" / "000007.txt").write_text(
        "P0: 1 2 3\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0.1 0 0 -1 0.2 1 0 0 0.3\n"
    )
    length, width, height = BOX["size"]
    x, y, z = BOX["center"]
    bottom = (-y + 0.1, -(z - height / 2) + 0.2, x + 0.3)
    angle = -BOX["heading"] - math.pi / 2
    numbers = " ".join(map(str, (0, 0, 0, 0, 0, 0, 0, height, width, length, *bottom, angle)))
    (folder / "label_2" / "000007.txt").write_text(f"chair {numbers}\nDontCare -1 -1\n")


@pytest.mark.parametrize(
    "write", [write_own, write_answers, write_table, write_label_cloud, write_datumaro, write_kitti]
)
def test_every_layout_gives_the_same_box(write, tmp_path):
    write(tmp_path)
    rows = load_point_dataset("scans_with_boxes", data_dir=tmp_path, split="train")
    assert len(rows) == 1
    assert rows.features["box_labels"].feature.names == ["chair"]
    check(rows[0])


def test_splits_are_folders_and_classes_may_be_chosen(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        np.save(tmp_path / split / "room.npy", scan())
        boxes = [BOX, {**BOX, "label": "dog"}]
        (tmp_path / split / "boxes.json").write_text(json.dumps({"room.npy": boxes}))
    splits = load_point_dataset("scans_with_boxes", data_dir=tmp_path, classes=["chair"])
    assert list(splits) == ["train", "test"]
    check(splits["test"][0])
    both = load_point_dataset("scans_with_boxes", data_dir=tmp_path)
    assert both["train"].features["box_labels"].feature.names == ["chair", "dog"]


def test_scans_that_nothing_names_are_counted(tmp_path):
    write_own(tmp_path)
    (tmp_path / "more").mkdir()
    for name in ("a.npy", "b.npy", "more/c.npy", "more/d.npy"):
        np.save(tmp_path / name, scan())
    (tmp_path / "readme.txt").write_text("1 2 3\n")
    told = "4 of 5 point files are skipped, since no boxes name them: a.npy, b.npy, more/c.npy, …"
    with pytest.warns(UserWarning, match=told):
        assert len(load_point_dataset("scans_with_boxes", data_dir=tmp_path, split="train")) == 1
    empty = {name: [] for name in ("a.npy", "b.npy", "more/c.npy", "more/d.npy")}
    (tmp_path / "boxes.json").write_text(json.dumps({"room.npy": [BOX], **empty}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert len(load_point_dataset("scans_with_boxes", data_dir=tmp_path, split="train")) == 5


def test_files_with_another_up_axis_are_turned(tmp_path):
    np.save(tmp_path / "room.npy", turn_up_axis(scan(), "z", "y"))
    center = turn_up_axis(np.array([BOX["center"]]), "z", "y")[0].tolist()
    (tmp_path / "boxes.json").write_text(json.dumps({"room.npy": [{**BOX, "center": center}]}))
    check(load_point_dataset("scans_with_boxes", data_dir=tmp_path, up_axis="y", split="train")[0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"size": [1, 0, 1]}, r"room.npy: box 0: size is \[1, 0, 1\]; expected three finite numbers above 0"),
        ({"center": [1, 2]}, "center is .*; expected three finite numbers"),
        ({"center": [1, 2, float("nan")]}, "expected three finite numbers"),
        ({"heading": 90}, "heading is 90; expected radians"),
        ({"label": 3}, "label is 3; expected the name of a class"),
    ],
)
def test_wrong_boxes_are_named(change, match, tmp_path):
    np.save(tmp_path / "room.npy", scan())
    (tmp_path / "boxes.json").write_text(json.dumps({"room.npy": [{**BOX, **change}]}))
    with pytest.raises(ValueError, match=match):
        load_point_dataset("scans_with_boxes", data_dir=tmp_path)


def test_boxes_outside_of_the_cloud_are_kept_unless_all_are(tmp_path):
    np.save(tmp_path / "room.npy", scan())
    far = {**BOX, "center": [1000.0, 2000.0, 500.0]}  # in millimeters
    (tmp_path / "boxes.json").write_text(json.dumps({"room.npy": [BOX, far]}))
    assert len(load_point_dataset("scans_with_boxes", data_dir=tmp_path, split="train")[0]["boxes"]) == 2
    (tmp_path / "boxes.json").write_text(json.dumps({"room.npy": [far]}))
    match = r"room.npy: none of 1 boxes reaches the points, which are from .* to .*; .* center at 1000, 2000, 500\. "
    with pytest.raises(ValueError, match=match + "Expected boxes in the frame and units of the file"):
        load_point_dataset("scans_with_boxes", data_dir=tmp_path)


def test_scans_in_map_coordinates_keep_their_shape(tmp_path):
    place = np.array([500_000.12, 4_649_776.25, 100.5])
    np.savetxt(tmp_path / "room.xyz", scan() + place, fmt="%.5f")
    center = (place + BOX["center"]).tolist()
    (tmp_path / "boxes.json").write_text(json.dumps({"room.xyz": [{**BOX, "center": center}]}))
    row = load_point_dataset("scans_with_boxes", data_dir=tmp_path, split="train")[0]
    check(row)
    np.testing.assert_allclose(np.diff(row["points"], axis=0), np.diff(scan(), axis=0), atol=1e-4)
    (tmp_path / "boxes.json").write_text(json.dumps({"room.xyz": [BOX]}))
    with pytest.raises(ValueError, match="none of 1 boxes reaches the points, which are from 49.*; .* at 1, 2, 0.5"):
        load_point_dataset("scans_with_boxes", data_dir=tmp_path)


def test_marks_of_windows_are_no_part_of_a_class(tmp_path):
    write_kitti(tmp_path)
    for file in tmp_path.glob("*/*.txt"):
        file.write_text(file.read_text().replace("\n", "\r\n"), encoding="utf-8-sig")
    rows = load_point_dataset("scans_with_boxes", data_dir=tmp_path, split="train")
    assert rows.features["box_labels"].feature.names == ["chair"]
    check(rows[0])
    write_own(tmp_path)
    (tmp_path / "boxes.json").write_text(json.dumps({"room.npy": [BOX]}), encoding="utf-8-sig")
    check(load_point_dataset("scans_with_boxes", data_dir=tmp_path, split="train")[0])


def test_no_box_is_lost_without_a_word(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", scan())
    turned = {"label": "chair", "center": BOX["center"], "size": BOX["size"], "yaw": 0.3}
    row = {"file": "a.npy", "boxes": [BOX]}
    for text in (
        f'{{"a.npy": [{json.dumps(BOX)}], "a.npy": []}}',
        json.dumps([row, {"file": "a.npy", "boxes": []}]),
        json.dumps([row, 7]),
        json.dumps([row, {"boxes": [BOX]}]),
        json.dumps([row, {"file": "b.npy"}]),
        json.dumps({"a.npy": [turned]}),
    ):
        (tmp_path / "boxes.json").write_text(text)
        with pytest.raises(PointCloudFileError):
            load_point_dataset("scans_with_boxes", data_dir=tmp_path)
    # What could not be read when it was looked at has no boxes yet.
    (tmp_path / "boxes.json").write_text(json.dumps([row, {"file": "b.npy", "error": "b.npy: damaged"}]))
    assert load_point_dataset("scans_with_boxes", data_dir=tmp_path, split="train")["file"][:] == ["a.npy"]
    (tmp_path / "boxes.json").unlink()
    for rows in ([{"file": "a.npy", **turned}], [{"file": None, **BOX}]):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "boxes.parquet")
        with pytest.raises(PointCloudFileError):
            load_point_dataset("scans_with_boxes", data_dir=tmp_path)


@pytest.mark.parametrize(("write", "place"), [(write_label_cloud, "labels"), (write_datumaro, "annotations")])
def test_two_files_with_boxes_of_one_scan_are_refused(write, place, tmp_path):
    write(tmp_path)
    (file,) = (tmp_path / place).glob("*.json")
    (tmp_path / place / "second.json").write_text(file.read_text())
    with pytest.raises(PointCloudFileError):
        load_point_dataset("scans_with_boxes", data_dir=tmp_path)


def test_tilted_boxes_are_refused(tmp_path):
    write_label_cloud(tmp_path)
    file = tmp_path / "labels" / "room.json"
    file.write_text(file.read_text().replace('"x": 0, "y": 0', '"x": 10, "y": 0'))
    with pytest.raises(ValueError):
        load_point_dataset("scans_with_boxes", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("write", "name", "change"),
    [
        (write_own, "boxes.json", ("0.6", "6" * 400)),
        (write_datumaro, "annotations/default.json", ('"rotation": [0, 0, 0.3]', '"rotation": 3')),
        (write_datumaro, "annotations/default.json", ('{"type": "label", "label_id": 0}', "7")),
        (write_kitti, "calib/000007.txt", ("R0_rect: 1", "R0_rect: 0")),
        (write_kitti, "calib/000007.txt", ("R0_rect: 1", "R0_rect: nan")),
    ],
)
def test_damaged_files_of_other_programs_are_named(write, name, change, tmp_path):
    write(tmp_path)
    text = (tmp_path / name).read_text()
    assert change[0] in text
    (tmp_path / name).write_text(text.replace(*change))
    with pytest.raises(PointCloudFileError):
        load_point_dataset("scans_with_boxes", data_dir=tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_point_dataset("scans_with_boxes", data_dir=tmp_path)
    (tmp_path / "boxes.json").write_text(json.dumps({"hall.ply": [BOX]}))
    with pytest.raises(ValueError):
        load_point_dataset("scans_with_boxes", data_dir=tmp_path)
    (tmp_path / "boxes.json").write_text("{")
    with pytest.raises(ValueError):
        load_point_dataset("scans_with_boxes", data_dir=tmp_path)
    with raises(ValueError, naming="coco"):
        load_point_dataset("scans_with_boxes", data_dir=tmp_path, layout="coco")
