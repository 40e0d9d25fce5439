"""Settings of ACT's models that their files imply: data sets, poolings of heads, adapters, teachers."""

import re

import pytest
import torch

from hf_any3d.conversions.act.adapters import _pooling
from hf_any3d.conversions.act.datasets import DATASETS, UNLABELED, choose_dataset
from tests.errors import raises

LABELS = {
    "scanobjectnn": ("cls", 15),
    "modelnet40": ("cls", 40),
    "shapenetpart": ("partseg", 50),
    "s3dis": ("semseg", 13),
}


def test_data_sets_are_chosen_by_kind_name_and_number_of_labels():
    assert list(DATASETS) == list(LABELS)
    for name, (kind, count) in LABELS.items():
        known = DATASETS[name]
        assert (known.name, known.kind, len(known.labels)) == (name, kind, count)
        assert choose_dataset(kind, None, count) is choose_dataset(kind, name, count) is known
        assert choose_dataset(kind, "none", count) is choose_dataset(kind, None, count + 1) is None
        message = f"dataset={name!r} has {count} labels, but the checkpoint 7; give none for labels without names"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            choose_dataset(kind, name, 7)
    with raises(ValueError, naming="dataset='s3dis'; expected one of scanobjectnn"):
        choose_dataset("cls", "s3dis", 13)
    assert [known.num_groups for known in DATASETS.values()] == [128, 64, 128, 128]
    farthest = {"sampling": "farthest", "min_squared_norm": 1e-3}
    assert [dict(known.processor) for known in DATASETS.values()] == [
        {"num_points": 2048, "center": False, "scale": None} | farthest,
        {"num_points": 1024, "extent": "all"} | farthest,
        {"num_points": 2048, "extent": "all"},
        {"num_points": 2048, "center": "ground", "scale": None, "up_axis": "z", "block_size": 1.0},
    ]
    assert UNLABELED == {"num_points": 1024} and len(DATASETS["shapenetpart"].categories) == 16


def head_of(features: int, labels: int = 15) -> dict[str, torch.Tensor]:
    """The tensors of a classifier of width 8 that tell what its head reads."""
    shapes = {
        "act.norm.weight": (8,),
        "classifier.hidden.0.weight": (4, features),
        "classifier.out.weight": (labels, 4),
    }
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("method", "features", "labels", "pooling"),
    [
        ("pointgst", 16, 15, ["cls", "max"]),
        ("idpt", 24, 15, ["cls", "prompt_mean", "max"]),
        ("idpt", 8, 15, ["prompt_mean"]),
        ("dapt", 24, 15, ["cls", "prompt_mean", "max"]),
        ("dapt", 16, 15, ["cls", "prompt_mean"]),
        ("dapt", 16, 40, ["cls", "max"]),
        ("ppt", 24, 40, ["cls", "mean", "prompt_mean"]),
    ],
)
def test_what_a_published_head_reads_is_known_by_its_width(method, features, labels, pooling):
    assert _pooling(method, head_of(features, labels), None) == pooling
