"""Fit the small network of local features, so that it holds in places that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_any3d.modeling.layers.unknown_score import UnknownScore
from hf_any3d_survey.local_features.configuration_local_features import LocalFeaturesConfig
from hf_any3d_survey.local_features.modeling_local_features import LocalFeaturesForPointCloudSegmentation
from hf_any3d_survey.local_features.network import LearnedRows

# What differs most between few places is what a network would learn by heart.
NOISE = 0.2  # standard deviations
SMOOTHING = 0.05  # of labels
FORGOTTEN = 0.1  # share of rows that are learned as if returns, or colors, were not known
STEPS, OBJECT_STEPS, ADAPTED_STEPS, RATE, DECAY = 900, 400, 400, 3e-3, 1e-2
# Tiles learn as well from half as many rows at a time; the few steps of all others need more.
BATCH, LARGE_BATCH = 512, 1024
# Of a network that goes on from what it knows, so that few steps and a low rate are enough.
ADDED_STEPS, ADDED_RATE = 200, 1e-3
# Exponent of class balance: 0 counts points, 1 classes.
BALANCE = 0.5
_LEAST_SCALE = 1e-4
_STRIP = 16  # batches
_MOMENTS = 1 << 14  # rows, whose mean and spread are added up at a time
LEARNED_ROWS = 8192
"""Learned points that are stored with a model; with twice as many it learns no better once more."""
SURE = 0.8
"""Probability, before it is calibrated, from which on a label of the model's own is learned."""


