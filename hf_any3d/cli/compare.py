"""`hf-any3d compare`: two or more runs side by side, with intervals and a paired test on the same scans."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_any3d.cli.evaluate import evaluate
from hf_any3d.cli.options import AsCsv, AsJson, option, output_option
from hf_any3d.cli.outputs import DATA, check_output, write_results
from hf_any3d.hub.names import no_such
from hf_any3d.utils.atomic_files import temporary_folder, write_text
from hf_any3d.utils.messages import counted, print_line
from hf_any3d.utils.metric_names import metric_name

if TYPE_CHECKING:
    from hf_any3d.evaluation.comparison import ComparedRun, Comparison, EvaluatedRun

_NONE = "–"


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Directories written by `hf-any3d train`, or JSON files written by `hf-any3d evaluate --output`; "
            "with --on, any models. The first run is the baseline.",
        ),
    ],
    on: Annotated[
        str | None,
        option("Labeled data, in any form that evaluate takes as DATA; all models are evaluated on it and compared."),
    ] = None,
    split: Annotated[
        str | None, option("Split to compare on, such as test; by default one that all runs share.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="With --on, evaluate on the CPU only.")] = False,
    output: Annotated[
        Path | None, output_option("Also write an HTML page (.html) or the metrics (.json, .csv).")
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Compare runs: a metric with confidence intervals, a paired test on the same scans, and training cost.

    Without `--on`, uses the evaluation results saved during training, on the scans that all runs share. Accuracy is
    compared with McNemar's exact test, other metrics with a paired permutation test. The 95 % intervals are Wilson
    intervals for accuracy, and bootstrap intervals over scans otherwise. With more than two runs, p-values are
    Holm-adjusted.
    """
    suffix = check_output(output, (".html", *DATA), as_json=as_json, as_csv=as_csv)
    if len(runs) < 2:
        raise ValueError(f"compare needs at least two runs; only {runs[0]} was given")
    from hf_any3d.evaluation.comparison import compare_runs

    evaluated, code = _read(runs) if on is None else _evaluate_all(runs, on, split, cpu)
    comparison = compare_runs(_named(evaluated), split)
    table = [_figures(row) for row in comparison.runs]
    facts = {
        "metric": comparison.metric,
        "scans": len(comparison.scans) or None,
        "left_out": comparison.left_out,
        "runs": table,
        "conclusions": conclusions(comparison),
        "disagreements": _disagreements(comparison),
    }
    write_results(facts, table, output, as_json, as_csv)
    if suffix == ".html":
        assert output is not None
        write_text(output, _page(comparison))
    if not as_json and not as_csv:
        for line in _lines(comparison):
            print_line(line)
    if code:
        raise typer.Exit(code)


def _read(runs: Sequence[str]) -> tuple[list[EvaluatedRun], int]:
    """Return the runs of directories and files, and 0 as the exit code."""
    from hf_any3d.evaluation.comparison import EvaluatedRun

    for run in runs:
        if not Path(run).exists():
            raise FileNotFoundError(
                f"{no_such(run, 'file or directory')}; to compare models on the Hub, add --on DATA"
            )
    return [EvaluatedRun.read(Path(run)) for run in runs], 0


def _evaluate_all(models: Sequence[str], data: str, split: str | None, cpu: bool) -> tuple[list[EvaluatedRun], int]:
    """Evaluate models on the same data; return them, and the exit code of the evaluations."""
    from hf_any3d.evaluation.comparison import EvaluatedRun

    runs = []
    code = 0
    with temporary_folder() as folder:
        for number, model in enumerate(models):
            file = folder / f"{number}.json"
            try:
                # The figures of each model are progress here, and not the result.
                with contextlib.redirect_stdout(sys.stderr):
                    evaluate(model, data, split=split, cpu=cpu, output=file)
            except typer.Exit as end:
                # Files that cannot be read are left out for every model.
                code = end.exit_code
            runs.append(EvaluatedRun.read(file))
    return runs, code


