"""Learn classes from few scans in seconds: frozen features with a linear head, and how sure it is of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict

from hf_any3d.data.catalog import up_axis_of
from hf_any3d.data.inputs import count_channels
from hf_any3d.integration.auto import AutoModelForPointCloudClassification
from hf_any3d.model_card import Subject, build_model_card
from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters, peak_memory
from hf_any3d.model_card.saving import FILE, save_card
from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.layers.unknown_score import UnknownScore, is_none_of_these, score_of_signs, surprise
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.modeling.point_features.configuration_point_features import PART_OF
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training import program
from hf_any3d.training.arguments import DataArguments, Request, argument
from hf_any3d.training.few_scans.confidence import Estimate
from hf_any3d.training.few_scans.features import compute_bank, compute_examples, compute_features
from hf_any3d.training.few_scans.linear_head import (
    LinearHead,
    draw_folds,
    fit_head,
    fit_temperature,
    heads_of_folds,
    joined_with_scores,
    whitening,
)
from hf_any3d.training.few_scans.no_class import NUM_THINGS
from hf_any3d.training.few_scans.one_side import fit_side
from hf_any3d.training.few_scans.plan import FEATURES, WRAP_SHARPNESS, Plan, advice_for, plan_for
from hf_any3d.training.few_scans.scans import Examples, Scans, check, equal, file_names, look_at
from hf_any3d.training.protocol import build_processor
from hf_any3d.training.rows import class_names
from hf_any3d.training.trainer import remove_model
from hf_any3d.utils.atomic_files import release_claims

_DATA = {
    *("dataset_name", "data_dir", "dataset_options", "train_file", "validation_file", "test_file", "train_splits"),
    *("group_column", "num_points", "features", "up_axis", "max_train_samples", "max_eval_samples"),
}
CROSS_VALIDATION = "cross-validation"
STATED_FROM = 5
"""Different scans of each class from which on a level of "none of these" is stated: with fewer it does not hold."""
CALIBRATED_FROM = 75
"""Judged scans from which on a temperature is fitted to them: scores got worse with 50, and better with 100."""
# Usual scans of a class below which an estimate is too low: by 6 points at two a class, by 2 at five.
_FEW = 4


@dataclass
class FewScansArguments:
    """Settings of learning from few scans; those not given follow from their number."""

    output_dir: str = argument("trainer_output", help="Directory to write the model to.")
    feature_sets: list[str] | None = argument(
        None,
        help="Sets of frozen features: descriptors, encoder, wrap, views; by default what the table for this many "
        "scans says, and those of the models that are given.",
    )
    encoder: str | None = argument(
        None, help="Pretrained point encoder for the features: directory or hub name; by default the packaged one."
    )
    vision: str | None = argument(
        None, help="Vision model of transformers that sees depth views of the clouds: directory or hub name."
    )
    wrap: str | None = argument(
        None, help="Directory of a trained model around an encoder of another modality, whose features are added."
    )
    wrap_weight: float | None = argument(
        None,
        help="Share of the wrap's own answers in those of the model, from 0 to 1, for a wrap that has learned the "
        "classes from these scans; by default its features are given to the linear head.",
    )
    copies: int | None = argument(
        None, help="Slightly turned, scaled and jittered copies of each cloud, over which features are averaged."
    )
    strength: float | None = argument(
        None, help="Weight of the scans against that of small weights, as C in logistic regression."
    )
    folds: int = argument(10, help="Folds of the cross-validation at most.")
    heading: str = argument(
        "known",
        help="known if scans face one direction, or any of them as they do later; unknown turns copies completely.",
    )
    allow_doubts: bool = argument(
        False, help="Go on if names of classes differ only in case, or a scan has two labels."
    )
    from_model: str | None = argument(
        None, help="Directory of a model of this kind to add scans to; the features of its scans are reused."
    )
    unlike: int | None = argument(
        None,
        help="Drawn things of no class (noise, floors, bars, rooms) from which the unknown score tells scans; by "
        f"default {NUM_THINGS}, and none beside a vision model, which would take minutes for them.",
    )
    one_sided: bool = argument(
        True, help="Learn what the scans would look like from one side, for a remark on clouds that do."
    )
    views: bool = argument(
        False, help="Learn a view of each scan from one side besides, for whole scans where views will come."
    )
    seed: int = argument(42, help="Seed of the folds.")
    license: str | None = argument(None, help="License in the model card, as the hub writes it.")

    def __post_init__(self):
        check_settings(self, {"heading": ("known", "unknown")})
        if self.folds < 2:  # a head of no scans would judge them all
            raise ValueError(f"--folds {self.folds}; expected at least 2")
        if self.wrap_weight is not None and (self.wrap is None or not 0 < self.wrap_weight < 1):
            raise ValueError(f"--wrap_weight {self.wrap_weight} with --wrap {self.wrap}; expected 0 to 1, and a wrap")


@dataclass
class FewScansDataArguments(DataArguments):
    """Scans to learn; what is None of how clouds are prepared follows from the earlier model, or from the scans."""

    num_points: int | None = argument(None, help="Points per cloud; by default 1,024.")  # pyright: ignore[reportIncompatibleVariableOverride]
    features: list[str] | None = argument(None, help="Channels per point; by default xyz.")  # pyright: ignore[reportIncompatibleVariableOverride]
    up_axis: str | None = argument(None, help="Axis that points up; by default that of the data, else y.")  # pyright: ignore[reportIncompatibleVariableOverride]
    # All scans are learned, and judged by cross-validation.
    validation_fraction: float = field(default=0.0)


OF_SCANS = {setting.name for setting in fields(FewScansArguments)}
"""Names of the options besides those of the data."""
OPTIONS = OF_SCANS | _DATA
"""Names of the options that this way takes; others are for training."""


@dataclass
class FewScans(Request):
    """Scans, and how they are learned."""

    arguments: FewScansArguments
    data: FewScansDataArguments

    def load(self) -> DatasetDict:
        """Load the scans."""
        return program.load_rows(replace(self.data, features=self.data.features or ["xyz"]))

    def plan(self, counts: dict[str, int], way: str | None = None) -> Plan:
        """Return how so many scans of each class are learned; None for the table's way."""
        asked = self.arguments
        sets = None if asked.feature_sets is None else tuple(asked.feature_sets)
        plan = plan_for(counts, way=way, features=sets, copies=asked.copies, strength=asked.strength)
        return plan if asked.from_model is None else replace(plan, reason="features and copies of the earlier model")

    def earlier(self) -> Examples | None:
        """Return the examples of the earlier model, if there is one; what it decides may not be set."""
        asked, data = self.arguments, self.data
        if asked.from_model is None:
            return None
        values = {name: getattr(data, name) for name in ("num_points", "features", "up_axis")}
        values |= {name: getattr(asked, name) for name in ("feature_sets", "copies", "encoder", "vision", "wrap")}
        values["heading"] = None if asked.heading == "known" else asked.heading
        if fixed := sorted(name for name, value in values.items() if value is not None):
            raise ValueError(f"--{fixed[0]} with --from_model, which has its own; expected one of them")
        return Examples.load(Path(asked.from_model))


