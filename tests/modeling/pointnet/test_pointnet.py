"""PointNet and PointNet++ against plain loops, and their errors."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_any3d.modeling.pointnet import (
    PointNet2Config,
    PointNet2Model,
    PointNetConfig,
    PointNetForPointCloudClassification,
)
from tests.common.case import spread_weights, varied_clouds
from tests.errors import raises


@torch.no_grad()
def test_levels_of_pointnet2_are_maxima_over_balls():
    config = PointNet2Config(
        in_channels=4,
        num_centers=(6, 3),
        radii=(0.5, 0.9),
        num_neighbors=(4, 8),
        level_widths=((8,), (8, 8)),
        hidden_sizes=(12,),
    )
    model = PointNet2Model(config).eval()
    spread_weights(model)
    (cloud,) = clouds = varied_clouds(1, 40, 4)
    xyz, features = cloud[:, :3], cloud[:, 3:]
    states = [cloud]
    for level, radius, most in zip(model.levels, config.radii, config.num_neighbors, strict=True):
        chosen = [0]
        while len(chosen) < level.num_centers:
            chosen.append(int(torch.cdist(xyz, xyz[chosen]).min(dim=1).values.argmax()))
        pooled = []
        for center in xyz[chosen]:
            inside = ((xyz - center).norm(dim=1) <= radius).nonzero()[:most, 0]
            rows = torch.cat([xyz[inside] - center, features[inside]], dim=1)
            for layer in level.layers:
                rows = layer(rows)
            pooled.append(rows.amax(dim=0))
        xyz, features = xyz[chosen], torch.stack(pooled)
        states.append(features)
    last = model.layers[0](torch.cat([xyz, features], dim=1))
    output = model(clouds, output_hidden_states=True)
    for found, expected in zip(output.hidden_states, [*states, last], strict=True):
        torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(output.pooler_output[0], last.amax(dim=0))
    assert torch.equal(output.centers[0], xyz)
    assert model(clouds[:, :6]).centers.shape == (1, 3, 3)
    with raises(ValueError, naming="6 or more points"):
        model(clouds[:, :5])


def test_training_refuses_recomputed_layers(tmp_path):
    model = PointNetForPointCloudClassification(PointNetConfig())
    arguments = TrainingArguments(str(tmp_path), activation_checkpointing=True, report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        Trainer(model, arguments, train_dataset=[{"points": varied_clouds(1)[0], "labels": 0}]).train()
