"""A linear head on features of few scans: logistic regression, its temperature, and another classifier beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp

from hf_any3d.modeling.point_encoders.packaged_metric import in_metric, packaged_metric

# Features that differ less between scans, in units of the largest deviation, are constants with rounding errors.
_CONSTANT = 1e-6
_TEMPERATURES = 0.2
_UNHEARD = 1e4


class Metric(NamedTuple):
    """Stored numbers by which features are standardized, and the matrix of `in_metric` for the first of them."""

    mean: np.ndarray  # (width,)
    scale: np.ndarray  # (width,), above 0
    matrix: np.ndarray  # (first, first)

    @classmethod
    def packaged(cls, width: int) -> Metric:
        """Return that of the packaged encoder, whose features are the first of `width`; others stay as they are."""
        stored = {name: tensor.double().numpy() for name, tensor in packaged_metric().items()}
        others = width - len(stored["mean"])
        mean = np.pad(stored["mean"], (0, others))
        scale = np.pad(stored["scale"], (0, others), constant_values=1.0)
        return cls(mean, scale, stored["matrix"])


@dataclass(frozen=True)
class LinearHead:
    """Logits `standardize(features) @ weight.T + bias`."""

    weight: np.ndarray  # (classes, width) float64
    bias: np.ndarray  # (classes,)
    mean: np.ndarray  # (width,)
    scale: np.ndarray  # (width,), above 0
    matrix: np.ndarray | None = None  # (first, first), of `in_metric` for the first features

    def standardize(self, features: np.ndarray) -> np.ndarray:
        """Return features (rows, width) with the head's mean and scale, and in its metric if it has one."""
        rows = (features - self.mean) / self.scale
        if self.matrix is None:
            return rows
        width = len(self.matrix)
        compared = in_metric(torch.from_numpy(rows[:, :width]), torch.from_numpy(self.matrix)).numpy()
        return np.concatenate([compared, rows[:, width:]], axis=1)

    def cooled(self, temperature: float) -> LinearHead:
        """Return the head whose logits are divided by a temperature."""
        return replace(self, weight=self.weight / temperature, bias=self.bias / temperature)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return logits (rows, classes) of features (rows, width) as they were computed."""
        return self.standardize(features) @ self.weight.T + self.bias


def joined_with_scores(head: LinearHead, columns: np.ndarray, share: float, sharpness: float) -> LinearHead:
    """Add the answers of another classifier to those of a head, with a share of the logits from 0 to 1.

    Some columns of the features, whose weights in the head are 0, hold the other's log-probabilities in the order of
    the classes. Sharpness is a factor of all logits.
    """
    weight = head.weight * (1 - share) * sharpness
    mean = head.mean.copy()
    scale = head.scale.copy()
    # Standardized, they are too small to count in distances between features.
    mean[columns], scale[columns] = 0.0, _UNHEARD
    weight[:, columns] = np.eye(len(columns)) * share * sharpness * _UNHEARD
    return LinearHead(weight, head.bias * (1 - share) * sharpness, mean, scale, head.matrix)


def fit_head(
    features: np.ndarray, labels: np.ndarray, num_classes: int, strength: float, metric: Metric | None = None
) -> LinearHead:
    """Fit logistic regression with an L2 penalty of the weights; all classes count the same, whatever their scans.

    Features are (rows, width), labels (rows,) classes from 0, of which one without rows gets low scores. The strength
    weighs the sum of the rows' losses against half the squared weights, as C of scikit-learn. Without a metric,
    features are standardized by their own mean and deviation.
    """
    if metric is None:
        mean = features.mean(axis=0)
        scale = features.std(axis=0)
        scale = np.where(scale > _CONSTANT * max(scale.max(), 1e-30), scale, 1.0)
        head = LinearHead(np.zeros((0, 0)), np.zeros(0), mean, scale)
    else:
        head = LinearHead(np.zeros((0, 0)), np.zeros(0), *metric)
    rows = head.standardize(features)
    # Weights are combinations of the rows, so that they are sought in the space that the rows span.
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    kept = values > 1e-9 * max(values.max(initial=0.0), 1e-30)
    inputs = left[:, kept] * values[kept]  # (rows, rank)
    rank = inputs.shape[1]
    counts = np.bincount(labels, minlength=num_classes)
    # Each class has the same sum: with plain ones, a class of many scans would win wherever scans are unclear.
    shares = len(labels) / np.count_nonzero(counts) / counts[labels]  # 1 on average
    targets = np.eye(num_classes)[labels]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = flat[:-num_classes].reshape(num_classes, rank)
        bias = flat[-num_classes:]
        logits = inputs @ weight.T + bias
        total = np.asarray(logsumexp(logits, axis=1, keepdims=True))  # (rows, 1)
        value = strength * float(shares @ (total[:, 0] - (logits * targets).sum(axis=1)))
        error = strength * shares[:, None] * (np.exp(logits - total) - targets)  # (rows, classes)
        # A small penalty of the bias keeps that of a class without rows finite.
        value += 0.5 * float((weight**2).sum()) + 0.5e-3 * float((bias**2).sum())
        return value, np.concatenate([(error.T @ inputs + weight).ravel(), error.sum(axis=0) + 1e-3 * bias])

    start = np.zeros(num_classes * (rank + 1))
    solution = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-10}).x
    # From the space of the rows back to that of the features.
    weight = solution[:-num_classes].reshape(num_classes, rank) @ right[kept]
    return replace(head, weight=weight, bias=solution[-num_classes:])


def whitening(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return a matrix (width, width) after which features (rows, width) vary equally in all directions within classes.

    The covariance within classes is the mean of what few rows show and of a multiple of the identity.
    """
    present, numbers = np.unique(labels, return_inverse=True)
    means = np.stack([features[labels == label].mean(axis=0) for label in present])
    apart = features - means[numbers]
    covariance = apart.T @ apart / len(apart)
    size = max(np.trace(covariance) / len(covariance), _CONSTANT)
    values, directions = np.linalg.eigh((covariance + size * np.eye(len(covariance))) / 2)
    return directions / np.sqrt(values)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the divisor of logits `(rows, classes)` that makes their probabilities most likely for labels `(rows,)`.

    Its logarithm is expected near 0, with a standard deviation of `_TEMPERATURES`, so that few rows change little.
    """

    def cost(power: float) -> float:
        scaled = logits / np.exp(power)
        losses = np.asarray(logsumexp(scaled, axis=1)) - scaled[np.arange(len(labels)), labels]
        return float(losses.sum()) + 0.5 * (power / _TEMPERATURES) ** 2

    solution: Any = minimize_scalar(cost, bounds=(-2.0, 2.0), method="bounded")
    return float(np.exp(solution.x))