@dataclass(frozen=True)
class Learned:
    """A model that was saved."""

    report: RunReport
    lines: list[str]


def learn_few_scans(request: FewScans | Sequence[str], rows: DatasetDict | None = None) -> Learned:
    """Learn the classes of few scans, and save model, card and metrics.json.

    Raises:
        PointCloudFileError: No file of the folder can be read.
        ValueError: There is one class or one scan in all, two labels for the same scan, or settings that do not fit.
        EncoderUnavailableError: An encoder that was asked for is neither on the hub nor in the cache.
    """
    stopwatch = Stopwatch()
    request = request if isinstance(request, FewScans) else FewScans.parse(request)
    arguments, earlier = request.arguments, request.earlier()
    program.claim_output(Path(arguments.output_dir))
    with stopwatch.part("data"):
        data: DataArguments = replace(
            request.data,
            num_points=request.data.num_points or (1024 if earlier is None else earlier.processor.num_points),
            features=request.data.features or (["xyz"] if earlier is None else list(earlier.processor.features)),
        )
        splits, _ = program.divide(program.load_rows(data) if rows is None else rows, data)
        # The up axis that the dataset or the format of all its files implies.
        are_aerial = all(Path(name).suffix.lower() in (".las", ".laz") for name in file_names(splits["train"]))
        known_up = up_axis_of(data.dataset_name) or ("z" if are_aerial else None)
        data.up_axis = data.up_axis or known_up or "y"
        processor = build_processor(data, {}) if earlier is None else earlier.processor
        origin = data.train_file or data.data_dir or data.dataset_name
        scans = look_at(splits["train"], origin, data.group_column)
        if earlier is None:
            check(scans, origin, arguments.allow_doubts)
    plan = request.plan(scans.counts, FEATURES)
    model = _open_model(plan, data, arguments, known_up)
    config = model.config
    channels = [getattr(getattr(config, f"{name}_config"), "in_channels", 3) for name in ("encoder", "wrap")]
    channels += [6] if config.normals and "descriptors" in config.features else [3]
    ends = np.cumsum([count_channels([name]) for name in processor.features])
    if unread := [name for name, end in zip(processor.features, ends, strict=True) if end > max(channels)]:
        features = " and ".join(config.features)
        raise ValueError(f"--features: {features} do not read {unread[0]}; expected --way trained, which does")
    with stopwatch.part("features"):
        learns_views = arguments.views or (earlier is not None and earlier.learns_views)
        wanted = arguments.one_sided or learns_views
        examples = compute_examples(model, splits["train"], processor, scans, earlier, wanted)
        if learns_views and examples.views is None:
            raise ValueError("--views true with colors or normals, or a model without views; expected points alone")
        examples = replace(examples, learns_views=learns_views)
        # Before the model has a head, with which features are standardized, so that those in the cache stay valid.
        others = {
            str(split): (rows, compute_features(model, rows, processor))
            for split, rows in splits.items()
            if split in ("validation", "test")
        }
    scans = examples.scans
    check(scans, origin, arguments.allow_doubts)
    plan = request.plan(scans.counts, FEATURES)
    with stopwatch.part("things of no class"):
        usual = 0 if "views" in config.features else NUM_THINGS
        unlike = usual if arguments.unlike is None else arguments.unlike
        bank = compute_bank(model, processor, unlike)
    with stopwatch.part("head"):
        config.id2label = dict(enumerate(scans.classes))
        config.label2id = {name: number for number, name in enumerate(scans.classes)}
        model.classifier = torch.nn.Linear(config.hidden_size, len(scans.classes))
        model.side_head, config.one_sided = None, False  # for features that are standardized otherwise
        head, estimate = fit_few_scans(model, examples, bank, plan, arguments)
        judged = {} if estimate is None else {CROSS_VALIDATION: estimate}
        judged |= {split: _evaluate(model, head, rows, features) for split, (rows, features) in others.items()}
    facts = program.data_facts(data, splits, CROSS_VALIDATION)
    facts |= {"rows": {**facts["rows"], "train": len(scans.labels)}}
    facts |= {"scans of each class": scans.counts, "near-duplicates": scans.num_copies}
    report = _save(model, processor, examples, facts, plan, judged, stopwatch, arguments)
    release_claims()
    origin += " and the earlier ones" if earlier is not None else ""
    lines = _lines(origin, scans, plan, judged, config, processor.features, unlike)
    if learns_views:
        lines.insert(2, "views: one of each scan from one side is learned, too; predict makes no remark on views")
    return Learned(report, lines)


