"""Robustness of classifiers: accuracy on corrupted, sparse, rotated and colorless copies of labeled clouds.

The corruptions are those of `corruptions.py`. They are made from the evaluated clouds, so the figures
are not those of ModelNet40-C's published files.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from scipy.spatial.transform import Rotation

from hf_any3d.data.inputs import ATTRIBUTES, first_channel
from hf_any3d.data.point_arrays import resample_index, rotation_matrix
from hf_any3d.data.tables.numpy_rows import choose_columns, columns_of
from hf_any3d.data.torch_datasets import ArrowRows
from hf_any3d.model_card.saving import FILE as CARD, add_section
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.rows import PreparedRows
from hf_any3d.training.saved_models import EvaluationSettings, classifier_trainer
from hf_any3d.utils.atomic_files import atomic_write, read_json, write_json, write_text
from hf_any3d.utils.markdown import inline
from hf_any3d.utils.messages import percent
from hf_any3d.utils.progress import progress_bar
from hf_any3d.visualization.figures import new_figure
from studies.robustness.corruptions import CORRUPTIONS, FAMILIES, SEVERITIES, corrupt

if TYPE_CHECKING:
    from transformers import Trainer

NAME = "robustness"
"""Name of the files of a report: robustness.json, robustness.md and robustness.png."""
_VERSION = 1  # raised when corruptions change, so that no stored row is mixed with new ones
_METRICS = ("accuracy", "mean_class_accuracy")


@dataclass(frozen=True)
class Condition:
    """Something done to every cloud of a split, such as gaussian noise."""

    family: str
    """density, noise or transformation for corruptions; points, orientation or color."""
    name: str
    level: int = 0
    """Severity, number of points or limit of the angle in degrees."""

    def apply(self, points: np.ndarray, generator: np.random.Generator, processor: PointCloudProcessor) -> np.ndarray:
        """Return the changed cloud (num_points', channels) of a processed one (num_points, channels)."""
        if self.family in FAMILIES:
            settings = {"features": processor.features, "up_axis": processor.up_axis}
            return corrupt(points, self.name, self.level, generator, **settings)
        if self.family == "points":
            return points[generator.choice(len(points), min(self.level, len(points)), replace=False)]
        if self.family == "color":
            first = first_channel(processor.features, "rgb")
            points = points.copy()
            # One gray for all points tells nothing.
            points[:, first : first + 3] = _GRAYS[self.name]
            return points
        if self.name == "any axis":
            # All rotations are equally likely.
            matrix = Rotation.random(None, generator).as_matrix()
        else:
            angle = np.radians(generator.uniform(-self.level, self.level))
            matrix = rotation_matrix("xyz".index(processor.up_axis), angle)
        points = points.copy()
        # About the mean, so that a cloud turns in place.
        center = points[:, :3].mean(axis=0)
        points[:, :3] = (points[:, :3] - center) @ matrix + center
        if "normals" in processor.features:
            first = first_channel(processor.features, "normals")
            points[:, first : first + 3] = points[:, first : first + 3] @ matrix
        return points


_GRAYS = {"gray": 0.5, "black": 0.0}


def conditions(processor: PointCloudProcessor) -> list[Condition]:
    """List the conditions of a report: 15 corruptions at 5 severities, fewer points, rotations, missing colors.

    Colors are removed only for models that use them.
    """
    listed = [
        Condition(family, corruption.__name__, severity)
        for family, members in FAMILIES.items()
        for corruption in members
        for severity in SEVERITIES
    ]
    # Down to a sixteenth, as far as the model takes so few.
    counts = [processor.num_points // divisor for divisor in (2, 4, 8, 16)]
    listed += [Condition("points", "number of points", count) for count in counts if count >= processor.min_points]
    listed += [Condition("orientation", "up axis", limit) for limit in (30, 90, 180)]
    listed += [Condition("orientation", "any axis", 180)]
    if "rgb" in processor.features:
        listed += [Condition("color", name) for name in _GRAYS]
    return listed


class ConditionRows(PreparedRows):
    """Rows `{"points": (num_points, channels), "label": …}` of clouds under a condition.

    A cloud is sampled and normalized by the processor, changed, and prepared by the processor again, which fills up
    missing points by repeats and reduces surplus ones. Random choices depend on seed, condition and row.
    """

    def __init__(self, dataset: Dataset, processor: PointCloudProcessor, condition: Condition, seed: int = 0):
        # Only the columns that the processor reads.
        needed = ("points", *(ATTRIBUTES[name] for name in processor.features[1:]), "label")
        given = columns_of(dataset)
        self.rows = ArrowRows(choose_columns(dataset, [name for name in needed if name in given]))
        self.processor = processor
        self.condition = condition
        self.seed = seed
        # Not `hash`, which differs between processes.
        self._key = zlib.crc32(f"{condition.name} {condition.level}".encode())
        # Half of the points remain, see `density_inc`.
        self._num_points = processor.num_points * (2 if condition.name == "density_inc" else 1)

    def __len__(self) -> int:
        return len(self.rows)

    def prepare_row(self, number: int) -> dict[str, Any]:
        """Return a cloud under the condition."""
        row = self.rows[number]
        # The same change in whichever worker, and however often, a row is read.
        generator = np.random.default_rng((self.seed, self._key, number))
        # No more points than the cloud has: repeats would distort what density and noise do to it.
        available = max(len(row["points"]), self.processor.min_points)
        with warnings.catch_warnings():
            # Fewer points are what some conditions are about.
            warnings.filterwarnings("ignore", message=".*fewer than num_points", category=UserWarning)
            points = self._process(row, min(self._num_points, available))
            points = self.condition.apply(points, generator, self.processor)
            # Models take no fewer points than these.
            if len(points) < self.processor.min_points:
                points = points[resample_index(len(points), self.processor.min_points)]
            points = self._process(points)
        return {"points": points, "label": row["label"]}

    def _process(self, cloud: Any, num_points: int | None = None) -> np.ndarray:
        return self.processor(cloud, num_points=num_points, seed=self.seed, return_tensors="np")["points"][0]


def evaluate_robustness(
    model_name: str,
    rows: Dataset,
    split: str,
    settings: EvaluationSettings,
    clean: Mapping[str, float],
    folder: str | os.PathLike,
    **hub: Any,
) -> dict[str, Any]:
    """Evaluate a saved classifier on corrupted, sparse, rotated and colorless clouds; see `robustness_report`.

    An interrupted evaluation resumes from robustness.json in `folder`; `clean` are the metrics on the same rows by
    `evaluate_classifier`.
    """
    with classifier_trainer(model_name, rows, split, settings, hub) as (trainer, processor, _):
        about = {
            "model": model_name,
            "dataset": settings.data.train_file or settings.data.dataset_name,
            "options": settings.data.dataset_options,
            "split": split,
        }
        path = Path(folder) / f"{NAME}.json"
        return robustness_report(trainer, rows, processor, clean, about=about, seed=settings.seed, path=path)


def robustness_report(
    trainer: Trainer,
    dataset: Dataset,
    processor: PointCloudProcessor,
    clean: Mapping[str, float],
    *,
    about: Mapping[str, Any] | None = None,
    seed: int = 0,
    path: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Evaluate a classifier under all conditions.

    Args:
        trainer: Has the model, and `compute_classification_metrics` as its `compute_metrics`.
        dataset: Labeled clouds.
        processor: Processor of the model.
        clean: Metrics on the unchanged clouds: accuracy, mean class accuracy and loss.
        about: Further facts of the report, such as the names of model and dataset.
        seed: Seed of all random choices.
        path: JSON file that gets the report after each condition; conditions in it are not evaluated again if it is
            of the same settings and clean metrics.

    Returns:
        `settings`, `clean` metrics, `rows` with family, name, level and metrics of each condition, and `summary`.
    """
    # All that the figures depend on: a stored report of other settings is made anew.
    settings = {
        **(about or {}),
        "clouds": len(dataset),
        "points": processor.num_points,
        "features": list(processor.features),
        "seed": seed,
        "version": _VERSION,
    }
    # A report of an interrupted evaluation holds the conditions that are done.
    stored = read_json(Path(path)) if path is not None else None
    report: dict[str, Any] = {"settings": settings, "clean": dict(clean), "rows": []}
    if isinstance(stored, dict) and (stored.get("settings"), stored.get("clean")) == (settings, dict(clean)):
        report["rows"] = stored["rows"]
    done = {(row["family"], row["name"], row["level"]) for row in report["rows"]}
    todo = []
    for condition in conditions(processor):
        if (condition.family, condition.name, condition.level) not in done:
            todo.append(condition)
    for condition in progress_bar(todo, desc=NAME, unit="condition"):
        rows = ConditionRows(dataset, processor, condition, seed)
        predicted: Any = trainer.predict(rows, metric_key_prefix=NAME).metrics
        metrics = {name: float(predicted[f"{NAME}_{name}"]) for name in _METRICS}
        report["rows"].append({**asdict(condition), **metrics})
        # After each condition, so that an interruption costs one of them.
        if path is not None:
            write_json(path, report)
    report["summary"] = summarize_robustness(report["clean"], report["rows"])
    if path is not None:
        write_json(path, report)
    return report


def summarize_robustness(clean: Mapping[str, float], rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Compute the mean accuracies over all corruptions and of each family, and the lowest mean of a corruption."""
    # Means are over corruptions; the other conditions are rows by themselves.
    rows = [row for row in rows if row["family"] in FAMILIES]

    def mean(key: str, value: str) -> float:
        return float(np.mean([row["accuracy"] for row in rows if row[key] == value]))

    return {
        "clean": clean["accuracy"],
        "corrupted": float(np.mean([row["accuracy"] for row in rows])),
        **{family: mean("family", family) for family in FAMILIES},
        "lowest": min(mean("name", name) for name in CORRUPTIONS),
    }


def robustness_table(report: Mapping[str, Any]) -> str:
    """Format a report as Markdown: a table of the corruptions, one of the other conditions, and what they are."""
    summary = report["summary"]
    settings = report["settings"]
    shown = ", ".join(f"{family} {percent(summary[family], 1)}" for family in FAMILIES)
    # Reports that are made in Python may lack these names.
    data = " of ".join(inline(settings[key]) for key in ("split", "dataset") if settings.get(key))
    lines = [
        f"Overall accuracy in percent on {settings['clouds']} clouds{f' ({data})' if data else ''}, "
        f"{settings['points']} points each: **{percent(summary['clean'], 1)}** on clean clouds, "
        f"**{percent(summary['corrupted'], 1)}** on average over 15 corruptions at 5 severities ({shown}).",
        "",
        f"| corruption | family | {' | '.join(map(str, SEVERITIES))} | mean |",
        "|---|---|" + "---|" * (len(SEVERITIES) + 1),
    ]
    for family, members in FAMILIES.items():
        for name in (member.__name__ for member in members):
            values = _levels(report, name)
            cells = [*(percent(value, 1) for value in values), percent(float(np.mean(values)), 1)]
            lines.append(f"| {name} | {family} | {' | '.join(cells)} |")
    lines += ["", "| other condition | accuracy | mean class accuracy |", "|---|---|---|"]
    lines.append(f"| clean | {' | '.join(percent(report['clean'][name], 1) for name in _METRICS)} |")
    for row in report["rows"]:
        if row["family"] not in FAMILIES:
            lines.append(f"| {_title(row)} | {' | '.join(percent(row[name], 1) for name in _METRICS)} |")
    lines += [
        "",
        "Corruptions are those of ModelNet40-C (arXiv 2201.12296), made from these clouds with one seed; the figures "
        "are not comparable with those on its published files.",
    ]
    return "\n".join(lines)


def plot_robustness(report: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Draw accuracy over severity for each family, and the other conditions as bars; needs matplotlib."""
    figure = new_figure(figsize=(16, 4.5), layout="constrained")
    panels: Any = figure.subplots(1, len(FAMILIES) + 1)
    clean = 100 * report["clean"]["accuracy"]
    # The last panel is left for the other conditions.
    for panel, (family, members) in zip(panels, FAMILIES.items(), strict=False):
        for member, marker in zip(members, "osv^D", strict=True):
            values = [100 * value for value in _levels(report, member.__name__)]
            panel.plot(SEVERITIES, values, marker=marker, markersize=4, label=member.__name__)
        panel.axhline(clean, color="gray", linestyle="--", label="clean")
        panel.set(title=family, xlabel="severity", xticks=SEVERITIES, ylim=(0, 102), ylabel="accuracy, %")
        panel.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    # Bars are drawn upwards; reversed, they read in the order of the table.
    others = [row for row in reversed(report["rows"]) if row["family"] not in FAMILIES]
    panels[-1].barh(range(len(others)), [100 * row["accuracy"] for row in others], color="steelblue")
    panels[-1].axvline(clean, color="gray", linestyle="--")
    panels[-1].set_yticks(range(len(others)), map(_title, others), fontsize=8)
    panels[-1].set(title="other conditions", xlabel="accuracy, %", xlim=(0, 102))
    path = Path(path)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:] or "png", dpi=150, bbox_inches="tight")
    return path


def write_robustness(report: Mapping[str, Any], folder: str | os.PathLike) -> tuple[list[Path], list[str]]:
    """Write robustness.json, .md and .png, and a section of the model card in the same folder, if there is one.

    Returns the files, and remarks on those not written: matplotlib is missing, or the card was edited by hand.
    """
    folder = Path(folder)
    remarks = []
    written = [write_json(folder / f"{NAME}.json", dict(report))]
    table = robustness_table(report)
    written.append(write_text(folder / f"{NAME}.md", f"# Robustness\n\n{table}\n"))
    # Without matplotlib the table is still written.
    try:
        written.append(plot_robustness(report, folder / f"{NAME}.png"))
    except ImportError as error:
        remarks.append(f"no {NAME}.png: {error}")
    card = folder / CARD
    if card.is_file():
        picture = f"![Accuracy over severity]({NAME}.png)\n\n" if (folder / f"{NAME}.png").is_file() else ""
        if add_section(card, "Robustness", picture + table) is None:
            remarks.append(f"{card} was edited by hand and is kept; {NAME}.md has the text of its section")
        else:
            written.append(card)
    return written, remarks


def _levels(report: Mapping[str, Any], name: str) -> list[float]:
    accuracies = {row["level"]: row["accuracy"] for row in report["rows"] if row["name"] == name}
    return [accuracies[severity] for severity in SEVERITIES]


def _title(row: Mapping[str, Any]) -> str:
    if row["family"] == "points":
        return f"{row['level']} points"
    if row["family"] == "color":
        return f"{row['name']} in place of colors"
    if row["name"] == "any axis":
        return "rotated about any axis"
    return f"rotated about the {row['name']} by up to {row['level']}°"