@dataclass(frozen=True)
class Rows:
    """Features of points that are learned or judged.

    Attributes:
        features: (rows, features) float32.
        labels: (rows,) classes.
        tiles: (rows,) number of the tile of each.
        places: (rows,) number of its place.
        copies: (rows,) 0 for tiles as they are, others for thinned ones.
    """

    features: np.ndarray
    labels: np.ndarray
    tiles: np.ndarray
    places: np.ndarray
    copies: np.ndarray

    def part(self, kept: np.ndarray) -> Rows:
        """Return some of the rows."""
        # Numbers, not a mask: rows are then copied as a whole, several times as fast.
        numbers = np.flatnonzero(kept) if kept.dtype == bool else kept
        return Rows(*(values.take(numbers, axis=0) for values in vars(self).values()))

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Join rows of several tiles."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def weights_of(labels: np.ndarray, places: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the weight of each row by its label and place (rows,), 1 on the mean.

    All places count the same, and rare classes more.
    """
    counts = np.bincount(places)
    weights = 1 / counts[places]
    # (classes,), by places, not by points: a large tile does not decide what is rare.
    of_class = np.bincount(labels, weights, minlength=num_classes)
    balance = np.power(of_class.sum() / np.maximum(of_class, 1e-12), BALANCE)
    weights = weights * balance[labels]
    return weights / weights.mean()


def fit_network(
    rows: Rows,
    config: LocalFeaturesConfig,
    may_miss: Sequence[Sequence[int]] = (),
    seed: int = 0,
    steps: int = STEPS,
    start: LocalFeaturesForPointCloudSegmentation | None = None,
    batch: int = BATCH,
    kept: np.ndarray | None = None,
) -> LocalFeaturesForPointCloudSegmentation:
    """Fit a network to rows.

    Args:
        rows: What is learned.
        config: The configuration of the model.
        may_miss: Groups of features that are 0 now and then, as where a scan lacks what they are computed of.
        seed: Of weights, order and noise.
        steps: Steps of the optimizer.
        start: A network of the same features, whose weights are trained further at a lower rate; the classes of the
            configuration begin with its own.
        batch: Rows of a step.
        kept: Numbers of the rows that are learned, of which there is no copy; None for all.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        # Copied, so that folds do not change each other's.
        model = LocalFeaturesForPointCloudSegmentation(LocalFeaturesConfig.from_dict(config.to_dict()))
        core = model.local_features
        # (rows, features), and of those that are learned (kept,)
        features = torch.from_numpy(rows.features)
        numbers = torch.arange(len(features)) if kept is None else torch.from_numpy(kept)
        own = (rows.labels, rows.places) if kept is None else (rows.labels[kept], rows.places[kept])
        labels = torch.from_numpy(own[0])
        if start is None:
            parts = numbers.split(_MOMENTS)
            mean = sum(features.index_select(0, part).sum(dim=0, dtype=torch.double) for part in parts) / len(numbers)
            core.mean.copy_(mean)
            squares = sum((features.index_select(0, part) - core.mean).square_().sum(dim=0) for part in parts)
            core.scale.copy_((squares / (len(numbers) - 1)).sqrt_().clamp_(min=_LEAST_SCALE))
        else:
            # With mean and scale, so that what was computed by them, such as the unknown score, stays right.
            core.load_state_dict(start.local_features.state_dict())
            known = start.classifier.out_features
            with torch.no_grad():
                model.classifier.weight[:known] = start.classifier.weight.float()
                model.classifier.bias[:known] = start.classifier.bias.float()
        rate = RATE if start is None else ADDED_RATE
        weights = torch.from_numpy(weights_of(*own, len(config.id2label or ()))).float()
        absent = [torch.tensor(columns, dtype=torch.long) for columns in may_miss]
        # (classes, classes), what is learned for each label
        classes = len(config.id2label or ())
        targets = torch.eye(classes) * (1 - SMOOTHING) + SMOOTHING / classes
        generator = np.random.default_rng(seed)
        # Each step takes its noise from another place of a long strip, as drawing it takes a tenth of a step.
        noise = torch.randn(_STRIP * batch * features.shape[1]) * NOISE
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=DECAY, fused=True)
        # Up and down within the steps that there are, so that few steps end at a low rate, too.
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        model.train()
        for _ in range(steps):
            # With replacement: rows are many and similar, and an epoch means nothing here.
            drawn = torch.randint(len(numbers), (batch,))
            # With noise, and with some groups of features as if they were not known.
            changed = features.index_select(0, numbers[drawn])
            for columns in absent:
                forgotten = (torch.rand(len(changed)) < FORGOTTEN).nonzero()
                changed[forgotten, columns] = 0.0
            standard = core.standardize(changed)  # pyright: ignore[reportCallIssue]
            place = int(torch.randint(len(noise) - standard.numel() + 1, ()))
            noisy = standard.add_(noise[place : place + standard.numel()].view(standard.shape))
            wanted = targets[labels[drawn]] * weights[drawn, None]
            loss = _loss(model, noisy, wanted, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def keep_rows(model: LocalFeaturesForPointCloudSegmentation, rows: Rows, seed: int) -> None:
    """Store some of the learned rows in a model."""
    _store(model, rows.part(np.random.default_rng(seed).permutation(len(rows.labels))[:LEARNED_ROWS]))


def _store(model: LocalFeaturesForPointCloudSegmentation, kept: Rows) -> None:
    learned = LearnedRows(len(kept.labels), kept.features.shape[1])
    learned.features = torch.from_numpy(kept.features)
    learned.labels = torch.from_numpy(kept.labels.astype(np.int64))
    learned.places = torch.from_numpy(kept.places.astype(np.int64))
    model.learned = learned
    model.config.learned_rows = len(kept.labels)


def adapted(
    model: LocalFeaturesForPointCloudSegmentation,
    features: np.ndarray,
    may_miss: Sequence[Sequence[int]] = (),
    seed: int = 0,
) -> LocalFeaturesForPointCloudSegmentation:
    """Learn once more, from the rows that a model has stored and from points of a scan of whose labels it is sure.

    What a place looks like is in its own points, wherever the model labels most of them right. Without stored rows
    beside them, its errors would be learned, too.

    Args:
        model: The model, with `learned` rows.
        features: (points, features) some points of the scan.
        may_miss: As of `fit_network`.
        seed: Of weights, order and noise.

    Returns:
        A new model of the same classes on the same device, without an unknown score; `model` itself if it is sure of
        one class at most.

    Source: Lee, "Pseudo-label: the simple and efficient semi-supervised learning method for deep neural networks"
    (2013), with a new network in place of further steps, which stay near the old answers.
    """
    learned = model.learned
    if learned is None:
        raise ValueError("the model stores no training points to adapt with; train it again")
    logits, _ = logits_of(model, features)
    probabilities = torch.from_numpy(logits * model.config.temperature).softmax(dim=1)
    score, label = (values.numpy() for values in probabilities.max(dim=1))
    is_sure = score >= SURE
    labels = label[is_sure]
    if len(np.unique(labels)) < 2:
        return model
    count = len(labels)
    known = (learned.features.float().cpu().numpy(), learned.labels.cpu().numpy(), learned.places.cpu().numpy())
    # The scan is a place like each of the others.
    places = np.concatenate([known[2], np.full(count, known[2].max() + 1)])
    rows = Rows(
        np.concatenate([known[0], features[is_sure]]).astype(np.float32),
        np.concatenate([known[1], labels]),
        tiles=places,
        places=places,
        copies=np.zeros(len(places), np.int64),
    )
    config = _without_rows(model.config)
    found = fit_network(rows, config, may_miss, seed, ADAPTED_STEPS, batch=LARGE_BATCH)
    return found.to(model.device)  # pyright: ignore[reportArgumentType]


def with_added(
    model: LocalFeaturesForPointCloudSegmentation,
    added: Rows,
    config: LocalFeaturesConfig,
    may_miss: Sequence[Sequence[int]] = (),
    seed: int = 0,
) -> LocalFeaturesForPointCloudSegmentation:
    """Learn further points beside the rows that a model has stored, and store them all in a new model.

    Places of the new points count as much as each of those before, however few their points are. Temperature and
    levels of the unknown score stay as they were; the new points are known to it.

    Args:
        model: The model, with `learned` rows.
        added: The new points; their places are counted from 0.
        config: The configuration of the new model, whose classes begin with those of `model`.
        may_miss: As of `fit_network`.
        seed: Of order and noise.
    """
    learned = model.learned
    if learned is None:
        raise ValueError("the model stores no training points to extend; train it again")
    places = learned.places.cpu().numpy()
    known = Rows(learned.features.float().cpu().numpy(), learned.labels.cpu().numpy(), places, places, 0 * places)
    further = added.places + places.max() + 1
    rows = Rows.joined([known, Rows(added.features, added.labels, further, further, 0 * further)])
    bare = _without_rows(config)
    found = fit_network(rows, bare, may_miss, seed, ADDED_STEPS, model, LARGE_BATCH)
    # None of the answers of a person is dropped, as they are few and took time.
    _store(found, rows)
    score = model.unknown_score
    if score is not None:
        standard = found.local_features.standardize(torch.from_numpy(added.features))
        known_features = torch.cat([score.features.float(), score.project(standard).float()])
        extended = UnknownScore(len(known_features), standard.shape[1], 0, config.unknown.width)
        extended.projection = score.projection
        extended.features = known_features
        found.unknown_score = extended
        found.config.unknown.rows = len(known_features)
    return found


def _without_rows(config: LocalFeaturesConfig) -> LocalFeaturesConfig:
    """Return the settings of a model that stores no rows, neither learned ones nor those of its unknown score."""
    settings = config.to_dict()
    unknown = {name: value for name, value in settings["unknown"].items() if name != "rows"}
    return LocalFeaturesConfig.from_dict(settings | {"unknown": unknown, "learned_rows": 0})


def _loss(
    model: LocalFeaturesForPointCloudSegmentation, standard: Tensor, targets: Tensor, generator: np.random.Generator
) -> Tensor:
    """Return the mean loss of each member by itself, so that members stay different.

    Args:
        model: The network.
        standard: (rows, features) standardized features.
        targets: (rows, classes) weighted shares of the classes.
        generator: Of what is dropped behind hidden layers.
    """
    members = model.config.members
    hidden = standard.expand(members, *standard.shape)
    for layer in model.local_features.layers:
        parts: Any = layer
        # (members, rows, width): products of all members at once, and few steps backward.
        weight, bias = (torch.stack([getattr(part[0], name) for part in parts]) for name in ("weight", "bias"))
        product = torch.baddbmm(bias[:, None], hidden, weight.mT)
        hidden = nn.functional.gelu(torch.stack([part[1](rows) for part, rows in zip(parts, product, strict=True)]))
        if rate := parts[0][3].p:
            # Not by `dropout`, whose random bits take longer on CPUs than the layer before it; 16 of them for each
            # value are enough.
            drawn = np.frombuffer(generator.bytes(2 * hidden.numel()), np.uint16)
            factors = (drawn >= rate * 2**16).astype(np.float32) / np.float32(1 - rate)
            hidden = hidden * torch.from_numpy(factors).view(hidden.shape)
    head = model.classifier
    weight = torch.stack(head.weight.chunk(members, dim=1))
    logits = torch.baddbmm((head.bias / members)[None, None], hidden, weight.mT)
    return -(logits.log_softmax(dim=-1) * targets).sum() / (members * len(standard))


@torch.no_grad()
def logits_of(
    model: LocalFeaturesForPointCloudSegmentation, features: np.ndarray, count: int = 65_536
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (rows, classes) and standardized features (rows, features) of features (rows, features)."""
    logits = []
    standard = []
    for start in range(0, len(features), count):
        piece = torch.from_numpy(features[start : start + count]).to(model.device)
        points = nn.functional.pad(piece, (3, 0))[None]
        logits.append(model(points).logits[0].float().cpu().numpy())
        standard.append(model.local_features.standardize(piece).cpu().numpy())
    return np.concatenate(logits), np.concatenate(standard)