def _open_model(
    plan: Plan, data: DataArguments, arguments: FewScansArguments, known_up: str | None
) -> PointFeaturesForPointCloudClassification:
    """Build the model that computes the features, with a head that is not fitted, or open an earlier one.

    That has features as they are computed, too; the `known_up` axis of the scans must be its own.
    """
    if arguments.from_model is not None:
        folder = arguments.from_model
        model = PointFeaturesForPointCloudClassification.from_pretrained(folder)
        assert isinstance(model, PointFeaturesForPointCloudClassification)  # from_pretrained declares any model
        if model.config.wrap_labels is not None:
            raise ValueError(f"--from {folder}: its wrap knows few scans; expected --way both with all scans")
        if known_up not in (None, up := model.config.up_axis):
            raise ValueError(f"--from {folder}: it has {up} up, but these scans have {known_up}; expected them turned")
        model.point_features.mean.zero_()
        model.point_features.scale.fill_(1.0)
        return model.eval()
    given = {part: getattr(arguments, part) for part in PART_OF.values() if getattr(arguments, part) is not None}
    sets = plan.features
    if arguments.feature_sets is None and data.features[1:2] == ["normals"]:
        sets = ("descriptors", *sets)  # the packaged encoder reads no normals
    if arguments.feature_sets is None or arguments.wrap_weight is not None:
        sets += tuple(name for name, part in PART_OF.items() if part in given and name not in sets)
    elif unused := [part for name, part in PART_OF.items() if part in given and name not in sets]:
        raise ValueError(f"--{unused[0]} {given[unused[0]]} with --feature_sets {' '.join(sets)}, which leave it out")
    settings: dict[str, Any] = {
        "features": list(sets),
        "copies": plan.copies,
        "in_channels": count_channels(data.features),
        "normals": data.features[1:2] == ["normals"],
        "up_axis": data.up_axis,
    }
    if arguments.heading == "unknown":
        settings["copy_turn"] = 180.0
    if arguments.wrap is not None and arguments.wrap_weight is not None:
        # With its head, which AutoModel would leave out.
        given["wrap"] = AutoModelForPointCloudClassification.from_pretrained(arguments.wrap)
        settings["wrap_labels"] = given["wrap"].config.num_labels
    if given:
        return PointFeaturesForPointCloudClassification.from_parts_pretrained(**given, **settings)
    return PointFeaturesForPointCloudClassification(PointFeaturesConfig(**settings)).eval()


