"""Settings of ACT's models that their files imply: data sets, poolings of heads, adapters, teachers."""

import re

import pytest
import torch

from hf_any3d.conversions.act.adapters import _pooling
from hf_any3d.conversions.act.convert import TEACHERS, _released_settings
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


@pytest.mark.parametrize(
    ("method", "features", "labels", "chosen", "message"),
    [
        ("pointgst", 24, 15, None, "setting of PointGST for as many classes does; expected 2 * 8, or give --pooling"),
        ("idpt", 16, 15, None, "the head reads 16 features, which no published setting of IDPT for as many classes"),
        ("idpt", 9, 15, None, "expected 1 * 8 or 3 * 8, or give --pooling"),
        ("dapt", 16, 16, None, "expected 3 * 8, or give --pooling"),
        ("dapt", 8, 15, None, "expected 2 * 8 or 3 * 8, or give --pooling"),
        ("ppt", 24, 15, "cls,max", "pooling='cls,max'; the head reads 24 features, of tokens with 8 channels"),
        ("ppt", 17, 15, "cls,max", "pooling='cls,max'; the head reads 17 features, of tokens with 8 channels"),
    ],
)
def test_heads_of_other_widths_are_named(method, features, labels, chosen, message):
    assert _pooling(method, head_of(16), "max,mean") == ["max", "mean"]
    with pytest.raises(ValueError, match=f"{re.escape(message)}$|{re.escape(message)}"):
        _pooling(method, head_of(features, labels), chosen)


# Names in the programs -> ours, in a model of three blocks.


def test_teachers_have_the_settings_of_their_programs():
    released = {"sampling_min_squared_norm": 1e-3, "noise_in_eval": True}
    deep, none = {"prompt_depth": "deep", "num_prompts": 4}, {"prompt_depth": "shallow", "num_prompts": 0}
    bert = {"position_injection": "input", "use_input_norm": False, "teacher_dropout": True}
    for kind, found, more in (
        (None, none, {}),
        ("vit", deep, {}),
        ("vit", none, {"detach_teacher": True}),
        ("clip_vision_model", deep, {"attention_axis": "batch"}),
        ("clip_vision_model", none, {"detach_teacher": True}),
        ("bert", deep, bert),
        ("bert", none, bert | {"detach_teacher": True}),
    ):
        assert _released_settings(kind, found) == released | more
    image = {"image_size": 1, "patch_size": 1, "num_channels": 1}
    words = {"vocab_size": 1, "max_position_embeddings": 1, "type_vocab_size": 1}
    expected = {
        "vit": (None, {"hidden_act": "gelu"}, 1e-6, image),
        "clip_vision_model": ("vision", {"hidden_act": "quick_gelu"}, 1e-5, image),
        "bert": (None, {"hidden_act": "gelu"}, 1e-12, words),
    }
    assert {
        kind: (one.tower, one.config, one.layer_norm_eps, one.no_embeddings) for kind, one in TEACHERS.items()
    } == expected
