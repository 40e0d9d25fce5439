"""Copies, depth views, descriptors and features of frozen models, against plain computations of all their numbers."""

import math

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from hf_any3d import (
    PointFeaturesConfig,
    PointFeaturesForPointCloudClassification,
    PointFeaturesModel,
)
from hf_any3d.modeling.point_features.depth_views import depth_views
from hf_any3d.modeling.point_features.descriptors import NORMAL_BINS, describe
from hf_any3d.modeling.point_features.modeling_point_features import make_copies
from tests.common.case import varied_clouds
from tests.modeling.point_features.test_descriptors import plainly_described, shares
from tests.modeling.point_features.test_views_and_copies import SIDES
from tests.tiny_features import tiny_features


def fraction(number: int, prime: int, shift: int = 0, other: int = 1) -> float:
    """The share of a whole that multiples of two square roots leave."""
    return (number * math.sqrt(prime) + shift * math.sqrt(other)) % 1


def plain_copies(cloud: np.ndarray, config: PointFeaturesConfig) -> np.ndarray:
    """The copies of a cloud `(points, channels)`, point by point."""
    copies = [cloud]
    xyz = cloud[:, :3]
    radius = np.linalg.norm(xyz - xyz.mean(axis=0), axis=1).max()
    up = "xyz".index(config.up_axis)
    low, high = config.copy_scale
    for number in range(1, config.copies):
        angle = math.radians(config.copy_turn) * (2 * fraction(number, 2) - 1)
        # Right-handed about the up axis.
        matrix = np.zeros((3, 3))
        first, second = (up + 1) % 3, (up + 2) % 3
        matrix[up, up] = 1
        matrix[first, first] = matrix[second, second] = math.cos(angle)
        matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
        factors = [low + (high - low) * fraction(number, prime) for prime in (3, 5, 7)]
        copy = cloud.copy()
        for place in range(len(cloud)):
            noise = [fraction(place + 1, prime, number, other) for prime, other in ((11, 13), (13, 17), (17, 2))]
            moved = (2 * np.array(noise) - 1) * config.copy_jitter * radius
            copy[place, :3] = matrix @ xyz[place] * factors + moved
            if config.normals:
                copy[place, 3:6] = matrix @ cloud[place, 3:6]
        copies.append(copy)
    return np.stack(copies)


@pytest.mark.parametrize(
    "settings",
    [
        {"up_axis": "x", "copy_turn": 180.0},
        {"up_axis": "y", "copy_scale": (0.7, 1.6), "copy_jitter": 0.0},
        {"up_axis": "z", "copy_turn": 50.0, "copy_scale": (0.5, 0.8), "copy_jitter": 0.3, "normals": True},
    ],
    ids=lambda settings: settings["up_axis"],
)
def test_copies_are_turned_scaled_and_jittered_by_fractions_of_square_roots(settings):
    config = PointFeaturesConfig(features=["descriptors"], copies=5, in_channels=7, **settings)
    clouds = varied_clouds(2, 9, 7) + 0.5
    found = make_copies(clouds, config)
    for cloud, own in zip(clouds.double().numpy(), found, strict=True):
        np.testing.assert_allclose(own.numpy(), plain_copies(cloud, config), atol=1e-5)
    assert make_copies(clouds.double(), config).dtype == torch.float64


