"""Scores of how unlike all training clouds of a classifier a cloud is, between 0 and 1, beside the label.

Terms are added, each in standard deviations of what known clouds have: the logarithm of the distance to the nearest
training feature, and the surprise, minus the logarithm of the highest probability. Negatives, features of things that
are of no class, add that distance against the one to the nearest of them; they are stored as `bank`. A projection,
after which features vary equally in all directions within classes, adds the angle to the nearest training feature,
seen from the mean of all; all distances are then between projected features. Where a level was found on held-out
clouds, those above it are of none of the classes, by `is_none_of_these`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.modeling.setting_groups import SettingGroup, SettingGroupsMixin

REFUSED_SHARE = 0.05
"""Share of the known clouds that may have a score above 0.5, if there are enough held-out ones to find that level."""
_SMALLEST = 1e-12
# Of a few equal values the deviation would be 0.
_LEAST_DEVIATION = 1e-3


@dataclass
class UnknownSettings(SettingGroup):
    """Calibration of the unknown score, which `fit_unknown_score` sets.

    Args:
        rows: Training features that are stored for the score `unknown`; 0 for no score.
        bank_rows: Negatives, features of things of no class, that are stored besides.
        width: Width of projected features; None if there is no projection.
        distance: Mean and standard deviation, over known clouds, of the logarithm of the distance to the nearest
            training feature.
        angle: The same of 1 minus the cosine of the smallest angle to a projected training feature.
        side: The same of the logarithm of the distance minus that of the distance to the nearest negative.
        surprise: The same of minus the logarithm of the highest probability; the deviation is at least the mean.
        energy: The same of minus the logarithm of the sum of the exponentials of all logits, which then takes the
            place of the surprise; None for the surprise.
        threshold: Sum of all, in standard deviations, whose score is 0.5.
        share: Share of the known clouds that has a score above 0.5 at most, by clouds that were held out; then such
            clouds get no label. None if nobody knows; then each cloud gets one.
    """

    rows: int = 0
    bank_rows: int = 0
    width: int | None = None
    distance: list[float] | tuple[float, float] = (0.0, 1.0)
    angle: list[float] | tuple[float, float] = (0.0, 1.0)
    side: list[float] | tuple[float, float] = (0.0, 1.0)
    surprise: list[float] | tuple[float, float] = (0.0, 1.0)
    energy: list[float] | tuple[float, float] | None = None
    threshold: float = 0.0
    share: float | None = None


def unknown_settings(config: Any) -> UnknownSettings:
    """Return the calibration that a config has; the defaults, without a score, for configs that cannot have one."""
    return getattr(config, "unknown", None) or UnknownSettings()


@dataclass
class UnknownScoreConfigMixin(SettingGroupsMixin):
    """Mixin of the configs of classifiers that can detect clouds unlike all training clouds.

    Args:
        unknown: Calibration of the score of what is of none of the classes, see `UnknownSettings`; empty for no score.
    """

    # A Trainer would otherwise hand metrics a tuple of logits and scores.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["unknown", "one_sided"]

    unknown: Any = field(default_factory=UnknownSettings)


@dataclass
class PointCloudClassifierOutput(SequenceClassifierOutput):
    """Output of a classifier that may have an unknown score.

    Args:
        unknown: `(batch,)` scores from 0 to 1, the less a cloud is like those of the training; see `is_none_of_these`.
        one_sided: `(batch,)` scores from 0 to 1, above 0.5 for clouds that look as if seen from one side.
    """

    unknown: Tensor | None = None
    one_sided: Tensor | None = None


class UnknownScore(nn.Module):
    """Training features, and the score of how unlike all of them a cloud is."""

    features: Tensor
    bank: Tensor | None
    projection: Tensor | None

    def __init__(self, rows: int, width: int, bank_rows: int = 0, projected: int | None = None):
        super().__init__()
        stored = projected or width
        # Buffers, so that they are stored, cast and moved with the weights, and no optimizer changes them.
        self.register_buffer("features", torch.zeros(rows, stored))
        self.register_buffer("bank", torch.zeros(bank_rows, stored) if bank_rows else None)
        self.register_buffer("projection", torch.zeros(width, projected) if projected else None)

    @classmethod
    def of_config(cls, config: Any, width: int) -> UnknownScore | None:
        """Return the score of features `(batch, width)` that a config has; None if it has none."""
        if not config.unknown.rows:
            return None
        return cls(config.unknown.rows, width, config.unknown.bank_rows, config.unknown.width)

    def forward(self, features: Tensor, logits: Tensor, config: Any) -> Tensor:
        """Score clouds: `(batch,)` from 0 to 1."""
        terms = self.terms(features, surprise(logits))
        if config.unknown.energy is not None:
            terms = with_energy(terms, logits)
        return score_of_terms(terms, config)

    def terms(self, features: Tensor, surprised: Tensor, distance: Tensor | None = None) -> dict[str, Tensor]:
        """Return the terms `(batch,)` by their fields in the config, for features `(batch, width)` and surprise."""
        features = self.project(features)
        if distance is None:
            distance = _distances(features, self.features).amin(dim=1)
        # Of a stored feature itself the distance is 0, whose logarithm is none.
        near = distance.clamp(min=_SMALLEST).log()
        terms = {"distance": near, "surprise": surprised}
        if self.projection is not None:
            # Angles depend on the origin: seen from the mean, directions spread over the whole sphere.
            center = self.features.float().mean(dim=0)
            seen, known = (nn.functional.normalize(rows - center, dim=1) for rows in (features, self.features.float()))
            terms["angle"] = 1 - (seen @ known.T).amax(dim=1)
        if self.bank is not None:
            # Above 0 for clouds that are nearer to a negative than to any training feature.
            terms["side"] = near - _distances(features, self.bank).amin(dim=1).clamp(min=_SMALLEST).log()
        return terms

    def terms_of_stored(self, features: Tensor, logits: Tensor, groups: Tensor) -> dict[str, Tensor]:
        """Return the terms `(rows,)` of the clouds whose features are stored, as if each was not among them.

        `groups (rows,)` are numbers: a row, and others of its group, are no neighbors of it.
        """
        groups = groups.to(features.device)
        # Neither a row itself, its own nearest neighbor, nor another scan of its object tells what is usual.
        apart = _distances(features, features).masked_fill(groups[:, None] == groups, torch.inf)
        return self.terms(features, surprise(logits), apart.amin(dim=1))

    def store(self, features: Tensor, bank: Tensor | None, projection: Tensor | None) -> None:
        """Store features `(rows, width)`, those of things of no class, and the projection `(width, projected)`."""
        # First the projection, as both are stored as it shows them.
        if projection is not None:
            self.projection = projection.to(self.features)
        self.features.copy_(self.project(features))
        if bank is not None:
            self.bank = self.project(bank).to(self.features)

    def project(self, features: Tensor) -> Tensor:
        """Return features `(batch, width)` as they are stored."""
        return features if self.projection is None else features.float() @ self.projection.float()


class UnknownScoreMixin:
    """Classifier mixin: scores with the `unknown_score` that a model builds if `config.unknown.rows` is above 0."""

    config: Any
    unknown_score: UnknownScore | None

    def score_unknown(self, features: Tensor, logits: Tensor) -> Tensor | None:
        """Return the scores `(batch,)` of pooled features `(batch, width)` and their logits; None without a score."""
        # With adapters, one may have a score that the others lack.
        if self.unknown_score is None or not self.config.unknown.rows:
            return None
        return self.unknown_score(features, logits, self.config)

    def drop_unknown_score(self) -> None:
        """Remove the score, whose features and numbers mean nothing once weights are trained further."""
        self.unknown_score = None
        self.config.unknown = None

    @torch.no_grad()
    def fit_unknown_score(
        self,
        features: Tensor,
        logits: Tensor,
        groups: Sequence[int] | Tensor | None = None,
        bank: Tensor | None = None,
        held_out: dict[str, Tensor] | None = None,
        projection: Tensor | None = None,
    ) -> None:
        """Store training features, and calibrate the score in the config.

        Args:
            features: `(rows, width)`, the `pooler_output` of the training clouds.
            logits: `(rows, labels)`, predictions for these clouds by heads that were fitted without them.
            groups: `(rows,)` numbers; rows of one group, such as scans of one object, are not neighbors of each other.
            bank: `(things, width)`, negatives: the `pooler_output` of things that are of no class.
            held_out: `UnknownScore.terms` of known clouds that nothing has learned from. With them the level is found
                above which a cloud gets no label; without, the score only ranks. Terms of `energy` are used in the
                place of those of surprise from then on.
            projection: `(width, projected)` by which features are seen, such as a whitening; takes `held_out`, with
                terms of projected features.

        Raises:
            ValueError: Features or logits hold NaN or infinite numbers; there are fewer than two groups; the model is
                no classifier of two or more classes; or an adapter is stored for another number of rows.
        """
        config = self.config
        rows = len(features)
        if config.problem_type not in (None, "single_label_classification") or config.num_labels < 2:
            raise ValueError(
                f"problem_type={config.problem_type!r} with {config.num_labels} labels; expected a classifier that "
                "chooses one of two or more classes"
            )
        if projection is not None and held_out is None:
            raise ValueError("projection without held_out; expected terms of clouds that it was not fitted to")
        for name, values in {"features": features, "logits": logits, "bank": bank}.items():
            if values is not None and not values.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinity; expected finite numbers")
        # Without groups, each row is a group of its own.
        numbers = torch.arange(rows) if groups is None else torch.as_tensor(groups)
        count = len(numbers.unique())
        if count < 2:
            raise ValueError(f"{count} groups in {rows} rows; expected at least two, for the distances between them")
        score = self._sized_score(features, bank, projection)
        score.store(features, bank, projection)
        config.unknown.energy = None  # unless it is among the terms
        terms = held_out
        if terms is None:
            terms = score.terms_of_stored(features, logits, numbers)
        for name, values in terms.items():
            usual = float(values.mean())
            # Terms are compared in standard deviations, by the same numbers for every later cloud.
            deviation = max(float(values.std()), _LEAST_DEVIATION)
            # At least the mean: a head is very sure far from all it knows, and would outweigh the distance.
            if name == "surprise":
                deviation = max(usual, deviation)
            setattr(config.unknown, name, [usual, deviation])
        config.unknown.threshold, share = conformal_level(_sum_of(terms, config))
        # The level of the training clouds themselves is no promise about others.
        config.unknown.share = None if held_out is None else share

    def _sized_score(self, features: Tensor, bank: Tensor | None, projection: Tensor | None) -> UnknownScore:
        """Return the score with room for features, bank and projection: a new one if the sizes are others."""
        config = self.config
        rows = len(features)
        things = 0 if bank is None else len(bank)
        projected = None if projection is None else projection.shape[1]
        sizes = (config.unknown.rows, config.unknown.bank_rows, config.unknown.width)
        if self.unknown_score is None or sizes != (rows, things, projected):
            # PEFT copies modules that it stores: a new one would not be the one that is saved.
            if getattr(self, "_hf_peft_config_loaded", False) or hasattr(self, "peft_config"):
                raise ValueError(
                    f"unknown has {config.unknown.rows} rows and {config.unknown.bank_rows} bank_rows with an "
                    "adapter, which stores what there was when it was added; expected a model that was built with "
                    f"unknown={{'rows': {rows}, 'bank_rows': {things}}}"
                )
            score = UnknownScore(rows, features.shape[1], things, projected)
            self.unknown_score = score.to(features.device, self.dtype)
        config.unknown.rows = rows
        config.unknown.bank_rows = things
        config.unknown.width = projected
        return self.unknown_score


def conformal_level(values: Tensor, share: float = REFUSED_SHARE) -> tuple[float, float]:
    """Return the level that at most a share of further values exceeds, and that share, at least 1 / (n + 1).

    Source: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005.
    """
    check_numbers(0, 1, share=share)
    count = len(values)
    # Of n + 1 exchangeable values, the last is as likely at any rank; so many ranks lie at or above the level.
    above = max(1, int(share * (count + 1)))
    return float(values.sort().values[count - above]), above / (count + 1)


def score_of_terms(terms: dict[str, Tensor], config: Any) -> Tensor:
    """Return the scores `(batch,)` from 0 to 1 of terms `(batch,)`."""
    return torch.sigmoid(_sum_of(terms, config) - config.unknown.threshold)


def is_none_of_these(unknown: Any, config: Any) -> Any:
    """Return whether clouds are of none of the classes: the rule of pipelines, evaluation and pages."""
    # Without a level found on held-out clouds, a score of 0.5 means nothing.
    return unknown > (0.5 if config.unknown.share is not None else float("inf"))


def surprise(logits: Tensor) -> Tensor:
    """Return minus the logarithm of the highest probability of `(batch, labels)` logits: `(batch,)`, at least 0."""
    return -logits.float().log_softmax(dim=-1).amax(dim=-1)


def with_energy(terms: dict[str, Tensor], logits: Tensor) -> dict[str, Tensor]:
    """Put the energy of `(batch, labels)` logits in the place of the surprise among terms `(batch,)`.

    Source: Liu et al., "Energy-based out-of-distribution detection" (arXiv 2010.03759), Eq. 4.
    """
    # Both are of the logits alone, and would count twice.
    others = {name: values for name, values in terms.items() if name != "surprise"}
    return {**others, "energy": -logits.float().logsumexp(dim=-1)}


def _distances(features: Tensor, rows: Tensor) -> Tensor:
    # A matrix product rounds the distance of near features.
    return torch.cdist(features.float(), rows.float(), compute_mode="donot_use_mm_for_euclid_dist")


def _sum_of(terms: dict[str, Tensor], config: Any) -> Tensor:
    """Add terms `(batch,)`, each in standard deviations from its mean."""
    usual = {name: getattr(config.unknown, name) for name in terms}
    # Divided by 0, a term that is as usual is NaN, and one that is not outweighs all others.
    check_numbers(0, above=True, **{f"deviation of {name}": deviation for name, (_, deviation) in usual.items()})
    return torch.stack([(values - usual[name][0]) / usual[name][1] for name, values in terms.items()]).sum(dim=0)
