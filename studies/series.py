"""Series of runs of a training program: sweeps over seeds and settings, and published tables.

A run is complete when its folder has metrics.json, and is not repeated; tables are written after each run.
"""

import itertools
import json
import os
import re
import runpy
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm
from transformers import AutoConfig

from hf_any3d.training.arguments import (
    STARTS,
    DataArguments,
    parse_arguments,
    read_settings,
    words_of,
)
from hf_any3d.training.folds import Program, mean_and_std, run_folds, run_once, summarize
from hf_any3d.training.splits import load_splits
from hf_any3d.utils.atomic_files import write_json, write_text
from hf_any3d.utils.markdown import inline
from hf_any3d.utils.messages import error_lines

SWEEP = "sweep"
"""Name of the files with the table of a sweep."""
PUBLISHED = "published.yaml"
PROGRAM = "run_point_cloud_classification.py"
# Endings of metrics that are shares, shown in percent.
_SHARES = ("accuracy", "iou", "miou")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def sweep(
    run: Program,
    words: Sequence[str],
    output_dir: str | os.PathLike,
    vary: Mapping[str, Sequence[str]],
    seeds: Sequence[int] = (0,),
) -> dict[str, Any]:
    """Run a program with all combinations of settings and seeds, and write a table after each run.

    Args:
        run: The training program.
        words: Arguments of all runs, perhaps beginning with a recipe.
        output_dir: Folder for `SETTINGS/seed_N` of each run and the table: sweep.json, sweep.md and sweep.tex.
        vary: Name of an argument -> its values, as on a command line; may be empty.
        seeds: Values of `--seed`.

    Returns:
        `arguments`, `vary`, `seeds`, and `rows`: for each combination its `settings`, the seeds of its complete `runs`
        with their metrics, and their `summary`, see `summarize`.

    Raises:
        ValueError: A setting without values, a seed given twice, an argument of its own or given twice, or a folder
            with a run of other arguments.
    """
    for name, values in (*vary.items(), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} has the values {', '.join(map(str, values)) or 'none'}; expected distinct ones")
    for name in ("seed", "output_dir", *vary):
        if f"--{name}" in words or (name in ("seed", "output_dir") and name in vary):
            own = {"seed": "--seeds", "output_dir": "--output-dir"}.get(name, "--vary")
            raise ValueError(f"--{name} is set for each run of a sweep; expected it as {own}")
    root = Path(output_dir)
    grid = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
    rows = [{"settings": settings, "runs": {}, "summary": {}} for settings in grid]
    result = {"arguments": list(words), "vary": {k: list(v) for k, v in vary.items()}, "seeds": list(seeds)}
    result["rows"] = rows
    # Seeds outermost: an interrupted sweep has compared all settings with the first seeds.
    for seed, row in tqdm(list(itertools.product(seeds, rows)), desc=SWEEP, unit="run"):
        own = [word for name, value in row["settings"].items() for word in (f"--{name}", value)]
        folder = root / _folder_name(row["settings"]) / f"seed_{seed}"
        report = run_once(run, [*words, *own, "--seed", str(seed)], folder)
        row["runs"][str(seed)] = report.metrics
        row["summary"] = summarize(list(row["runs"].values()))
        row["trained_parameters"] = report.trained_parameters
        write_sweep(result, root)
    return result


def write_sweep(result: Mapping[str, Any], folder: Path) -> None:
    """Write a result of `sweep` as JSON, Markdown and LaTeX."""
    columns: dict[tuple[str, str], None] = {}
    for row in result["rows"]:
        columns |= {
            (split, name): None
            for split, metrics in row["summary"].items()
            for name in metrics
            if split != "train" and name != "loss"
        }
    head = [*result["vary"], "runs", "trained parameters", *(f"{split} {name}" for split, name in columns)]
    body = []
    for row in result["rows"]:
        figures = [row["summary"].get(split, {}).get(name) for split, name in columns]
        parameters = f"{row['trained_parameters']:,}" if "trained_parameters" in row else ""
        cells = [_cell(name, figure) for (_, name), figure in zip(columns, figures, strict=True)]
        body.append([*row["settings"].values(), str(len(row["runs"])), parameters, *cells])
    note = (
        f"Mean ± standard deviation over the seeds {', '.join(map(str, result['seeds']))}; accuracies and IoUs in "
        f"percent. Arguments of all runs: {' '.join(result['arguments']) or 'none'}."
    )
    write_json(folder / f"{SWEEP}.json", dict(result))
    write_tables(folder / SWEEP, SWEEP, head, body, note)


