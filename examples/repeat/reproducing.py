"""Repeat published tables: run the steps of each row, and write what they measure beside the published figures."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.repeat.dry_runs import DryRun
from examples.repeat.published_tables import (
    PROGRAM,
    Column,
    PublishedRow,
    PublishedTable,
    Step,
    load_program,
)
from examples.repeat.series import write_tables
from examples.repeat.table_needs import check_needs
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.training.arguments import AdapterArguments
from hf_any3d.training.folds import mean_and_std, run_folds, run_once
from hf_any3d.training.recipes import merge, read_settings
from hf_any3d.utils.atomic_files import write_json, write_text
from hf_any3d.utils.messages import shown_path

FOLDS = 10
_COSTS = ("trained_parameters", "training_hours", "gpu_gigabytes")
_NOT_RUN = "not run"


@dataclass(frozen=True)
class Plan:
    """Plan of the runs of a table.

    Args:
        examples: Folder of the programs and recipes.
        steps_dir: Folder for the steps that lead to a row's last one; rows and tables share equal steps.
        data_dir: Folder with the files of the datasets.
        start: Model that the last step of each row starts from, in place of earlier steps.
        words: Further arguments of the last steps' programs.
        released: Whether to use the recipes with the quirks of the released programs.
        voting: Copies of each test cloud for voting.
        dry_run: Small settings in place of the recipes' ones; None for real runs.
        pictures: Files of the pictures that rows' last steps have drawn so far.
    """

    examples: Path
    steps_dir: Path
    data_dir: str | None = None
    start: str | None = None
    words: Sequence[str] = ()
    released: bool = False
    voting: int = 0
    dry_run: DryRun | None = None
    pictures: list[str] = field(default_factory=list)
    _programs: dict[str, Any] = field(default_factory=dict)

    def steps_of(self, row: PublishedRow) -> tuple[Step, ...]:
        """Return the steps to run: the last one alone if it starts from a given model."""
        return row.steps if self.start is None else row.steps[-1:]

    def recipe_of(self, step: Step) -> Path | None:
        """Return the file of a step's recipe."""
        name = f"released/{step.released}" if self.released and step.released else step.recipe
        return None if name is None else self.examples / "recipes" / f"{name}.yaml"

    def settings_of(self, step: Step) -> dict[str, Any]:
        """Return the settings of a step: those of its recipe, and its changes."""
        recipe = self.recipe_of(step)
        settings = {} if recipe is None else read_settings(recipe)
        for name in AdapterArguments.of_another_model(settings, step.settings):
            settings.pop(name, None)
        return merge(settings, step.settings)

    def words_of(self, row: PublishedRow, number: int, before: Path | None) -> list[str]:
        """Return the arguments of a step, without those of a seed or fold; `before` is the folder of the last one."""
        step = self.steps_of(row)[number]
        is_last = step is row.steps[-1]
        if self.dry_run is not None:
            words = [str(self.dry_run.write_settings(step, self.settings_of(step), before))]
        else:
            recipe = self.recipe_of(step)
            words = ([] if recipe is None else [str(recipe)]) + setting_words(step.settings)
            words += [] if self.data_dir is None else ["--data_dir", self.data_dir]
        if self.start is not None:
            words += [f"--{step.start or 'model_name_or_path'}", self.start]
        elif before is not None and step.start is not None:
            words += [f"--{step.start}", str(before)]
        if is_last:
            words += self.words
            words += ["--voting", str(self.voting)] if self.voting and step.program == PROGRAM else []
        return words

    def run(self, row: PublishedRow, folder: Path, seed: int) -> dict[str, RunReport]:
        """Run the steps of a row with a seed, the last one in `folder`; returns the report of each step."""
        reports: dict[str, RunReport] = {}
        before: Path | None = None
        for number, step in enumerate(self.steps_of(row)):
            words = [*self.words_of(row, number, before), "--seed", str(seed)]
            is_last = step is row.steps[-1]
            before = folder if is_last and self.dry_run is None else self._shared_folder(step, words)
            reports[step.name] = run_once(self.program(step), words, before)
        assert before is not None
        self.pictures.extend(str(path) for path in sorted(before.glob("*.html")) if path.stem != "results")
        return reports

    def run_folds(self, row: PublishedRow, folder: Path, seed: int) -> list[RunReport]:
        """Run all folds of a few-shot row; returns the report of each."""
        shots = {"way": row.way, "shot": row.shot}
        folds, option = FOLDS, "--dataset_options"
        if self.dry_run is not None:
            folds, option, shots = self.dry_run.folds, "--few_shot", self.dry_run.few_shot
        (step,) = self.steps_of(row)
        words = [*self.words_of(row, 0, None), "--seed", str(seed)]
        folder = folder if self.dry_run is None else self._shared_folder(step, words)
        run_folds(self.program(step), words, folder, folds, lambda fold: [option, json.dumps({**shots, "fold": fold})])
        return [RunReport.load(folder / f"fold_{fold}" / "metrics.json") for fold in range(folds)]

    def program(self, step: Step) -> Any:
        """Return the function that runs a step's program."""
        if step.program not in self._programs:
            self._programs[step.program] = load_program(self.examples, step.program)
        return self._programs[step.program]

    def _shared_folder(self, step: Step, words: Sequence[str]) -> Path:
        number = zlib.crc32(json.dumps([step.program, *words]).encode())
        return self.steps_dir / f"{_folder_name(step.name)}-{number:08x}"