def _answers_of_wrap(model: PointFeaturesForPointCloudClassification, classes: list[str]) -> np.ndarray | None:
    """Return the columns of the features with the wrap's own answers, in the order of the classes; None without."""
    config = model.config
    if config.wrap_labels is None:
        return None
    learned = [config.wrap_config.id2label[number] for number in range(config.wrap_labels)]
    if sorted(learned) != sorted(classes):
        raise ValueError(f"--wrap has learned the classes {learned}; expected those of the scans, {classes}")
    start = sum(list(config.widths().values())[: list(config.features).index("wrap")])
    return start + np.array([learned.index(name) for name in classes])


def fit_few_scans(
    model: PointFeaturesForPointCloudClassification,
    examples: Examples,
    bank: np.ndarray,
    plan: Plan,
    arguments: FewScansArguments,
) -> tuple[LinearHead, Estimate | None]:
    """Fit head and unknown score; judge the head by folds, if a class has two scans.

    If views are learned, those of all scans are further rows, of the same labels, groups and folds.
    """
    scans, features = examples.scans, examples.features.astype(np.float64)
    count, views, labels, groups = len(scans.classes), examples.views, scans.labels, scans.groups
    answers = _answers_of_wrap(model, scans.classes)
    if answers is not None:
        # The wrap is sure of the scans that it has learned: neither head nor distances may rely on that.
        bank, views = bank.copy(), None if views is None else views.copy()
        for array in (features, bank, *([] if views is None else [views])):
            array[:, answers] = 0.0
    folds = draw_folds(labels, groups, arguments.folds, arguments.seed)
    is_calibrated = (folds >= 0).sum() >= CALIBRATED_FROM
    if examples.learns_views:
        assert views is not None
        features = np.concatenate([features, views])
        labels, groups, folds = (np.tile(values, 2) for values in (labels, groups, folds))
    # The head learns from all scans; heads of the folds only judge, and calibrate.
    head = fit_head(features, labels, count, plan.strength)
    held = folds >= 0
    # Beside learned features, descriptors make classes that were not learned harder to tell.
    widths = model.config.widths()
    are_learned = [name != "descriptors" or len(widths) == 1 for name in widths]
    learned = np.repeat(are_learned, list(widths.values()))
    logits, signs = _held_out(features, labels, folds, count, plan.strength, bank, learned)
    if is_calibrated:
        temperature = fit_temperature(logits[held], labels[held])
        head, logits = head.cooled(temperature), logits / temperature
    if answers is not None:
        assert arguments.wrap_weight is not None
        head = joined_with_scores(head, answers, arguments.wrap_weight, WRAP_SHARPNESS)
    model.set_head(*(torch.from_numpy(getattr(head, name)).float() for name in ("weight", "bias", "mean", "scale")))
    if not held.any():
        return head, None
    standard, judged = torch.from_numpy(head.standardize(features)).float(), torch.from_numpy(held)
    judged_logits = torch.from_numpy(logits[held]).float()
    different = [len(np.unique(groups[labels == label])) for label in range(count)]
    # A wrap has usually seen the scans that the folds hold out.
    is_stated = min(different) >= STATED_FROM and "wrap" not in model.config.features
    signs = {name: values[judged] for name, values in signs.items()} | {"unknown_surprise": surprise(judged_logits)}
    model.fit_unknown_score(
        standard[judged],
        judged_logits,
        torch.from_numpy(groups[held]),
        torch.from_numpy(head.standardize(bank)).float() if len(bank) else None,
        signs,
        _projection(head.standardize(features), labels, learned),
    )
    model.config.unknown_share = model.config.unknown_share if is_stated else None
    score = model.unknown_score
    assert score is not None
    # Scans that are alone in their class calibrate nothing, but what is like them is known.
    score.features = torch.cat([score.features, score.project(standard[~judged])])
    model.config.unknown_rows = len(standard)
    if views is not None and arguments.one_sided and not examples.learns_views:
        weight, bias = fit_side(head.standardize(features), head.standardize(views), folds)
        model.set_side_head(torch.from_numpy(weight).float(), bias)
    alone = [name for label, name in enumerate(scans.classes) if not held[labels == label].any()]
    how = f"cross-validation in {folds.max() + 1} folds"
    if answers is not None:
        how += " of the linear head alone (the wrap, which has seen all scans, is not judged and usually adds to it)"
    elif "wrap" in model.config.features:
        how += " (flattering if the wrap has learned from these scans)"
    if np.median(list(scans.counts.values())) < _FEW:
        how += ", by heads that learned from fewer scans, so that some points more can be expected"
    how += f", without {', '.join(alone)}, alone in the class" if alone else ""
    how += ", which also calibrates the scores" if is_calibrated else ""
    refused = np.zeros(len(held), bool)
    refused[held] = is_none_of_these(score_of_signs(signs, model.config), model.config).numpy()
    own = len(scans.labels)
    if examples.learns_views:
        of_views = Estimate.from_logits(logits[own:], scans.labels, scans.classes, how, refused[own:])
        how += f", with {100 * of_views.accuracy:.0f} % of the views right"
    return head, Estimate.from_logits(logits[:own], scans.labels, scans.classes, how, refused[:own])


