"""How much a cloud is unlike all that a classifier was trained on: a score between 0 and 1 beside the label.

Two signs are added, each in standard deviations of what known clouds have: the distance to the nearest training
feature, and the surprise, minus the logarithm of the highest probability. The sum above which 5 % of the known clouds
lie is the score 0.5. Unknown things of the same kind are told only in part: it is a flag, not a filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_any3d.modeling.config_checks import Ranges

KNOWN_SHARE = 0.95
"""Share of the known clouds whose score is at most 0.5."""
UNKNOWN_RANGES: Ranges = {
    "unknown_rows": (0, 1_000_000),
    "unknown_distance": (-1e4, 1e4),
    "unknown_surprise": (-1e4, 1e4),
    "unknown_threshold": (-1e6, 1e6),
    "unknown_far": (0, 1),
}
"""For `check_numbers` of configs with the mixin."""
_SMALLEST = 1e-12


@dataclass
class UnknownScoreConfigMixin:
    """For configs of classifiers that may tell what is unlike all their training clouds.

    Args:
        unknown_rows: Training features that are stored for the score `unknown`; 0 for no score.
        unknown_distance: Mean and standard deviation, over known clouds, of the logarithm of the distance to the
            nearest training feature.
        unknown_surprise: The same of minus the logarithm of the highest probability.
        unknown_threshold: Sum of both, in standard deviations, whose score is 0.5.
        unknown_far: Score above which pipelines give no label; None to give one always.
    """

    unknown_rows: int = 0
    unknown_distance: list[float] | tuple[float, float] = (0.0, 1.0)
    unknown_surprise: list[float] | tuple[float, float] = (0.0, 1.0)
    unknown_threshold: float = 0.0
    unknown_far: float | None = None


@dataclass
class PointCloudClassifierOutput(SequenceClassifierOutput):
    """Output of a classifier that may have an unknown score.

    Args:
        unknown: `(batch,)` scores from 0 to 1, above 0.5 for clouds unlike those of the training; None without
            `config.unknown_rows`.
    """

    unknown: Tensor | None = None


class UnknownScore(nn.Module):
    """Training features, and the score of how unlike all of them a cloud is.

    Args:
        config: Has the fields of `UnknownScoreConfigMixin`.
        width: Number of features.
    """

    features: Tensor

    def __init__(self, config: PreTrainedConfig, width: int):
        super().__init__()
        self.config = config
        self.register_buffer("features", torch.zeros(config.unknown_rows, width))

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Score clouds.

        Args:
            features: `(batch, width)`.
            logits: `(batch, labels)`.

        Returns:
            `(batch,)` from 0 to 1.
        """
        distance = nearest_distance(features, self.features)
        return torch.sigmoid(self._signs(distance, logits) - self.config.unknown_threshold)

    def _signs(self, distance: Tensor, logits: Tensor) -> Tensor:
        total = torch.zeros_like(distance)
        signs = (distance.clamp(min=_SMALLEST).log(), surprise(logits))
        for sign, (mean, deviation) in zip(
            signs, (self.config.unknown_distance, self.config.unknown_surprise), strict=True
        ):
            total = total + (sign - mean) / deviation
        return total

    @torch.no_grad()
    def fit(self, features: Tensor, logits: Tensor, groups: Sequence[int] | Tensor | None = None) -> None:
        """Store training features and calibrate the score, in the config.

        Args:
            features: `(rows, width)` of the training clouds.
            logits: `(rows, labels)`, predictions for these clouds by heads that were fitted without them.
            groups: `(rows,)` numbers; rows of one group, such as scans of one object, are not neighbors of each
                other. None if each row is a group.

        Raises:
            ValueError: If the numbers of rows differ, there are fewer than two groups, or a number is not finite.
        """
        rows = len(features)
        if features.ndim != 2 or features.shape[1] != self.features.shape[1]:
            raise ValueError(f"features has shape {tuple(features.shape)}; expected (rows, {self.features.shape[1]})")
        if len(logits) != rows:
            raise ValueError(f"logits has {len(logits)} rows; expected {rows}, as features has")
        if not (features.isfinite().all() and logits.isfinite().all()):
            raise ValueError("features or logits hold NaN or infinity; expected finite numbers")
        numbers = torch.arange(rows) if groups is None else torch.as_tensor(groups)
        if numbers.shape != (rows,):
            raise ValueError(f"groups has shape {tuple(numbers.shape)}; expected ({rows},)")
        if len(numbers.unique()) < 2:
            raise ValueError(f"{rows} rows of one group; expected at least two groups, for distances between them")
        own = numbers.to(features.device)[:, None] == numbers.to(features.device)
        apart = torch.cdist(features.float(), features.float()).masked_fill(own, torch.inf)
        distance = apart.amin(dim=1).clamp(min=_SMALLEST).log()
        config = self.config
        config.unknown_rows = rows
        config.unknown_distance = _mean_and_deviation(distance)
        config.unknown_surprise = _mean_and_deviation(surprise(logits))
        signs = self._signs(distance.exp(), logits)
        config.unknown_threshold = float(signs.quantile(KNOWN_SHARE))
        self.features = features.detach().to(self.features.dtype).clone()


def nearest_distance(features: Tensor, rows: Tensor) -> Tensor:
    """Return the distance of each feature `(batch, width)` to the nearest of rows `(rows, width)`: `(batch,)`."""
    return torch.cdist(features.float(), rows.float()).amin(dim=1)


def surprise(logits: Tensor) -> Tensor:
    """Return minus the logarithm of the highest probability of `(batch, labels)` logits: `(batch,)`, at least 0."""
    return -logits.float().log_softmax(dim=-1).amax(dim=-1)


def _mean_and_deviation(values: Tensor) -> list[float]:
    deviation = float(values.std()) if len(values) > 1 else 0.0
    return [float(values.mean()), max(deviation, 1e-3)]
