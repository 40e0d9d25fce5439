"""Objects of a batch, their matches and the loss, against loops over layers, clouds and boxes."""

import pytest
import torch

from hf_any3d.modeling.detr3d import Detr3DConfig
from hf_any3d.modeling.detr3d.losses import BoxPredictions, BoxTargets, detection_loss
from tests.tiny_detr3d import SIZES

LAYERS, QUERIES, BINS, CLASSES = 2, 5, 4, 3
WEIGHTS = {
    "class_cost": 1.1,
    "center_cost": 0.7,
    "giou_cost": 1.7,
    "objectness_cost": 0.4,
    "class_loss_weight": 1.3,
    "no_object_weight": 0.35,
    "center_loss_weight": 4.5,
    "size_loss_weight": 1.6,
    "giou_loss_weight": 0.9,
    "heading_class_loss_weight": 0.15,
    "heading_residual_loss_weight": 0.55,
    "focal_gamma": 1.5,
}


def configured(**settings) -> Detr3DConfig:
    """Return a config whose weights all differ from each other and from the defaults."""
    return Detr3DConfig(**(SIZES | {"num_queries": QUERIES, "num_heading_bins": BINS} | WEIGHTS | settings))


def drawn(dtype=torch.float64):
    """Return predictions of some layers for three clouds, the objects, and where the clouds are."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    low, extent = random(3, 1, 3) - 2, 1 + random(3, 1, 3)
    shape = (LAYERS, 3, QUERIES)
    centers, sizes = random(*shape, 3), 0.2 + 0.5 * random(*shape, 3)
    headings = 6 * random(*shape, 1) - 3
    predictions = BoxPredictions(
        4 * random(*shape, CLASSES + 1) - 2,
        centers,
        sizes,
        4 * random(*shape, BINS),
        2 * random(*shape, BINS) - 1,
        torch.cat([centers * extent + low, sizes * extent, headings], dim=-1),
    )
    labels = []
    for row, count in enumerate((3, 0, 2)):
        places = random(count, 3) * extent[row] + low[row]
        boxes = torch.cat([places, 0.3 + random(count, 3), 6 * random(count, 1) - 2.9], dim=1)
        labels.append({"class_labels": torch.arange(count).flip(0), "boxes": boxes})
    predictions = BoxPredictions(*(part.to(dtype) for part in predictions))
    return predictions, labels, low.to(dtype), extent.to(dtype)


def test_losses_of_two_processes_have_that_of_all_their_clouds_as_their_mean(monkeypatch):
    config = configured()
    predictions, labels, low, extent = drawn()

    def loss_of(rows):
        own = BoxPredictions(*(part[:, rows] for part in predictions))
        targets = BoxTargets.checked(labels[rows], len(labels[rows]), config)
        return detection_loss(own, targets, low[rows], extent[rows], config)[0]

    expected = loss_of(slice(0, 3))
    # Three objects of two clouds, and two objects of one.
    processes = (slice(0, 2), slice(2, 3))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    sent = []
    for rows in processes:
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sent.append(sums.clone()))
        loss_of(rows)
    half = len(sent) // 2
    losses = []
    for rows, received in zip(processes, (iter(sent[half:]), iter(sent[:half])), strict=True):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums, other=received: sums.add_(next(other)))
        losses.append(loss_of(rows))
    assert float(sum(losses) / 2) == pytest.approx(float(expected), rel=1e-6)
