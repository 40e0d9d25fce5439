"""Add points that a person has labeled to a saved model of tiles, which learns them beside what it has stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from hf_any3d.data.classes.las_classes import ASPRS_CLASSES
from hf_any3d.data.files import PointCloudData, file_errors, read_point_cloud
from hf_any3d.data.files.source import NoPointsError
from hf_any3d.data.frames.units import LENGTHS, with_unit
from hf_any3d.data.tables.small_tables import plain_name
from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters, peak_memory
from hf_any3d.model_card.saving import write_run_card
from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.training import program
from hf_any3d.training.arguments import argument
from hf_any3d.training.few_scans.training import Learned
from hf_any3d.training.requests import ExtensionRequest
from hf_any3d.training.trainer import replacing_model
from hf_any3d.utils.atomic_files import release_claims
from hf_any3d.utils.markdown import inline
from hf_any3d.utils.messages import counted, percent
from hf_any3d_survey.local_features import LocalFeaturesConfig, LocalFeaturesForPointCloudSegmentation
from hf_any3d_survey.local_features.fitting import Rows, logits_of, with_added
from hf_any3d_survey.processor import LocalFeaturesProcessor
from hf_any3d_survey.segmentation.steps import PART_POINTS
from hf_any3d_survey.tiles.answers import (
    Answers,
    codes_by_name,
    is_answers,
    one_for_each_point,
    read_all_answers,
    tile_of_each,
)
from hf_any3d_survey.tiles.places import places_of
from hf_any3d_survey.tiles.reading import look_at, refuse_without_points, tile_files, told

LEAST_NEW = 10
"""Points of a class that the model does not have, below which its name is more likely mistyped."""
_FOLDS, _LEAST_JUDGED = 5, 20
_NEAR = 0.5
"""Meters within which answered points are held out together: suggested ones are farther apart."""


@dataclass
class AddedArguments:
    """Settings of adding points to a model of tiles."""

    from_model: str = argument(help="Directory of the model to add the points to; it is not changed.")
    output_dir: str = argument("trainer_output", help="Output directory for the new model.")
    unit: str | None = argument(None, help="Unit of tiles that do not state one: meters, feet or us-feet.")
    seed: int = argument(42, help="Random seed for order and noise.")
    license: str | None = argument(None, help="License identifier for the model card, as on the Hub.")

    def __post_init__(self):
        check_settings(self, {"unit": (None, *LENGTHS)})


@dataclass
class AddedPoints(ExtensionRequest):
    """Request to add points to a model of tiles."""

    arguments: AddedArguments

    def learn(self, paths: Sequence[str | Path]) -> Learned:
        """Learn the answers among files and folders, see `learn_added_points`."""
        return learn_added_points(self, paths)


@dataclass(frozen=True)
class Named:
    """Answers as labels of the new model.

    Attributes:
        labels: (points,) number of the class of each answer.
        names: Names of all classes, those of the model first.
        codes: Code that files get for each class.
        members: Codes that files may have for each class.
        new: Names of the classes that were added.
    """

    labels: np.ndarray
    names: list[str]
    codes: list[int]
    members: list[list[int]]
    new: list[str]


def learn_added_points(request: AddedPoints, paths: Sequence[str | Path]) -> Learned:
    """Learn the answers among the files `paths`, about points of the others, and save model, card and metrics.json.

    Raises:
        ValueError: There are no answers, or no tiles; a point is not where it was in its tile; a class is new and has
            few points; or the model has stored nothing to learn beside them.
    """
    stopwatch = Stopwatch()
    arguments = request.arguments
    files = tile_files(paths)
    answer_files = [path for path in files if is_answers(path)]
    tile_paths = [path for path in files if path not in answer_files]
    if not answer_files or not tile_paths:
        missing = "answers, such as the .csv that a page of hf-any3d data suggest saves"
        if answer_files:
            missing = f"tile with the points of {answer_files[0].name}"
        raise ValueError(f"--from {arguments.from_model}: no {missing}; pass the answers and their tiles")
    earlier = Path(arguments.from_model)
    if earlier.resolve() == Path(arguments.output_dir).resolve():
        raise ValueError(f"--output {earlier} is the model to extend; give another directory")
    model = LocalFeaturesForPointCloudSegmentation.from_pretrained(earlier).eval()
    processor = LocalFeaturesProcessor.from_pretrained(earlier)
    if not model.config.learned_rows:
        raise ValueError(f"--from {earlier}: the model stores no training points; train it again on its tiles")
    with stopwatch.part("data"):
        answers = read_all_answers(answer_files)
        tiles = _read_tiles(tile_paths, processor, arguments.unit)
        tile_of = tile_of_each(answers, tiles, processor.unit == "meters")
        named = name_answers(answers, model.config)
        kept = one_for_each_point(answers, named.labels, named.names, [*tiles.values()], tile_of)
        if len(kept) < len(answers):
            again = len(answers) - len(kept)
            told([f"answers: {again:,} of {len(answers):,} are duplicates and count once"])
            answers = answers.part(kept)
            tile_of = tile_of[kept]
            # A new class may have had enough points by those.
            named = name_answers(answers, model.config)
    program.claim_output(Path(arguments.output_dir))
    with stopwatch.part("features"):
        added = _rows(answers, named, tiles, tile_of, processor)
    with stopwatch.part("estimate"):
        before = logits_of(model, added.features)[0].argmax(axis=1) == added.labels
        config = _config(model.config, named)
        groups = _near_each_other(answers, tiles, tile_of, processor)
        held_out = _right_when_held_out(model, added, config, processor, arguments.seed, groups)
    with stopwatch.part("training"):
        found = with_added(model, added, config, processor.may_miss, arguments.seed)
    counts = Counter(named.names[label] for label in named.labels)
    facts: dict[str, Any] = {
        "points": len(answers),
        "classes": dict(counts),
        "new classes": named.new,
        "tiles": [path.name for number, path in enumerate(tiles) if (tile_of == number).any()],
        "right before": int(before.sum()),
        "right when held out": None if held_out is None else int(held_out.sum()),
    }
    report = _save(found, processor, facts, earlier, stopwatch, arguments)
    release_claims()
    classes = ", ".join(f"{name} {count}" for name, count in facts["classes"].items())
    lines = [
        f"{', '.join(facts['tiles'])}: {counted(facts['points'], 'point')} added to {arguments.from_model}: {classes}"
    ]
    lines += [f"new class: {name}" for name in facts["new classes"]]
    lines.append(_sure(facts))
    return Learned(report, lines)


def _read_tiles(
    paths: Sequence[Path], processor: LocalFeaturesProcessor, unit: str | None
) -> dict[Path, PointCloudData]:
    """Read the tiles as suggestions do, so that row numbers agree; warn of tiles without points and skip them."""
    tiles = {}
    empty: list[NoPointsError] = []
    for path in paths:
        try:
            cloud = read_point_cloud(path, columns=processor.columns)
        except NoPointsError as error:
            told([f"{error}; skipped"])
            empty.append(error)
            continue
        tiles[path] = with_unit(cloud, unit)
    refuse_without_points(paths, empty)
    return tiles


def name_answers(answers: Answers, config: LocalFeaturesConfig) -> Named:
    """Return the answers as numbers of classes: those of the model, whatever the case of letters, and new ones.

    Raises:
        ValueError: A class is not among those of the model, and has fewer than 10 points.
    """
    id2label: Any = config.id2label
    names = [id2label[number] for number in sorted(id2label)]
    codes = [int(code) for code in config.class_codes or range(len(names))]
    members = [list(map(int, own)) for own in config.learned_codes or [[code] for code in codes]]
    of_name = {plain_name(name): number for number, name in enumerate(names)}
    of_code = {code: number for number, own in enumerate(members) for code in own}
    # Of a model that joins low and high vegetation, both words are its class.
    for code, title in ASPRS_CLASSES.items():
        if code in of_code:
            of_name.setdefault(plain_name(title), of_code[code])
    new: list[str] = []
    labels = np.empty(len(answers), np.int64)
    for place, said in enumerate(answers.classes):
        if isinstance(said, int):
            # A class may be called by a number.
            number = of_name.get(str(said), of_code.get(said))
            title = ASPRS_CLASSES.get(said, f"class {said}")
        else:
            number = None
            title = said
        if number is None:
            number = of_name.get(plain_name(title))
        if number is None:
            number = len(names)
            names.append(title)
            new.append(title)
            of_name[plain_name(title)] = number
            code = said if isinstance(said, int) else codes_by_name(names, codes)[title]
            codes.append(code)
            members.append([code])
            of_code[code] = number
        labels[place] = number
    for name in new:
        count = int((labels == names.index(name)).sum())
        if count < LEAST_NEW:
            known = ", ".join(names[: len(id2label)])
            first = int((labels == names.index(name)).argmax())
            raise ValueError(
                f"{answers.place(first)}: class {name!r} is new and has only {counted(count, 'point')}; label at "
                f"least {LEAST_NEW} points of it, or use one of {known}"
            )
    return Named(labels, names, codes, members, new)


def _config(config: LocalFeaturesConfig, named: Named) -> LocalFeaturesConfig:
    changed: dict[str, Any] = {
        "id2label": dict(enumerate(named.names)),
        "label2id": {name: number for number, name in enumerate(named.names)},
        "class_codes": named.codes,
        "learned_codes": named.members,
    }
    return LocalFeaturesConfig.from_dict(config.to_dict() | changed)


def _rows(
    answers: Answers,
    named: Named,
    tiles: Mapping[Path, PointCloudData],
    tile_of: np.ndarray,
    processor: LocalFeaturesProcessor,
) -> Rows:
    """Describe the points of the answers; tiles near each other are one place."""
    near = {}
    for path, cloud in tiles.items():
        near[path] = processor.split_far(cloud, path)
    facts = [look_at(path, cloud) for path, (cloud, _) in near.items()]
    place_of_tile = places_of(facts) if processor.unit == "meters" else np.arange(len(facts))
    features = np.empty((len(answers), len(processor.names())), np.float32)
    for number, (path, (cloud, far)) in enumerate(near.items()):
        asked = np.flatnonzero(tile_of == number)
        if not len(asked):
            continue
        rows = answers.rows
        if far is not None:
            if far.is_far[rows[asked]].any():
                first = int(asked[far.is_far[rows[asked]].argmax()])
                raise ValueError(
                    f"{answers.place(first)}: row {rows[first]} of {path.name} is far from all other points of the "
                    "tile; remove this row"
                )
            # Numbers among the points of the place
            rows = np.cumsum(~far.is_far)[rows.clip(0, len(far.is_far) - 1)] - 1
        with file_errors(path):
            processor.check_measured(cloud)
            scan = processor.describe(cloud)
        for inside, around in scan.parts(PART_POINTS, scan.reach):
            own = asked[np.isin(rows[asked], inside)]
            if len(own):
                features[own] = scan.neighborhoods(around).features(np.searchsorted(around, rows[own]))
    # Tiles without an answer are no places.
    places = np.unique(place_of_tile[tile_of], return_inverse=True)[1]
    return Rows(features, named.labels, tile_of, places, np.zeros_like(tile_of))


def _near_each_other(
    answers: Answers, tiles: Mapping[Path, PointCloudData], tile_of: np.ndarray, processor: LocalFeaturesProcessor
) -> np.ndarray:
    """Return the group of each point, (points,): neighbors are in one group, since they are nearly the same sample."""
    clouds = [*tiles.values()]
    groups = np.arange(len(answers))
    # Without a unit, such as that of objects, the same place alone is near.
    reach = _NEAR if processor.unit == "meters" else 0.0
    unit = next((cloud.meters_per_axis[0] for cloud in clouds if cloud.meters_per_axis is not None), 1.0)
    if processor.unit != "meters":
        # Objects all lie around the origin.
        places = np.column_stack([answers.places, tile_of * 1e9])
    else:
        places = answers.places * unit
    pairs = KDTree(places).query_pairs(reach, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (len(groups), len(groups)))
    return connected_components(graph, directed=False)[1]


def _right_when_held_out(
    model: LocalFeaturesForPointCloudSegmentation,
    added: Rows,
    config: LocalFeaturesConfig,
    processor: LocalFeaturesProcessor,
    seed: int,
    groups: np.ndarray,
) -> np.ndarray | None:
    """Return which of the points (points,) are right when a fifth is held out in turn; None for few points.

    Those of a group, by their numbers `groups` (points,), are held out together.
    """
    count = len(added.labels)
    if count < _LEAST_JUDGED or groups.max() + 1 < _FOLDS:
        return None
    fold = (np.random.default_rng(seed).permutation(int(groups.max()) + 1) % _FOLDS)[groups]
    is_right = np.zeros(count, bool)
    for number in range(_FOLDS):
        learned = added.part(fold != number)
        found = with_added(model, learned, config, processor.may_miss, seed)
        held = fold == number
        is_right[held] = logits_of(found, added.features[held])[0].argmax(axis=1) == added.labels[held]
    return is_right


def _save(
    model: LocalFeaturesForPointCloudSegmentation,
    processor: LocalFeaturesProcessor,
    facts: dict[str, Any],
    earlier: Path,
    stopwatch: Stopwatch,
    arguments: AddedArguments,
) -> RunReport:
    """Write everything; metrics.json last, which marks the run as complete."""
    stored = earlier / "metrics.json"
    before = RunReport.load(stored) if stored.is_file() else None
    training = {} if before is None else dict(before.training)
    history = [*training.get("added", []), {"to": earlier.name, **facts, "seed": arguments.seed}]
    # The estimate of the earlier model is not one of this model, so it is in words alone.
    sure = [_sure(facts), ""]
    if before is not None:
        for split, values in before.metrics.items():
            if "mean_iou" in values:
                sure.append(f"Before adding points: mean IoU {percent(values['mean_iou'])} %, on {inline(split)}.")
    sure.append("No site was held out to evaluate the current model.")
    sure += ["", "### Added points", "", "| to | points | tiles | classes |", "|---|---|---|---|"]
    for entry in history:
        # Names come from files, and could break the table.
        classes = ", ".join(f"{inline(name)} {count}" for name, count in entry["classes"].items())
        tiles = ", ".join(map(inline, entry["tiles"]))
        sure.append(f"| {inline(entry['to'])} | {entry['points']} | {tiles} | {classes} |")
    trained, total = count_parameters(model)
    data: dict[str, Any] = {"name": earlier.name, "rows": {}, "hub_type": "custom"}
    if before is not None:
        data = dict(before.data)
    id2label: Any = model.config.id2label
    names = [id2label[number] for number in sorted(id2label)]
    report = RunReport(
        data=data,
        encoder={},
        adapter={},
        trained_parameters=trained,
        total_parameters=total,
        seconds=stopwatch.stop(),
        peak_memory=peak_memory(),
        metrics={},
        class_accuracy={},
        selection={},
        training={
            **training,
            "added": history,
            "class codes": dict(zip(names, model.config.class_codes or (), strict=True)),
        },
    )
    folder = Path(arguments.output_dir)
    with replacing_model(folder) as new:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        write_run_card(model, report, processor.num_points, "\n".join(sure), new, arguments.license, folder)
    return report


def _sure(facts: Mapping[str, Any]) -> str:
    """Return what is known of the answers, in one sentence or two."""
    text = (
        f"{counted(facts['points'], 'point')} added; the previous model was right on {facts['right before']} of them."
    )
    if facts["right when held out"] is not None:
        text += (
            " Trained on four fifths of them and evaluated on the rest (5-fold cross-validation), it was right on "
            f"{facts['right when held out']}."
        )
    return text
