"""Published tables and figures of examples/recipes/published.yaml, and the steps that repeat their rows."""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_any3d.training.folds import Program
from hf_any3d.training.recipes import merge

PUBLISHED = "published.yaml"
PROGRAM = "run_point_cloud_classification.py"
CHAT, QUESTIONS, PICTURES, WEIGHTS = "run_minigpt3d.py", "table_questions", "table_pictures", "table_weights"
TRAINING = "training"
"""Name of the step of rows that have one."""
# Endings of metrics that are shares, shown in percent.
SHARES = ("accuracy", "iou", "miou", "f_score", "_25", "_50")


@dataclass(frozen=True)
class Step:
    """A program that is run for a row, with a recipe.

    Args:
        name: Name of the step in its table.
        recipe: Recipe with the published settings; None for programs without one.
        program: File of `examples/`, or module of `examples.repeat`.
        start: Argument that takes the folder of the step before; None where the recipe names what it starts from.
        released: The same recipe with the quirks of the released program.
        settings: Changes of the recipe's settings; mappings are merged with those of the recipe.
    """

    name: str
    recipe: str | None = None
    program: str = PROGRAM
    start: str | None = None
    released: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A figure of each row.

    Args:
        metric: Metric of a split; or a cost of the step: `trained_parameters`, `training_hours` or `gpu_gigabytes`.
        step: The step that it is measured in; None for the last one.
        split: The split.
        factor: What it is multiplied by where the paper shows another unit; None for 100 if it is a share, else 1.
    """

    metric: str = "accuracy"
    step: str | None = None
    split: str = "test"
    factor: float | None = None

    @property
    def shown_as(self) -> float:
        """Factor of the metric in the unit that is shown."""
        if self.factor is not None:
            return self.factor
        return 100.0 if self.metric.endswith(SHARES) else 1.0


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table, and the steps that repeat it.

    Args:
        steps: Programs to run, each after the one before.
        published: Published figure of each column, None where the authors state none; a row has at least one.
        deviation: Published standard deviation.
        way: Classes of a few-shot fold.
        shot: Training clouds per class of a few-shot fold.
        needs: What makes the local folder that the first step starts from.
    """

    steps: tuple[Step, ...]
    published: Mapping[str, float | None]
    deviation: float | None = None
    way: int | None = None
    shot: int | None = None
    needs: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """A published table or figure.

    Args:
        name: Its name in commands.
        paper: Name and number of the paper.
        place: Where it is in the paper, "" if that is not known.
        data: What it is measured on.
        source: How the authors measured, and where their figures come from.
        columns: Figures of a row.
        rows: Rows by name.
        note: What differs here, or is missing for everybody.
    """

    name: str
    paper: str
    place: str
    data: str
    source: str
    columns: Mapping[str, Column]
    rows: Mapping[str, PublishedRow]
    note: str = ""

    @property
    def trains(self) -> bool:
        """Return whether rows are trained here, not weights of the authors evaluated."""
        return any(step.program != WEIGHTS for row in self.rows.values() for step in row.steps)


def find_examples(folder: str | Path | None = None) -> Path:
    """Return the folder with the training programs and recipes, by default that of this checkout.

    Raises:
        FileNotFoundError: There is none: an installed package has no examples.
    """
    path = Path(__file__).resolve().parents[1] if folder is None else Path(folder)
    if not (path / "recipes" / PUBLISHED).is_file():
        raise FileNotFoundError(
            f"{path}: no recipes/{PUBLISHED}; recipes and training programs come with the source code, not with the "
            "installed package: run from a checkout, or pass --examples, the folder examples of one"
        )
    return path


def load_program(examples: Path, name: str = PROGRAM) -> Program:
    """Load a program: a file of `examples`, or a module of `examples.repeat`."""
    if not name.endswith(".py"):
        return importlib.import_module(f"examples.repeat.{name}").main
    path = examples / name
    if not path.is_file():
        known = ", ".join(sorted(file.name for file in examples.glob("run_*.py")))
        raise FileNotFoundError(f"no program {path}; there are {known}")
    return runpy.run_path(str(path))["main"]


def published_tables(examples: Path) -> dict[str, PublishedTable]:
    """Read examples/recipes/published.yaml."""
    stored = yaml.safe_load((examples / "recipes" / PUBLISHED).read_text(encoding="utf-8"))
    return {name: _table(name, facts, stored["papers"]) for name, facts in stored["tables"].items()}


def _table(name: str, facts: Mapping[str, Any], papers: Mapping[str, str]) -> PublishedTable:
    columns = {title: Column(**settings) for title, settings in facts.get("columns", {"accuracy": {}}).items()}
    return PublishedTable(
        name=name,
        paper=papers[facts["paper"]],
        place=facts.get("place", ""),
        data=facts["data"],
        source=facts["source"],
        columns=columns,
        rows={title: _row(facts, row or {}, columns) for title, row in facts["rows"].items()},
        note=facts.get("note", ""),
    )


def _row(table: Mapping[str, Any], row: Mapping[str, Any], columns: Mapping[str, Column]) -> PublishedRow:
    """Build a row; what it does not say is as the table says."""
    figures = row.get("published", {})
    if not isinstance(figures, Mapping):
        figures = {next(iter(columns)): figures}
    if "steps" in table:
        changes = row.get("changes", {})
        named = row.get("steps", list(table["steps"]))
        recipes = row.get("recipes", {})
        steps = tuple(_step(name, table["steps"][name], recipes.get(name), changes.get(name, {})) for name in named)
    else:
        both = {**table, **row}
        own = {key: both[key] for key in ("recipe", "program", "released") if key in both}
        steps = (Step(TRAINING, **own, settings=row.get("changes", {})),)
    return PublishedRow(
        steps=steps,
        published={title: figures.get(title) for title in columns},
        needs=row.get("needs", table.get("needs", "")),
        **{key: row[key] for key in ("deviation", "way", "shot") if key in row},
    )


def _step(name: str, facts: Mapping[str, Any], recipe: str | None, changes: Mapping[str, Any]) -> Step:
    """Build a step of a table with another recipe and the changes of a row."""
    other = {} if recipe is None else {"recipe": recipe, "released": None}
    return Step(name, **{**facts, **other, "settings": merge(facts.get("settings", {}), changes)})