def _named(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """Return the runs with short names: the last parts of their paths, or all that their folders do not share."""
    paths = [os.path.abspath(run.name) for run in runs]
    root = os.path.commonpath(paths)
    for names in ([Path(path).name for path in paths], [os.path.relpath(path, root) for path in paths]):
        if len(set(names)) == len(names):
            return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    raise ValueError(f"{runs[0].name} is named twice; expected different runs")


def _figures(row: ComparedRun) -> dict[str, Any]:
    """Return the row of a run in JSON and CSV; what is not known is None."""
    difference = row.difference
    figures = {
        "run": row.run.name,
        "split": row.split,
        "value": row.value,
        "low": row.low,
        "high": row.high,
        "difference": getattr(difference, "value", None),
        "difference_low": getattr(difference, "low", None),
        "difference_high": getattr(difference, "high", None),
        "p_value": getattr(difference, "p_value", None),
        "only_this_right": getattr(difference, "only_run", None),
        "only_first_right": getattr(difference, "only_first", None),
    }
    return figures | {name: row.run.cost.get(name) for name in ("trained_parameters", "seconds", "memory")}


def _disagreements(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the scans that some runs answer correctly and others do not."""
    names = [row.run.name for row in comparison.runs]
    rows = []
    for scan in comparison.disagreements():
        answers = {name: one["answer"] for name, one in zip(names, scan, strict=True)}
        rows.append({"scan": scan[0]["scan"], "true": scan[0]["true"], "answers": answers})
    return rows


def conclusions(comparison: Comparison) -> list[str]:
    """Return what follows from a comparison, in sentences."""
    first, *others = comparison.runs
    if comparison.why_no_test:
        return [f"No intervals or test: {comparison.why_no_test}."]
    sentences = [_conclusion(comparison, first, row) for row in others]
    if len(others) > 1:
        sentences.append(f"The p-values are Holm-adjusted for {len(others)} comparisons.")
    for row in comparison.runs:
        if row.run.selection_split == row.split:
            sentences.append(
                f"The checkpoint of {row.run.name} was selected on these scans, so its result is optimistic; compare "
                "on other scans with --on FOLDER."
            )
    return sentences


def _conclusion(comparison: Comparison, first: ComparedRun, row: ComparedRun) -> str:
    """Return a sentence on whether a run differs from the first one."""
    from hf_any3d.evaluation.comparison import FEWEST_DISAGREEMENTS, LEVEL

    difference = row.difference
    assert difference is not None
    unit = "" if comparison.lower_is_better else " percentage points"
    low, high = (_signed(comparison, value) for value in (difference.low, difference.high))
    figures = (
        f"{_signed(comparison, difference.value)}{unit} (95 % interval {low} to {high}, "
        f"p {_p_text(difference.p_value, equals='= ')})"
    )
    if difference.p_value < LEVEL:
        word = "better" if (difference.value > 0) != comparison.lower_is_better else "worse"
        sentence = f"{row.run.name} is {word} than {first.run.name}: {figures}"
    else:
        sentence = f"{row.run.name} and {first.run.name} do not differ significantly: {figures}"
    evidence = comparison.units
    if difference.only_run is not None and difference.only_first is not None:
        evidence = difference.only_run + difference.only_first
        sentence += (
            f"; only {row.run.name} is right on {counted(difference.only_run, 'scan')}, only {first.run.name} on "
            f"{difference.only_first:,}"
        )
    if difference.p_value >= LEVEL and evidence < FEWEST_DISAGREEMENTS:
        what = "scans that only one run gets right" if difference.only_run is not None else "scans"
        sentence += f". At least {FEWEST_DISAGREEMENTS} {what} are needed to show a difference: compare on more scans"
    return f"{sentence}."


def _lines(comparison: Comparison) -> list[str]:
    """Return what the command prints: what was compared, a table, and what follows."""
    table = _table(comparison)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [f"{_heading(comparison)}:"]
    for row in table:
        # Names to the left, figures to the right
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return [*lines, *conclusions(comparison)]


def _heading(comparison: Comparison) -> str:
    """Return what was compared, on which scans."""
    splits = list(dict.fromkeys(row.split for row in comparison.runs))
    name = metric_name(comparison.metric)
    if not comparison.scans:
        return f"{name} ({', '.join(splits)})"
    judged = f"{name} on {counted(len(comparison.scans), 'scan')} ({', '.join(splits)})"
    if comparison.left_out:
        judged += f"; {counted(comparison.left_out, 'scan')} left out that some run did not evaluate"
    return judged


def _table(comparison: Comparison) -> list[list[str]]:
    """Return the rows of the table as texts, its head first."""
    name = metric_name(comparison.metric)
    head = ["run", name, "95 % interval", "difference", "95 % interval", "p", "trainable", "time", "memory"]
    rows = [head]
    for row in comparison.runs:
        difference = row.difference
        interval = _NONE
        if row.low is not None and row.high is not None:
            interval = f"{_value(comparison, row.low)} to {_value(comparison, row.high)}"
        cells = [_NONE] * 3
        if difference is not None:
            ends = f"{_signed(comparison, difference.low)} to {_signed(comparison, difference.high)}"
            cells = [_signed(comparison, difference.value), ends, _p_text(difference.p_value)]
        unit = "" if comparison.lower_is_better else " %"
        rows.append([row.run.name, f"{_value(comparison, row.value)}{unit}", interval, *cells, *_cost(row)])
    return rows


def _cost(row: ComparedRun) -> list[str]:
    """Return trained parameters, time and memory of a training as texts."""
    cost = row.run.cost
    trained, seconds, memory = (cost.get(name) for name in ("trained_parameters", "seconds", "memory"))
    if seconds is None:
        time = _NONE
    else:
        time = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
    return [
        _NONE if trained is None else f"{trained:,}",
        time,
        _NONE if memory is None else f"{memory / 1e6:,.0f} MB",
    ]


def _value(comparison: Comparison, value: float) -> str:
    """Return a figure as text, shares in percent."""
    return f"{value:.4f}" if comparison.lower_is_better else f"{100 * value:.1f}"


def _signed(comparison: Comparison, value: float) -> str:
    """Return a difference as text, of shares in percentage points."""
    # Adding 0 makes a rounded -0.0 positive.
    if comparison.lower_is_better:
        return f"{round(value, 4) + 0.0:+.4f}"
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def _p_text(p_value: float, equals: str = "") -> str:
    return "< 0.001" if p_value < 0.001 else f"{equals}{p_value:.3f}"


def _page(comparison: Comparison) -> str:
    """Return the page of a comparison."""
    from hf_any3d.visualization.html_pages import html_page

    names = [row.run.name for row in comparison.runs]
    bars = []
    if not comparison.lower_is_better:
        for row in comparison.runs:
            if row.low is not None and row.high is not None:
                bars.append((row.run.name, row.value, row.low, row.high))
    scans = []
    for scan in comparison.disagreements():
        answers = [(one["answer"], one["answer"] == one["true"]) for one in scan]
        scans.append((scan[0]["scan"], scan[0]["true"], answers))
    return html_page(
        "comparison.html",
        title=f"{', '.join(names[:-1])} and {names[-1]} compared",
        heading=_heading(comparison),
        conclusions=conclusions(comparison),
        rows=_table(comparison),
        bars=bars,
        names=names,
        scans=scans,
    )