def write_tables(
    path: Path, title: str, head: Sequence[str], body: Sequence[Sequence[str]], note: str
) -> tuple[Path, Path]:
    """Write a table as `PATH.md` and `PATH.tex`, for LaTeX's package booktabs.

    Args:
        path: The files without suffix.
        title: Headline of the Markdown file.
        head: Titles of the columns.
        body: Cells of each row, plain text.
        note: Plain text that explains the table.
    """
    lines = [f"# {inline(title)}", "", _markdown_row(head), "|---" * len(head) + "|", *map(_markdown_row, body)]
    markdown = write_text(path.with_name(f"{path.name}.md"), "\n".join([*lines, "", inline(note, 2000), ""]))
    rows = [f"{' & '.join(map(_latex, cells))} \\\\" for cells in (head, *body)]
    start = [f"% {note}", f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"]
    latex = [*start, "\\toprule", rows[0], "\\midrule", *rows[1:], "\\bottomrule", "\\end{tabular}", ""]
    return markdown, write_text(path.with_name(f"{path.name}.tex"), "\n".join(latex))


@dataclass(frozen=True)
class PublishedRow:
    """A published result and the recipe that repeats it.

    Args:
        recipe: Recipe with the published settings.
        published: Published figure in percent.
        released: The same recipe with the quirks of the released program.
        deviation: Published standard deviation in percent.
        metric: Metric of the test split.
        program: Training program.
        way: Classes of a few-shot fold.
        shot: Training clouds per class of a few-shot fold.
        needs: What makes the local folder that the recipe starts from.
    """

    recipe: str
    published: float
    released: str | None = None
    deviation: float | None = None
    metric: str = "accuracy"
    program: str = PROGRAM
    way: int | None = None
    shot: int | None = None
    needs: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """A published table: its data, its source, and its rows by name."""

    name: str
    data: str
    source: str
    rows: Mapping[str, PublishedRow]


def find_examples(folder: str | os.PathLike | None = None) -> Path:
    """Return the folder with the training programs and recipes, by default that of this checkout.

    Raises:
        FileNotFoundError: There is none: an installed package has no examples.
    """
    path = Path(__file__).resolve().parents[1] / "examples" if folder is None else Path(folder)
    if not (path / "recipes" / PUBLISHED).is_file():
        raise FileNotFoundError(
            f"{path}: no recipes/{PUBLISHED}; recipes and training programs come with the source code, not with the "
            "installed package: run from a checkout, or pass --examples, the folder examples of one"
        )
    return path


def load_program(examples: Path, name: str = PROGRAM) -> Program:
    """Load a training program of `examples`."""
    path = examples / name
    if not path.is_file():
        known = ", ".join(sorted(file.name for file in examples.glob("run_*.py")))
        raise FileNotFoundError(f"no program {path}; there are {known}")
    return runpy.run_path(str(path))["main"]


def published_tables(examples: Path) -> dict[str, PublishedTable]:
    """Read examples/recipes/published.yaml."""
    tables = yaml.safe_load((examples / "recipes" / PUBLISHED).read_text(encoding="utf-8"))
    return {
        name: PublishedTable(
            name, table["data"], table["source"], {row: PublishedRow(**facts) for row, facts in table["rows"].items()}
        )
        for name, table in tables.items()
    }


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
) -> dict[str, Any]:
    """Train and evaluate the rows of a published table, and write each beside the published figure.

    Data, encoders and starting points of all rows are checked before the first training. Complete runs are not
    repeated, so an interrupted table continues.

    Args:
        table: The published table.
        examples: Folder of the programs and recipes, see `find_examples`.
        output_dir: Folder for a folder per run, and for the tables `NAME.json`, `.md` and `.tex`.
        data_dir: Folder with the files of the dataset.
        only: Names of rows; all by default.
        seeds: Seeds of the runs; few-shot rows take the folds of the first one.
        voting: Also evaluate the mean logits of this many augmented copies, apart; 0 for none. Only for accuracies.
        released: Use the recipes with the quirks of the released programs, which select the epoch on the test set.
        start: Pretrained model to start from, in place of the recipe's.
        words: Further arguments of the programs, which the table lists as changes.

    Returns:
        `table`, `source`, `settings`, and `rows`: published figure, and mean and standard deviation in percent of
        plain and voted results, where they are complete.

    Raises:
        ValueError: An unknown row, or one without a recipe of the released program.
        FileNotFoundError: Data or starting points are missing; names all of them and what makes them.
    """
    if unknown := [name for name in only if name not in table.rows]:
        raise ValueError(f"{table.name} has no row {unknown[0]!r}; expected one of {', '.join(table.rows)}")
    chosen = {name: row for name, row in table.rows.items() if not only or name in only}
    if released:
        missing = [name for name, row in chosen.items() if row.released is None]
        if missing:
            raise ValueError(f"{table.name}: no recipe of the released program for {', '.join(missing)}")
    common = [] if data_dir is None else ["--data_dir", data_dir]
    common += [] if start is None else ["--model_name_or_path", start]
    recipes = {name: str(_recipe(examples, row, released)) for name, row in chosen.items()}
    _check_rows(chosen, recipes, [*common, *words])
    root = Path(output_dir)
    settings = {"recipes": "as released" if released else "sound", "seeds": list(seeds), "changes": list(words)}
    result: dict[str, Any] = {
        "table": table.name,
        "data": table.data,
        "source": table.source,
        "settings": {**settings, "voting": voting},
        "rows": [
            {"row": name, "recipe": recipes[name], "metric": row.metric, "published": row.published}
            | {"published_deviation": row.deviation, "runs": 0, "plain": None, "voted": None}
            for name, row in chosen.items()
        ],
    }
    write_published(result, root)
    for line, (name, row) in zip(result["rows"], chosen.items(), strict=True):
        run = load_program(examples, row.program)
        own = [recipes[name], *common, *words]
        own += ["--voting", str(voting)] if voting and row.metric == "accuracy" else []
        folder = root / re.sub(r"\W+", "_", name)
        if row.way is not None:
            few = {"way": row.way, "shot": row.shot}
            own += ["--seed", str(seeds[0])]
            folds = run_folds(run, own, folder, 10, lambda fold, few=few: _fold_words(few, fold))["folds"]
            _add_runs(line, row.metric, folds)
            write_published(result, root)
            continue
        metrics: list[dict[str, dict[str, float]]] = []
        for seed in seeds:
            metrics.append(run_once(run, [*own, "--seed", str(seed)], folder / f"seed_{seed}").metrics)
            _add_runs(line, row.metric, metrics)
            write_published(result, root)
    return result