def reproduce(
    table: PublishedTable,
    examples: Path,
    output_dir: str | os.PathLike,
    *,
    data_dir: str | None = None,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    voting: int = 10,
    released: bool = False,
    start: str | None = None,
    words: Sequence[str] = (),
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run the steps of the rows of a published table, and write each figure beside the published one.

    Data, encoders and starting points of all rows are checked before the first training. Complete runs are not
    repeated, so an interrupted table continues.

    Args:
        table: The published table.
        examples: Folder of the programs and recipes, see `find_examples`.
        output_dir: Folder for a folder per run, and for the tables `NAME.json`, `.md` and `.tex`. Steps that rows and
            tables share are in `steps` beside it.
        data_dir: Folder with the files of the dataset.
        only: Names of rows; all by default.
        seeds: Seeds of the runs; few-shot rows take the folds of the first one.
        voting: Also evaluate the mean logits of this many augmented copies, apart; 0 for none. Only for accuracies of
            classification.
        released: Use the recipes with the quirks of the released programs, which select the epoch on the test set.
        start: Model that the last step of each row starts from, in place of the recipe's or of earlier steps.
        words: Further arguments of the last step's program, which the table lists as changes.
        dry_run: Run every step with tiny random models on embedded or generated data, which takes seconds and needs
            neither data nor encoders. Its figures say only that the chain runs.

    Returns:
        `table`, `source`, `settings`, and `rows`: for each row and column the published figure, and mean and standard
        deviation of plain and voted results in the same unit, where they are complete. For weights of the authors,
        `evaluated` has the number of objects, of the official test split, and of right answers, and its interval.

    Raises:
        ValueError: An unknown row, or one without a recipe of the released program.
        FileNotFoundError: Data or starting points are missing; notes name each of them and what makes it.
    """
    root = Path(output_dir)
    rows = _chosen_rows(table, only, released)
    if start is not None and not table.trains and len(rows) > 1:
        raise ValueError(f"--start names one file, and {table.name} has {len(rows)} rows; choose its row with --row")
    small = DryRun(root.parent / "parts") if dry_run else None
    plan = Plan(examples, root.parent / "steps", data_dir, start, words, released, 0 if dry_run else voting, small)
    if not dry_run:
        check_needs(plan, rows)
    result = _empty_result(table, rows, plan, seeds)
    write_published(result, root)
    for name, row in rows.items():
        folder = root / _folder_name(name)
        lines = [line for line in result["rows"] if line["row"] == name]
        if row.way is not None:
            folds = [{row.steps[-1].name: report} for report in plan.run_folds(row, folder, seeds[0])]
            _add_runs(lines, table, row, folds)
            write_published(result, root)
            continue
        runs: list[dict[str, RunReport]] = []
        for seed in seeds:
            runs.append(plan.run(row, folder / f"seed_{seed}", seed))
            _add_runs(lines, table, row, runs)
            if not table.columns:
                result["pictures"] = plan.pictures
            write_published(result, root)
    return result


def setting_words(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as words of a command line; mappings as JSON, which is merged with a recipe's."""
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(one if isinstance(one, str) else json.dumps(one) for one in values)]
    return words