def _projection(standard: np.ndarray, labels: np.ndarray, learned: np.ndarray) -> torch.Tensor:
    """Return the projection of the unknown score by standardized features (rows, width), `learned` ones alone."""
    projection = np.zeros((len(learned), learned.sum()))
    projection[learned] = whitening(standard[:, learned], labels)
    return torch.from_numpy(projection).float()


def _held_out(
    features: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    num_classes: int,
    strength: float,
    bank: np.ndarray,
    learned: np.ndarray,
) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Return what models of the other folds say of each row: logits (rows, classes), and signs of the unknown score.

    Features are standardized without the rows that are held out, too: what is far from all scans in one feature alone
    would else be as near as the others, since it widens that feature's deviation itself.
    """
    logits, signs = np.full((len(labels), num_classes), np.nan), {}
    for held, head in heads_of_folds(features, labels, folds, num_classes, strength):
        logits[held] = head.logits(features[held])
        score = UnknownScore(int((~held).sum()), features.shape[1], len(bank), int(learned.sum()))
        standard = head.standardize(features[~held])
        score.projection = _projection(standard, labels[~held], learned)
        score.features = score.project(torch.from_numpy(standard))
        if len(bank):
            score.bank = score.project(torch.from_numpy(head.standardize(bank)))
        found = score.signs(torch.from_numpy(head.standardize(features[held])).float(), torch.zeros(int(held.sum())))
        for name, values in found.items():
            signs.setdefault(name, torch.full((len(labels),), torch.nan))[torch.from_numpy(held)] = values
    return logits, signs


def _evaluate(
    model: PointFeaturesForPointCloudClassification, head: LinearHead, rows: Dataset, features: np.ndarray
) -> Estimate:
    """Judge a model on a split that it has not learned from; what is of no learned class counts as wrong."""
    names, classes = class_names(rows), list(model.config.id2label.values())
    labels = np.array([names[label] for label in rows.with_format(None)["label"][:]])
    known = np.isin(labels, classes)
    every = classes + sorted({*labels[~known]})
    # Not -inf, so that the loss of a class that was not learned stays finite.
    logits = np.full((len(rows), len(every)), -1e3)
    logits[:, : len(classes)] = own = head.logits(features)
    standard = torch.from_numpy(head.standardize(features)).float()
    unknown = model.score_unknown(standard, torch.from_numpy(own).float())
    refused = None if unknown is None else is_none_of_these(unknown.numpy(), model.config)
    numbers = np.array([every.index(label) for label in labels])
    return Estimate.from_logits(logits, numbers, every, "its own split", refused)


def _save(
    model: PointFeaturesForPointCloudClassification,
    processor: PointCloudProcessor,
    examples: Examples,
    facts: dict[str, Any],
    plan: Plan,
    judged: dict[str, Estimate],
    stopwatch: Stopwatch,
    arguments: FewScansArguments,
) -> RunReport:
    """Write everything; metrics.json last, which marks the run as complete."""
    config = model.config
    report = RunReport(
        data=facts,
        encoder={},
        adapter={},
        trained_parameters=count_parameters(model.classifier)[1],
        total_parameters=count_parameters(model)[1],
        seconds=stopwatch.stop(),
        peak_memory=peak_memory(),
        metrics={split: estimate.metrics() for split, estimate in judged.items()},
        class_accuracy={split: estimate.class_accuracy() for split, estimate in judged.items()},
        selection={},
        training={
            "way": "frozen features with a linear head",
            "features": list(config.features),
            "copies": config.copies,
            "copy_turn": config.copy_turn,
            "copy_scale": list(config.copy_scale),
            "copy_jitter": config.copy_jitter,
            "strength": plan.strength,
            "drawn things of no class": config.unknown_bank_rows,
            "chosen": plan.reason,
        },
    )
    folder = Path(arguments.output_dir)
    remove_model(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    examples.save(folder)
    sure = "\n\n".join(estimate.section() for estimate in judged.values()) or "Unknown: no class has two scans."
    card = build_model_card(
        Subject.from_model(model, report, processor.num_points),
        folder.name if folder.is_absolute() else str(folder),
        license=arguments.license,
        sections={"How sure": sure},
    )
    save_card(card, folder / FILE)
    report.save(folder / "metrics.json")
    return report


def _lines(
    origin: str,
    scans: Scans,
    plan: Plan,
    judged: dict[str, Estimate],
    config: PointFeaturesConfig,
    channels: Sequence[str],
    unlike: int,
) -> list[str]:
    count = len(scans.labels)
    by_count = sorted((number, name) for name, number in scans.counts.items())
    (least, rarest), (most, commonest) = by_count[0], by_count[-1]
    counts = f"{least} ({rarest}) to {most} ({commonest})" if least < most else f"{most} each"
    copies = f"{scans.num_copies} near-duplicates"
    if pairs := equal(scans.groups.tolist()):
        copies += f", such as {scans.names[pairs[0][0]]} and {scans.names[pairs[0][1]]}"
    seen = f"{origin}: {count} scans of {len(scans.classes)} classes, {counts}; {copies}; up axis {config.up_axis}"
    turned = "any heading" if config.copy_turn >= 180 else "heading as scanned"
    mean = f"mean of {config.copies} copies, {turned}, " if config.copies > 1 else ""
    way = f"way: frozen {' and '.join(config.features)} features, {mean}with a linear head; {plan.reason}"
    if config.wrap_labels is not None:
        way = way.replace("with a linear head", "with a linear head, averaged with the answers of a trained wrap")
    elif advice := advice_for(scans.counts):
        way += f"; {advice}"
    estimate = judged.get(CROSS_VALIDATION)
    if estimate is None:
        sure = "accuracy: unknown, as no class has two different scans; with a second one of each it is estimated"
        confused, unknown = "confused: unknown, for the same reason", "none of these: never said, for the same reason"
    else:
        sure = f"accuracy: {estimate.text()}, by {estimate.how}; the saved model learned from all {count}"
        confused = f"confused: {estimate.confusion_text()}"
        if config.unknown_share is not None:
            unknown = f"said of at most {100 * config.unknown_share:.0f} % of further scans like these, by those that "
            unknown += "were held out, and of part of what is unlike them"
        elif "wrap" in config.features:
            unknown = "never said, as the wrap may have seen the scans by which its level would be found"
        else:
            unknown = f"never said, as its level takes {STATED_FROM} different scans of each class"
        unknown = f"none of these: {unknown}"
        if not config.unknown_bank_rows and unlike and len(channels) > 1:
            unknown += f"; it knows no drawn things, which have no {', '.join(channels[1:])}"
    splits = [f"{split}: {found.text()}" for split, found in judged.items() if split != CROSS_VALIDATION]
    return [seen, way, sure, *splits, confused, unknown]