def write_published(result: Mapping[str, Any], folder: Path) -> None:
    """Write a result of `reproduce` as JSON, Markdown and LaTeX."""
    head = ["row", "published", "here, plain", "here, voted", "difference of plain", "runs"]
    body = []
    for row in result["rows"]:
        plain = row["plain"]
        difference = "" if plain is None else f"{plain['mean'] - row['published']:+.2f}"
        deviation = row["published_deviation"]
        published = f"{row['published']}" + (f" ± {deviation}" if deviation else "")
        cells = [published, _figure(plain), _figure(row["voted"]), difference, str(row["runs"])]
        body.append([row["row"], *cells])
    settings = result["settings"]
    epoch = "the epoch that is best on the test set" if settings["recipes"] == "as released" else "the last epoch"
    changes = f" Changed arguments: {' '.join(settings['changes'])}." if settings["changes"] else ""
    note = (
        f"Percent on {result['data']}. Published: {result['source']}; the authors' own figures, without voting unless "
        f"they say otherwise. Here: {settings['recipes']} recipes, weights of {epoch}; voted: mean logits of "
        f"{settings['voting']} augmented copies.{changes}"
    )
    write_json(folder / f"{result['table']}.json", dict(result))
    write_tables(folder / result["table"], result["table"], head, body, note)