def write_published(result: Mapping[str, Any], folder: Path) -> None:
    """Write a result of `reproduce` as JSON, Markdown and LaTeX."""
    if not result["trains"]:
        head, body = _rows_of_weights(result)
        write_json(folder / f"{result['table']}.json", dict(result))
        write_tables(folder / result["table"], result["table"], head, body, _note_of_weights(result))
        return
    has_columns = len({row["column"] for row in result["rows"]}) > 1
    head = ["row", *["figure"] * has_columns, "published", "here, plain", "here, voted", "difference of plain", "runs"]
    body = []
    for row in result["rows"]:
        plain, deviation = row["plain"], row["published_deviation"]
        published, difference = "–", ""
        if row["published"] is not None:
            published = f"{row['published']}" + (f" ± {deviation}" if deviation else "")
            difference = "" if plain is None else f"{plain['mean'] - row['published']:+.2f}"
            if row.get("is_other_experiment"):
                difference = "not compared: started without image priors"
        voted = _figure(row["voted"], "–")
        cells = [published, _figure(plain, _NOT_RUN), voted, difference, str(row["runs"])]
        body.append([row["row"], *[row["column"]] * has_columns, *cells])
    write_json(folder / f"{result['table']}.json", dict(result))
    write_tables(folder / result["table"], result["table"], head, body, _note(result))
    if result["pictures"]:
        path = folder / f"{result['table']}.md"
        listed = "\n".join(f"- {name}" for name in result["pictures"])
        write_text(path, f"{path.read_text(encoding='utf-8')}\nPictures:\n\n{listed}\n")


def _rows_of_weights(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and body of a table of the authors' weights, with the interval and the number of objects."""
    head = ["row", "published", "here", "95 % interval", "right", "objects of the official test split"]
    body = []
    for row in result["rows"]:
        seen = row["evaluated"] or {}
        interval, right, objects, official = (seen.get(name) for name in ("interval", "right", "objects", "official"))
        of_all = "" if objects is None else f"{objects:,}" + (f" of {official:,}" if official else "")
        body.append(
            [
                row["row"],
                f"{row['published']}",
                _figure(row["plain"], _NOT_RUN),
                "–" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}",
                "–" if right is None else f"{right:,} of {objects:,}",
                of_all,
            ]
        )
    return head, body


def _note_of_weights(result: Mapping[str, Any]) -> str:
    """Return what a table of the authors' weights shows, and what it does not."""
    evaluated = [row["evaluated"] for row in result["rows"] if row["evaluated"]]
    weights = result["settings"]["start"] or "weights as published"
    here = f"{weights}, nothing trained, no votes; intervals by Wilson, for objects like these."
    if result["settings"]["changes"]:
        here += f" Changed arguments: {' '.join(result['settings']['changes'])}."
    if result["settings"]["dry_run"]:
        here = "a dry run, with tiny random models and generated data: its figures mean nothing."
    elif parts := [seen for seen in evaluated if seen["official"] and seen["objects"] < seen["official"]]:
        objects, official = parts[0]["objects"], parts[0]["official"]
        here += f" Only {objects:,} of {official:,} objects of the official test split are there"
        for name, (right, count) in list(parts[0]["classes"].items())[:1]:
            others = f"{parts[0]['right'] - right:,} of {objects - count:,} others"
            here += f"; {right:,} of {count:,} of the class {name} and {others} are right"
        here += ": this is no accuracy of the whole."
    note = f" {result['note']}" if result["note"] else ""
    place = f", {result['place']}" if result["place"] else ""
    return f"{result['paper']}{place}; {result['data']}. In percent. Published: {result['source']}.{note} Here: {here}"


