"""Cosines and the contrastive loss of clouds and texts, also over several processes, and what subclasses define."""

import importlib

import pytest
import torch
from torch.nn.functional import normalize

from hf_any3d.modeling.openshape import OpenShapeForZeroShotPointCloudClassification
from hf_any3d.modeling.patchalign3d import PatchAlign3DForZeroShotPointCloudSegmentation
from hf_any3d.modeling.point_encoders.aligned_encoders.modeling_aligned_encoders import TextAlignment
from hf_any3d.modeling.point_encoders.zero_shot import (
    contrastive_loss,
    matching_pairs,
    pair_loss,
    scaled_cosines,
    unit_vectors_like,
)
from hf_any3d.modeling.uni3d import Uni3DForZeroShotPointCloudClassification
from tests.common.case import varied_clouds
from tests.tiny_aligned import tiny_aligned

MODULE = importlib.import_module("hf_any3d.modeling.point_encoders.zero_shot")


def units(count: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_cosines_are_not_rounded_by_autocast():
    clouds, texts, scale = units(3, 0), units(4, 1), torch.tensor(30.0)
    expected = scale * clouds @ texts.T
    with torch.autocast("cpu", torch.bfloat16):
        found = scaled_cosines(scale, clouds, texts)
    assert torch.equal(found, expected)
    vectors = unit_vectors_like(clouds, 7 * texts.double())
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, texts)


@pytest.mark.parametrize("given", [False, True])
def test_processes_compare_the_clouds_and_texts_of_all(given, monkeypatch):
    clouds, texts, scale = units(3, 0), units(3, 1), torch.tensor(9.0)
    others = units(3, 2), units(3, 3), torch.arange(3), torch.arange(3)
    own = torch.tensor([7, 1, 7]) if given else torch.arange(6, 9)
    monkeypatch.setattr(MODULE, "is_joined", lambda: True)
    monkeypatch.setattr(MODULE.distributed, "get_rank", lambda: 2)
    rest = iter(others)
    # As of two processes, of which this one has the rank 2: no label occurs in both unless it is given.
    monkeypatch.setattr(MODULE, "gather_rows", lambda rows: torch.cat([rows, next(rest)]))
    found = pair_loss(scale, clouds, texts, own if given else None)
    labels = torch.cat([own, torch.arange(3)])
    logits = scale * torch.cat([clouds, others[0]]) @ torch.cat([texts, others[1]]).T
    torch.testing.assert_close(found, contrastive_loss(logits, matching_pairs(labels, labels)))
    assert next(rest, None) is None


def test_a_scale_is_bounded_only_where_there_is_a_bound():
    for largest, expected in ((None, 400.0), (100.0, 100.0), (500.0, 400.0)):
        alignment = TextAlignment(1 / 400, largest)
        vectors, scale = alignment(torch.tensor([[3.0, 4.0]]).half())
        assert scale.item() == pytest.approx(expected, rel=1e-5)
        assert vectors.dtype == torch.float32 and vectors.tolist() == [pytest.approx([0.6, 0.8], rel=1e-3)]


@torch.no_grad()
def test_features_are_the_same_where_outputs_are_tuples():
    patches = PatchAlign3DForZeroShotPointCloudSegmentation
    shapes = OpenShapeForZeroShotPointCloudClassification, Uni3DForZeroShotPointCloudClassification
    for model_class in (patches, *shapes):
        model = tiny_aligned(model_class)
        points = varied_clouds(2, channels=model.config.in_channels)
        owners = [model.base_model] if model_class is patches else [model, model.base_model]
        calls = [owner.get_point_features for owner in owners]
        calls += [model.get_patch_features] if model_class is patches else []
        expected = [call(points) for call in calls]
        model.config.return_dict = model.base_model.config.return_dict = False
        assert all(torch.equal(call(points), features) for call, features in zip(calls, expected, strict=True))