def _recipe(examples: Path, row: PublishedRow, released: bool) -> Path:
    name = f"released/{row.released}" if released else row.recipe
    return examples / "recipes" / f"{name}.yaml"


def _check_rows(rows: Mapping[str, PublishedRow], recipes: Mapping[str, str], words: Sequence[str]) -> None:
    """Check that data, encoders and starting points of all rows are there.

    Raises:
        FileNotFoundError: Something is missing.
    """
    problems: dict[str, list[str]] = {}
    for name, row in rows.items():
        settings = read_settings(Path(recipes[name]))
        settings |= {key: words[words.index(f"--{key}") + 1] for key in STARTS if f"--{key}" in words}
        found = [_data_problem(row, recipes[name], words)]
        found += [_start_problem(str(settings[key]), row.needs) for key in STARTS if settings.get(key)]
        for problem in filter(None, found):
            problems.setdefault(problem, []).append(name)
    if problems:
        listed = "; ".join(f"{', '.join(names)}: {problem}" for problem, names in problems.items())
        raise FileNotFoundError(f"not started, since something is missing. {listed}")


def _start_problem(name: str, needs: str) -> str | None:
    """Return what is wrong with a model that a recipe starts from, or None."""
    if Path(name).is_dir():
        return None
    if needs and Path(name).parts[0] == "outputs":
        return f"no directory {name}; {needs}"
    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError):
        return f"{name} is not a directory, not in the cache and not reachable on the hub"
    return None


def _data_problem(row: PublishedRow, recipe: str, words: Sequence[str]) -> str | None:
    """Load the data, which converts and checks them once, and return what is wrong with them, or None."""
    words = words_of(words, [field.name for field in fields(DataArguments)])
    words += [] if row.way is None else _fold_words({"way": row.way, "shot": row.shot}, 0)
    try:
        (data,) = parse_arguments((DataArguments,), [recipe, *words], others_in_file=True)
        load_splits(data)
    except (ValueError, OSError, ImportError) as error:
        return "; ".join(error_lines(error)[:2])  # and where to get what is missing
    return None


def _fold_words(few_shot: Mapping[str, Any], fold: int) -> list[str]:
    return ["--dataset_options", json.dumps({**few_shot, "fold": fold})]


def _add_runs(line: dict[str, Any], metric: str, metrics: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
    """Add plain and voted figures of the test split, in percent, to a row of `reproduce`."""
    line["runs"] = len(metrics)
    for key, split in (("plain", "test"), ("voted", "test_voting")):
        if all(split in run for run in metrics):
            line[key] = mean_and_std([100 * run[split][metric] for run in metrics])


def _figure(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "–"
    return f"{figure['mean']:.2f}" + (f" ± {figure['std']:.2f}" if figure["std"] else "")


def _cell(metric: str, figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return ""
    if metric.endswith(_SHARES):
        figure = {key: 100 * value for key, value in figure.items()}
    text = f"{figure['mean']:.1f}" if metric.endswith(_SHARES) else f"{figure['mean']:.4g}"
    deviation = f"{figure['std']:.1f}" if metric.endswith(_SHARES) else f"{figure['std']:.2g}"
    return f"{text} ± {deviation}" if figure["std"] else text


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(inline, cells))} |"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _folder_name(settings: Mapping[str, str]) -> str:
    """Return a folder name for settings; names that are shortened or changed end in a checksum."""
    text = ",".join(f"{name}={value}" for name, value in settings.items()) or "plain"
    plain = re.sub(r"[^\w.=,+-]+", "_", text)[:80]
    return plain if plain == text else f"{plain}-{zlib.crc32(text.encode()):08x}"