def _note(result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    epoch = "the epoch that is best on the test set" if settings["recipes"] == "as released" else "the last epoch"
    changes = f" Changed arguments: {' '.join(settings['changes'])}." if settings["changes"] else ""
    here = (
        f"{settings['recipes']} recipes, weights of {epoch}; voted: mean logits of {settings['voting']} augmented "
        f"copies.{changes}"
    )
    if settings["dry_run"]:
        here = "a dry run, with tiny random models and embedded or generated data: its figures mean nothing."
    note = f" {result['note']}" if result["note"] else ""
    place = f", {result['place']}" if result["place"] else ""
    return (
        f"{result['paper']}{place}; {result['data']}. Shares in percent. Published: {result['source']}; "
        f"the authors' own figures, without voting unless they say otherwise.{note} Here: {here}"
    )


def _chosen_rows(table: PublishedTable, only: Sequence[str], released: bool) -> dict[str, PublishedRow]:
    if unknown := [name for name in only if name not in table.rows]:
        raise ValueError(f"{table.name} has no row {unknown[0]!r}; expected one of {', '.join(table.rows)}")
    chosen = {name: row for name, row in table.rows.items() if not only or name in only}
    if released:
        missing = [name for name, row in chosen.items() if all(step.released is None for step in row.steps)]
        if missing:
            raise ValueError(f"{table.name}: no recipe of the released program for {', '.join(missing)}")
    return chosen


def _empty_result(
    table: PublishedTable, rows: Mapping[str, PublishedRow], plan: Plan, seeds: Sequence[int]
) -> dict[str, Any]:
    settings = {
        "recipes": "as released" if plan.released else "sound",
        "seeds": list(seeds),
        "changes": list(plan.words),
        "voting": plan.voting,
        "dry_run": plan.dry_run is not None,
        "start": None if plan.start is None else shown_path(plan.start),
    }
    about = {name: getattr(table, name) for name in ("paper", "place", "data", "source", "note")}
    lines = []
    for name, row in rows.items():
        steps = [str(plan.recipe_of(step) or step.program) for step in row.steps]
        for title, column in table.columns.items():
            figures = {"published": row.published[title], "published_deviation": row.deviation}
            facts = {"row": name, "column": title, "metric": column.metric, "steps": steps}
            lines.append({**facts, **figures, "runs": 0, "plain": None, "voted": None, "evaluated": None})
    return {
        "table": table.name,
        **about,
        "trains": table.trains,
        "settings": settings,
        "rows": lines,
        "pictures": [],
    }


def _add_runs(
    lines: Sequence[dict[str, Any]],
    table: PublishedTable,
    row: PublishedRow,
    runs: Sequence[Mapping[str, RunReport]],
) -> None:
    """Add the figures of complete runs to the lines of a row."""
    for line in lines:
        column = table.columns[line["column"]]
        step = column.step or row.steps[-1].name
        reports = [run[step] for run in runs if step in run]
        line["runs"] = len(reports)
        # A MiniGPT-3D from raw parts; the paper has no figure of it.
        if any(report.start.get("image_priors") is False for run in runs for report in run.values()):
            line["is_other_experiment"] = True
        for key, split in (("plain", column.split), ("voted", f"{column.split}_voting")):
            figures = [_measured(report, column, split) for report in reports]
            if figures and None not in figures:
                line[key] = mean_and_std([figure * column.shown_as for figure in figures if figure is not None])
        if not table.trains and reports:
            line["evaluated"] = _evaluated(reports[0], column)


def _evaluated(report: RunReport, column: Column) -> dict[str, Any]:
    """Return on how many objects the authors' weights were evaluated, how many are right, and the interval of that."""
    figures = report.metrics[column.split]
    seen = {name: report.data[name] for name in ("objects", "official", "classes")}
    if "right" not in figures:
        return {**seen, "right": None, "interval": None}
    interval = [figures[name] * column.shown_as for name in ("accuracy_low", "accuracy_high")]
    return {**seen, "right": int(figures["right"]), "interval": interval}


def _measured(report: RunReport, column: Column, split: str) -> float | None:
    """Return the figure of a column from a report; None if it was not measured."""
    if column.metric not in _COSTS:
        return report.metrics.get(split, {}).get(column.metric)
    memory = report.peak_memory.get("cuda")
    costs = {
        "trained_parameters": report.trained_parameters,
        "training_hours": report.seconds.get("training", 0.0) / 3600,
        "gpu_gigabytes": None if memory is None else memory / 1e9,
    }
    return costs[column.metric] if split == column.split else None


def _folder_name(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def _figure(figure: Mapping[str, float] | None, missing: str) -> str:
    if figure is None:
        return missing
    return f"{figure['mean']:.2f}" + (f" ± {figure['std']:.2f}" if figure["std"] else "")