def plain_views(cloud: np.ndarray, grid: int, up_axis: str) -> np.ndarray:
    """The six views of a cloud, point by point."""
    vertical = "xyz".index(up_axis)
    xyz = np.stack([cloud[:, (vertical + shift) % 3] for shift in (2, 0, 1)], axis=1)
    xyz = xyz - (xyz.min(axis=0) + xyz.max(axis=0)) / 2
    xyz /= np.linalg.norm(xyz, axis=1).max()
    views = np.zeros((6, grid, grid))
    for view, axes in enumerate(SIDES.values()):
        for point in xyz:
            right, up, near = (float(point @ np.array(axis)) for axis in axes)
            column, row = (round((place + 1) / 2 * (grid - 1)) for place in (right, -up))
            views[view, row, column] = max(views[view, row, column], 0.2 + 0.8 * (near + 1) / 2)
        drawn = views[view].copy()
        for row in range(grid):
            for column in range(grid):
                if drawn[row, column] == 0:
                    around = drawn[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
                    views[view, row, column] = around.max()
    return views


@pytest.mark.parametrize(("up_axis", "size"), [("x", 12), ("y", 20), ("z", 70)])
def test_views_are_drawn_point_by_point(up_axis, size):
    clouds = varied_clouds(2, 30, 4).double() * 3 + 1
    found = depth_views(clouds, size, 6, up_axis)
    expected = torch.stack([torch.from_numpy(plain_views(c[:, :3].numpy(), min(size, 64), up_axis)) for c in clouds])
    if size > 64:  # enlarged
        expected = torch.nn.functional.interpolate(expected, (size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert torch.equal(depth_views(clouds, size, 2, up_axis), found[:, :2])
    assert depth_views(torch.ones(1, 4, 3), 8).isfinite().all()  # no radius


@pytest.mark.parametrize(("up_axis", "order"), [("x", [1, 0, 2]), ("z", [0, 2, 1])])
def test_descriptors_with_another_up_axis_are_those_of_a_cloud_put_upright(up_axis, order):
    sizes, generator = torch.tensor([1.0, 0.6, 0.8]), torch.Generator().manual_seed(0)
    clouds = torch.rand(2, 90, 3, generator=generator) ** 2 * sizes
    for cloud, found in zip(clouds.double().numpy(), describe(clouds, up_axis), strict=True):
        expected = plainly_described(cloud[:, order])
        # Lengths, deviations and skewness stay along the axes of the cloud.
        for start in (0, 14, 17):
            expected[start : start + 3] = expected[start : start + 3][order]
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("up_axis", ["x", "y", "z"])
def test_normals_are_described_by_their_angles_to_the_up_axis_and_to_each_other(up_axis):
    clouds = varied_clouds(2, 90, 7)
    found = describe(clouds, up_axis, normals=True)[:, -2 * NORMAL_BINS :]
    for cloud, own in zip(clouds.double().numpy(), found, strict=True):
        normals = cloud[:, 3:6] / np.linalg.norm(cloud[:, 3:6], axis=1, keepdims=True)
        steps = [1 + len(normals) * share // 1024 for share in (633, 242, 874, 483)]
        facing = np.concatenate([(np.roll(normals, -step, axis=0) * normals).sum(axis=1) for step in steps])
        expected = [
            shares(np.abs(values), 0, 1, NORMAL_BINS).mean(axis=0)
            for values in (normals[:, "xyz".index(up_axis)], facing)
        ]
        np.testing.assert_allclose(own.numpy(), np.concatenate(expected), atol=1e-5)


@torch.no_grad()
def test_features_are_standardized_means_over_the_copies_and_the_encoder_tells_of_the_clouds_themselves():
    model = tiny_features(PointFeaturesModel, copies=4, up_axis="z")
    model.encoder.set_attn_implementation("eager")
    clouds = varied_clouds(3)
    output = model(clouds, output_hidden_states=True, output_attentions=True)
    copies = make_copies(clouds, model.config).unbind(1)
    found = [torch.cat([describe(copy, "z"), model.encoder(copy).pooler_output], dim=1) for copy in copies]
    expected = (torch.stack(found).mean(dim=0) - model.mean) / model.scale
    torch.testing.assert_close(output.pooler_output, expected, atol=1e-3, rtol=1e-3)
    own = model.encoder(clouds, output_hidden_states=True, output_attentions=True)
    for name in ("last_hidden_state", "centers"):
        torch.testing.assert_close(output[name], own[name], atol=1e-4, rtol=1e-4)
    for name in ("hidden_states", "attentions"):
        assert len(output[name]) == len(own[name])
        for ours, theirs in zip(output[name], own[name], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    plain = model(clouds)
    assert set(plain) == {"last_hidden_state", "pooler_output", "centers"}
    model.config.output_hidden_states = True
    assert set(model(clouds)) == {*plain, "hidden_states"} and set(model(clouds, output_hidden_states=False)) == {
        *plain
    }


def tiny_vision(kind: str, **settings):
    torch.manual_seed(0)
    if kind == "resnet":
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
        return ResNetModel(ResNetConfig(**sizes, **settings)).eval()
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    return ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "of_vision", "image_size", "expected_size"),
    [("vit", {}, None, 32), ("resnet", {}, 40, 40), ("resnet", {"image_size": [24, 48]}, None, 48)],
)
def test_views_are_normalized_and_read_by_the_vision_model(kind, of_vision, image_size, expected_size):
    vision = tiny_vision(kind, **of_vision)
    settings = {"image_mean": (0.1, 0.3, 0.6), "image_std": (0.5, 0.7, 1.1), "up_axis": "z", "views": 3, "copies": 2}
    model = PointFeaturesModel.from_parts_pretrained(
        vision=vision, features=("views",), image_size=image_size, **settings
    )
    clouds = varied_clouds(2, 40)
    seen = []
    hook = model.vision.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    found = model(clouds).pooler_output
    hook.remove()
    images = depth_views(clouds, expected_size, 3, "z")
    (pixels,) = seen
    assert pixels.shape == (6, 3, expected_size, expected_size)
    for channel, (mean, std) in enumerate(zip(settings["image_mean"], settings["image_std"], strict=True)):
        torch.testing.assert_close(pixels[:, channel], (images.flatten(0, 1) - mean) / std)
    rows = []
    for cloud in range(2):
        states = vision(pixel_values=pixels[3 * cloud : 3 * cloud + 3]).last_hidden_state
        rows.append(states.mean(dim=(0, 1)) if kind == "vit" else states.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(found, torch.stack(rows), atol=1e-5, rtol=1e-4)
    assert model.config.widths() == {"views": found.shape[1]} and model.config.encoder_config is None


@torch.no_grad()
def test_a_classifier_divides_its_logits_and_scores_clouds_that_were_seen_from_one_side(tmp_path):
    model = tiny_features(PointFeaturesForPointCloudClassification, temperature=0.25)
    clouds, labels = varied_clouds(3), torch.tensor([2, 0, 1])
    features = model.point_features(clouds).pooler_output
    output = model(clouds, labels=labels)
    assert set(output) == {"loss", "logits"} and model.side_head is None
    torch.testing.assert_close(output.logits, 4 * model.classifier(features))
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    weight = torch.linspace(-0.02, 0.03, model.config.hidden_size)
    model.set_side_head(weight, -0.3)
    assert model.config.one_sided and model.side_head.weight.shape == (1, len(weight))
    expected = (features @ weight - 0.3).sigmoid()
    torch.testing.assert_close(model(clouds).one_sided, expected)
    model.set_side_head(2 * weight, 0.5)
    torch.testing.assert_close(model(clouds).one_sided, (2 * features @ weight + 0.5).sigmoid())
    model.save_pretrained(tmp_path)
    again = PointFeaturesForPointCloudClassification.from_pretrained(tmp_path)
    assert torch.equal(again(clouds).one_sided, model(clouds).one_sided)
    for wrong in ((weight[1:], 0.0), (weight * math.inf, 0.0), (weight, math.nan)):
        with pytest.raises(ValueError, match=rf"weight has shape .*; expected \({len(weight)},\), and finite numbers"):
            model.set_side_head(*wrong)
