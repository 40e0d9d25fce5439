"""The datasets that released ACT models were fine-tuned on: names of classes, and how clouds were prepared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_any3d.data.catalog import modelnet40, s3dis as s3dis_rooms, scanobjectnn, shapenetpart
from hf_any3d.data.options import one_of


@dataclass(frozen=True)
class TrainedOn:
    """One dataset.

    Args:
        title: Name in model cards.
        kind: The kind of checkpoint that is trained on it.
        labels: Names of the classes or parts, in the order of the logits.
        num_groups: Published number of patches per cloud.
        processor: Settings of `PointCloudProcessor`.
        categories: Names of the categories of objects with the numbers of their parts.
        reported: The authors' results on it.
        remark: How preparation differs from that of the released program.
    """

    title: str
    kind: str
    labels: tuple[str, ...]
    num_groups: int
    processor: Mapping[str, Any]
    categories: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reported: str = ""
    remark: str = ""


# The programs sample by farthest points, with the rule of their kernel near the origin.
_FARTHEST = {"sampling": "farthest", "min_squared_norm": 1e-3}
DATASETS = {
    "scanobjectnn": TrainedOn(
        title="ScanObjectNN",
        kind="cls",
        labels=scanobjectnn.DATASET.class_names,
        num_groups=128,
        # Scans keep their size and place.
        processor={"num_points": 2048, "center": False, "scale": None, **_FARTHEST},
        reported="overall accuracies of 88.21 % (PB_T50_RS), 93.29 % (OBJ_BG) and 91.91 % (OBJ_ONLY)",
    ),
    "modelnet40": TrainedOn(
        title="ModelNet40",
        kind="cls",
        labels=modelnet40.CLASS_NAMES,
        num_groups=64,
        # Centered and scaled by all points, before some are sampled.
        processor={"num_points": 1024, "extent": "all", **_FARTHEST},
        reported="an overall accuracy of 93.70 %",
    ),
    "shapenetpart": TrainedOn(
        title="ShapeNetPart",
        kind="partseg",
        labels=shapenetpart.PART_NAMES,
        num_groups=128,
        processor={"num_points": 2048, "extent": "all"},
        categories=shapenetpart.CATEGORY_PARTS,
    ),
    "s3dis": TrainedOn(
        title="S3DIS",
        kind="semseg",
        labels=s3dis_rooms.CLASS_NAMES,
        num_groups=128,
        processor={"num_points": 2048, "center": "ground", "scale": None, "up_axis": "z", "block_size": 1.0},
        reported="61.2 % mIoU on area 5",
        remark="Blocks are centered on the mean of their points and stand on their lowest one; the released "
        "program centers them on the middle of the block and leaves heights above the floor of the room.",
    ),
}
# For models without labels: a random sample of a cloud, then centered and scaled.
UNLABELED = {"num_points": 1024}
NONE = "none"


def find_dataset(kind: str, num_labels: int, chosen: str | None = None) -> TrainedOn | None:
    """Return the dataset that a checkpoint of a kind was trained on: the chosen one, or the one with as many labels.

    None stands for labels that are numbers only.
    """
    of_kind = {name: trained_on for name, trained_on in DATASETS.items() if trained_on.kind == kind}
    if chosen is not None:
        return of_kind.get(one_of("dataset", chosen, [*of_kind, NONE]))
    # Numbers of labels are different in all of them.
    for trained_on in of_kind.values():
        if len(trained_on.labels) == num_labels:
            return trained_on
    return None
