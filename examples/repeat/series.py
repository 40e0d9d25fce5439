"""Series of runs of a training program over seeds and settings, and tables of results as Markdown and LaTeX.

A run is complete when its folder has metrics.json, and is not repeated; tables are written after each run.
"""

import itertools
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_any3d.training.folds import Program, run_once, summarize
from hf_any3d.utils.atomic_files import write_json, write_text
from hf_any3d.utils.markdown import inline

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
