"""Objects of a batch, their matches and the loss, against loops over layers, clouds and boxes."""

import itertools
import math

import pytest
import torch

from hf_any3d.modeling.detr3d import Detr3DConfig
from hf_any3d.modeling.detr3d.losses import (
    BoxPredictions,
    BoxTargets,
    detection_loss,
)
from hf_any3d.modeling.layers.boxes import box_giou, published_giou, wrap_heading
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
NAMES = ("center", "size", "heading_class", "heading_residual", "giou", "class", "cardinality")


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


def expected_loss(predictions, labels, low, extent, config) -> dict[str, float]:
    """Return the weighted terms of all layers, by loops over everything."""
    overlap = box_giou
    if config.published_overlap:
        is_turned = any(bool((one["boxes"][:, 6] < 0).any()) for one in labels)

        def overlap(ours, theirs):
            return published_giou(ours, theirs, is_turned)

    total = max(1, sum(len(one["class_labels"]) for one in labels))
    terms = {}
    for layer in range(LAYERS):
        sums = dict.fromkeys(NAMES, 0.0)
        rows, weights = [], []
        for cloud, one in enumerate(labels):
            logits = predictions.logits[layer, cloud]
            chances, boxes = logits.softmax(dim=-1), one["boxes"]
            ours = predictions.boxes[layer, cloud]
            objects = list(zip(one["class_labels"].tolist(), boxes, strict=True))
            centers = (boxes[:, :3] - low[cloud]) / extent[cloud]
            sizes = boxes[:, 3:6] / extent[cloud]

            costs = [
                [
                    float(
                        -config.class_cost * chances[query, kind]
                        - config.objectness_cost * (1 - chances[query, -1])
                        + config.center_cost * (predictions.centers[layer, cloud, query] - center).abs().sum()
                        - config.giou_cost * overlap(ours[query], box)
                    )
                    for (kind, box), center in zip(objects, centers, strict=True)
                ]
                for query in range(QUERIES)
            ]
            orders = itertools.permutations(range(QUERIES), len(objects))
            best = min(orders, key=lambda order, c=costs: sum(c[query][n] for n, query in enumerate(order)))
            wanted = [CLASSES] * QUERIES
            for number, query in enumerate(best):
                kind, box = objects[number]
                wanted[query] = kind
                at = (layer, cloud, query)
                sums["center"] += float((predictions.centers[at] - centers[number]).abs().sum())
                sums["size"] += float((predictions.sizes[at] - sizes[number]).abs().sum())
                width = 2 * math.pi / BINS
                turns = float(wrap_heading(box[6])) / width
                bin_ = round(turns)
                rest = 2 * (turns - bin_)
                sums["heading_class"] -= float(predictions.heading_logits[at].log_softmax(dim=-1)[bin_ % BINS])
                error = abs(float(predictions.heading_residuals[at][bin_ % BINS]) - rest)
                sums["heading_residual"] += 0.5 * error**2 if error < 1 else error - 0.5
                sums["giou"] += 1 - float(overlap(ours[query], box))
            for query, kind in enumerate(wanted):
                chance = float(chances[query, kind])
                weights.append(config.no_object_weight if kind == CLASSES else 1.0)
                rows.append(-math.log(chance) * (1 - chance) ** config.focal_gamma)
            found = sum(int(row.argmax()) != CLASSES for row in logits)
            sums["cardinality"] += abs(found - len(objects)) / len(labels)
        sums["class"] = sum(w * row for w, row in zip(weights, rows, strict=True)) / sum(weights)
        for name, value in sums.items():
            weight = 1.0 if name == "cardinality" else getattr(config, f"{name}_loss_weight")
            share = 1 if name in ("class", "cardinality") else total
            if weight:
                terms[f"loss_{name}" + (f"_{layer}" if layer < LAYERS - 1 else "")] = weight * value / share
    return terms


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"published_overlap": True},
        {"center_cost": 0.0, "focal_gamma": 0.0, "objectness_cost": 0.0},
        {"giou_loss_weight": 0.0, "size_loss_weight": 0.0},
        {"class_loss_weight": 0.0, "heading_class_loss_weight": 0.0},
    ],
    ids=lambda settings: "-".join(settings) or "all",
)
def test_the_loss_is_the_sum_of_its_terms_over_layers_clouds_and_boxes(settings):
    config = configured(**settings)
    predictions, labels, low, extent = drawn()
    targets = BoxTargets.checked(labels, 3, config)
    loss, terms = detection_loss(predictions, targets, low, extent, config)
    expected = expected_loss(predictions, labels, low, extent, config)
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected, rel=1e-6)
    assert float(loss) == pytest.approx(sum(v for name, v in expected.items() if "cardinality" not in name), rel=1e-6)
    assert loss.shape == () and not any(value.requires_grad for value in terms.values())


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
