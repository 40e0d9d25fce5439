"""ScanNet's and SUN RGB-D's boxes in VoteNet's layout, from the stored files of the released program."""

import numpy as np
import pytest
import torch

from hf_any3d import load_point_dataset
from hf_any3d.data.files import PointCloudFileError
from hf_any3d.modeling.layers.boxes import box_corners
from tests.modeling.aligned_case import AlignedCase
from tests.modeling.detr3d.reference_case import camera_corners

CASE = AlignedCase("detr3d_data")


def write_scannet(root):
    """Write a scene of the case in each split, and name one without files."""
    scenes, lists = root / "scannet_train_detection_data", root / "meta_data"
    scenes.mkdir()
    lists.mkdir()
    stored = {name: CASE.expected[f"scannet.{name}"].numpy() for name in ("vert", "bbox")}
    for scene in ("scene0000_00", "scene0001_00"):
        np.save(scenes / f"{scene}_vert.npy", stored["vert"])
        np.save(scenes / f"{scene}_bbox.npy", stored["bbox"])
    (lists / "scannetv2_train.txt").write_text("scene0000_00\nscene0009_00\n")
    (lists / "scannetv2_val.txt").write_text("scene0001_00\n")
    return root


def write_sunrgbd(root):
    """Write a scene of the case in each split."""
    stored = CASE.expected
    for split, name in (("train", "005051"), ("val", "000001")):
        folder = root / f"sunrgbd_pc_bbox_votes_50k_v1_{split}"
        folder.mkdir()
        np.savez(folder / f"{name}_pc.npz", pc=stored["sunrgbd.pc"].numpy())
        np.save(folder / f"{name}_bbox.npy", stored["sunrgbd.bbox"].numpy())
    return root


@pytest.fixture
def scannet(tmp_path):
    return write_scannet(tmp_path)


@pytest.fixture
def sunrgbd(tmp_path):
    return write_sunrgbd(tmp_path)


def stored_boxes(run: str) -> tuple[np.ndarray, np.ndarray]:
    """Corners and classes of the validation item of the released program."""
    present = CASE.expected[f"{run}.gt_box_present"].bool().numpy()
    names = ("gt_box_corners", "gt_box_sem_cls_label")
    corners, labels = (CASE.expected[f"{run}.{name}"].numpy()[present] for name in names)
    return corners, labels


@pytest.mark.parametrize("name", ["scannet_detection", "sunrgbd"])
def test_boxes_are_those_of_the_released_program(name, request, cache_dir):
    folder = request.getfixturevalue(name.removesuffix("_detection"))
    splits = load_point_dataset(name, data_dir=folder, cache_dir=cache_dir, verify=False)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1, "validation": 1}
    row = splits["validation"][0]
    corners, labels = stored_boxes(f"{name.removesuffix('_detection')}.val")
    ours = camera_corners(box_corners(torch.as_tensor(np.asarray(row["boxes"])).double()))
    np.testing.assert_allclose(ours, corners, atol=2e-5)
    assert np.asarray(row["box_labels"]).tolist() == labels.tolist()
    assert row["points"].shape[1] == 3 and 200 < row["colors"].max() <= 255
    assert splits["train"].features["box_labels"].feature.num_classes == (18 if "scannet" in name else 10)


@pytest.mark.slow
def test_colors_are_those_of_the_files(scannet, sunrgbd, cache_dir):
    def first(name, folder, **options):
        return load_point_dataset(name, data_dir=folder, split="train", cache_dir=cache_dir, verify=False, **options)[
            0
        ]

    for name, folder, stored in (
        ("scannet_detection", scannet, CASE.expected["scannet.vert"].numpy()),  # from 0 to 255
        ("sunrgbd", sunrgbd, CASE.expected["sunrgbd.pc"].numpy() * ([1.0] * 3 + [255.0] * 3)),
    ):
        row = first(name, folder)
        np.testing.assert_allclose(row["points"], stored[:, :3], atol=1e-6)
        np.testing.assert_allclose(row["colors"], stored[:, 3:6], atol=0.51)
        assert "colors" not in first(name, folder, colors=False)
    path = sunrgbd / "sunrgbd_pc_bbox_votes_50k_v1_train" / "005051_pc.npz"
    np.savez(path, pc=CASE.expected["sunrgbd.pc"].numpy()[:, :3])
    with pytest.raises(PointCloudFileError):
        first("sunrgbd", sunrgbd)


@pytest.mark.parametrize(
    ("name", "message"),
    [("scannet_detection", "scannet_detection.*train.* 1 .*1,?201"), ("sunrgbd", "sunrgbd.*train.* 1 .*5,?285")],
)
def test_another_number_of_scenes_than_published_is_refused(name, message, request, cache_dir):
    folder = request.getfixturevalue(name.removesuffix("_detection"))
    with pytest.raises(ValueError, match=message):
        load_point_dataset(name, data_dir=folder, cache_dir=cache_dir)


def test_a_scene_without_boxes_is_a_row(scannet, cache_dir):
    np.save(scannet / "scannet_train_detection_data" / "scene0000_00_bbox.npy", np.zeros((0, 8)))
    rows = load_point_dataset("scannet_detection", data_dir=scannet, split="train", cache_dir=cache_dir, verify=False)
    assert len(rows[0]["boxes"]) == 0 == len(rows[0]["box_labels"])


@pytest.mark.parametrize(
    "change",
    [
        lambda boxes: boxes * [1, 1, 1, 0, 1, 1, 1],
        lambda boxes: boxes * 0 + 2,
        lambda boxes: boxes[:, :5],
        lambda boxes: boxes * np.nan,
    ],
)
def test_wrong_files_are_named(scannet, change, cache_dir):
    path = scannet / "scannet_train_detection_data" / "scene0000_00_bbox.npy"
    np.save(path, change(np.load(path)[:, :7]))
    with pytest.raises(PointCloudFileError):
        load_point_dataset("scannet_detection", data_dir=scannet, cache_dir=cache_dir, verify=False)
