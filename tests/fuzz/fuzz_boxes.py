"""Damaged files of boxes: this package's JSON and table, Label Cloud, those of CVAT, and KITTI."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hf_any3d.data.annotations.annotation_files import write_boxes
from hf_any3d.data.annotations.box_files import (
    Boxes,
    NamedBox,
    read_boxes_json,
    read_boxes_table,
    read_datumaro,
    read_kitti,
    read_label_cloud,
    read_supervisely,
    read_tracklets,
)
from hf_any3d.data.files import PointCloudFileError, read_point_cloud
from tests.data.annotations import test_annotation_files as annotations
from tests.data.catalog import test_scans_with_boxes as seeds
from tests.fuzz.damage import mutate
from tests.fuzz.target import Target


def _kitti(path: Path) -> list[NamedBox]:
    split = path.parents[1]
    read_point_cloud(split / "velodyne" / f"{path.stem}.bin", file_type="kitti")
    return read_kitti(split / "label_2" / f"{path.stem}.txt", split / "calib" / f"{path.stem}.txt")


def _tracklets(path: Path) -> Boxes:
    return read_tracklets(path.with_name("tracklet_labels.xml"))


def _label_cloud_vertices(folder: Path) -> None:
    annotations.label_cloud(folder, "vertices", 0, vertices=annotations.corners())


# Program -> what writes its files, which of them are read, and the reader of one.
KINDS: dict[str, tuple[Callable[[Path], object], str, Callable[[Path], Boxes | list[NamedBox]]]] = {
    "own": (seeds.write_own, "boxes.json", read_boxes_json),
    "answers": (seeds.write_answers, "boxes.json", read_boxes_json),
    "table": (seeds.write_table, "boxes.parquet", read_boxes_table),
    "label cloud": (seeds.write_label_cloud, "labels/*.json", read_label_cloud),
    "datumaro": (seeds.write_datumaro, "annotations/*.json", read_datumaro),
    "label cloud vertices": (_label_cloud_vertices, "labels/a.json", read_label_cloud),
    "supervisely": (
        lambda folder: write_boxes(folder, annotations.BOXES, "supervisely"),
        "ds0/ann/*.json",
        read_supervisely,
    ),
    "kitti raw": (lambda folder: write_boxes(folder, annotations.BOXES, "kitti-raw"), "*_l*", _tracklets),
    "kitti": (seeds.write_kitti, "*/*", _kitti),
}


class DamagedBoxes(Target):
    """Files of one program; a refusal names the file, and what is read are boxes."""

    refusals = (PointCloudFileError,)
    inputs = 100

    def __init__(self, kind: str):
        self.name = f"boxes {kind}"
        self.write, self.pattern, self.read = KINDS[kind]

    def prepare(self, folder: Path) -> None:  # noqa: D102
        self.write(folder)
        self.files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.names = sorted(str(path.relative_to(folder)) for path in folder.glob(self.pattern))
        assert self.read(folder / self.names[0])

    def make(self, generator: np.random.Generator, folder: Path) -> tuple[str, bytes]:  # noqa: D102
        name = str(generator.choice(self.names))
        return name, mutate(self.files[name], generator, self.files[str(generator.choice(self.names))])

    def attempt(self, case: tuple[str, bytes], folder: Path) -> None:  # noqa: D102
        name, damaged = case
        for file in self.names:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(damaged if file == name else self.files[file])
        found = self.read(folder / name)
        for box in found if isinstance(found, list) else [box for own in found.values() for box in own]:
            assert isinstance(box.label, str) and box.label and len(box.numbers) == 7
            assert np.isfinite(box.numbers).all() and min(box.numbers[3:6]) > 0

    def check_refusal(self, error: BaseException, case: tuple[str, bytes], folder: Path) -> None:  # noqa: D102
        assert str(folder) in str(error) and len(str(error)) < 1000


TARGETS = [DamagedBoxes(kind) for kind in KINDS]
