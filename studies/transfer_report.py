"""Statistics, tables and plot of the study of transfer, from whatever runs are stored.

    python -m studies.transfer_report

This simulates studies of the planned sizes: how often the interval contains the true effect, and how often it excludes
zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest, norm, t

from hf_any3d.utils.atomic_files import atomic_write
from studies.runs import machine, write_results

REPLICATES = 10_000


class Cell(NamedTuple):
    """A set, model and budget, of which there are runs with several seeds and folds."""

    data: str
    arm: str
    layers: int
    epochs: int
    shots: int | None

    @property
    def budget(self) -> str:
        """The budget in words."""
        shapes = "all shapes" if self.shots is None else f"{self.shots} shapes a class"
        return shapes if self.epochs == 0 else f"{shapes}, {self.epochs} epochs"


Results = Mapping[Cell, Mapping[tuple[int, int], Mapping[str, Any]]]
"""Cell -> (seed, fold) -> stored result."""


@dataclass(frozen=True)
class FoldDifference:
    """Differences between two arms on the shapes of a fold.

    Args:
        sums: `(seeds, groups)`, sum of the differences of the shapes of a group.
        sizes: `(groups,)`, shapes of a group.
    """

    sums: np.ndarray
    sizes: np.ndarray


def fold_difference(values: np.ndarray, groups: np.ndarray) -> FoldDifference:
    """Sum differences `(seeds, shapes)` over the groups `(shapes,)`."""
    _, member = np.unique(groups, return_inverse=True)
    belongs = np.eye(member.max() + 1)[member]  # (shapes, groups)
    return FoldDifference(values @ belongs, belongs.sum(axis=0))


def effect(folds: Sequence[FoldDifference]) -> float:
    """Compute the mean difference over all shapes, each the mean over its seeds."""
    return sum(fold.sums.mean(axis=0).sum() for fold in folds) / sum(fold.sizes.sum() for fold in folds)


def interval(folds: Sequence[FoldDifference]) -> tuple[float, float]:
    """Compute the 95 % interval of `effect`, from the variance between groups and between runs.

    The differences of the groups, averaged over seeds, vary with the groups and with the noise of each run for each
    group. A run may also be better or worse on all its shapes; the variance of that is what runs vary more in total
    than the sum of the variances of their groups. Few runs give it, so the quantile is that of a t distribution with
    as many degrees of freedom; with a single seed it is unknown and left out, and the quantile is the normal one.
    """
    middle, variance, excess = effect(folds), 0.0, 0.0
    for fold in folds:
        seeds, groups = fold.sums.shape
        parts = fold.sums.mean(axis=0) - middle * fold.sizes
        if groups > 1:
            variance += groups * parts.var(ddof=1)
        if seeds > 1:
            excess += (fold.sums.sum(axis=1).var(ddof=1) - fold.sums.var(axis=0, ddof=1).sum()) / seeds
    freedom = sum(len(fold.sums) - 1 for fold in folds)
    quantile = t.ppf(0.975, freedom) if freedom else norm.ppf(0.975)
    half = float(quantile * np.sqrt(variance + max(0.0, excess)) / sum(fold.sizes.sum() for fold in folds))
    return middle - half, middle + half


def bootstrap_interval(
    folds: Sequence[FoldDifference], replicates: int = REPLICATES, seed: int = 0
) -> tuple[float, float]:
    """Compute the 95 % percentile interval of `effect` when folds, and seeds and groups within them, are drawn anew.

    It is wider than necessary, since the noise of a run for a group counts with the groups, the seeds and the folds.

    Args:
        folds: Differences of each fold.
        replicates: Number of replicates.
        seed: Seed of the draws.
    """
    generator = np.random.default_rng(seed)

    def draws(count: int, size: int) -> np.ndarray:
        return generator.multinomial(count, np.full(count, 1 / count), size).astype(float)  # (size, count)

    found = []
    for start in range(0, replicates, 1000):
        size = min(1000, replicates - start)
        total, shapes = np.zeros((2, size, len(folds)))
        for number, fold in enumerate(folds):
            means = draws(len(fold.sums), size) @ fold.sums / len(fold.sums)  # (size, groups)
            # Indices instead of weights: faster for many groups.
            groups = generator.integers(len(fold.sizes), size=means.shape)
            total[:, number] = np.take_along_axis(means, groups, axis=1).sum(axis=1)
            shapes[:, number] = fold.sizes[groups].sum(axis=1)
        drawn = draws(len(folds), size)
        found.append((drawn * total).sum(axis=1) / (drawn * shapes).sum(axis=1))
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return float(low), float(high)


def majority_vote(answers: np.ndarray) -> np.ndarray:
    """Return the most frequent answer for each shape, of several such that of the first seed.

    Args:
        answers: `(seeds, shapes)` class numbers.
    """
    counts = (answers[:, None] == answers[None]).sum(axis=0)  # (seeds, shapes), how many seeds agree with each
    return answers[counts.argmax(axis=0), np.arange(answers.shape[1])]


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> tuple[int, int, float]:
    """Test with McNemar's exact test whether two models are right equally often on the same shapes.

    Args:
        first_right: `(shapes,)` booleans.
        second_right: `(shapes,)` booleans.

    Returns:
        How many shapes only the first has right, how many only the second, and the two-sided p value.
    """
    first, second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    return first, second, 1.0 if first + second == 0 else float(binomtest(first, first + second).pvalue)


def compare(first: Mapping[tuple[int, int], Any], second: Mapping[tuple[int, int], Any]) -> dict[str, Any] | None:
    """Compare two cells on the runs that both have; None if there are none.

    Args:
        first: (seed, fold) -> stored result of the first cell.
        second: The same of the second.

    Raises:
        ValueError: Two runs of a fold were tested on different shapes.
    """
    pairs = sorted(first.keys() & second.keys())
    if not pairs:
        return None
    accuracy, loss, right, totals = [], [], [], np.zeros(2)
    for fold in sorted({fold for _, fold in pairs}):
        seeds = [seed for seed, own in pairs if own == fold]
        runs = [[cell[seed, fold] for seed in seeds] for cell in (first, second)]
        if any(run["rows"] != runs[0][0]["rows"] for own in runs for run in own):
            raise ValueError(f"fold {fold}: runs were tested on different shapes; they belong to different studies")
        labels, groups = (np.asarray(runs[0][0][name]) for name in ("labels", "groups"))
        answers = [np.array([run["predictions"] for run in own]) for own in runs]  # (seeds, shapes) each
        losses = [np.array([run["losses"] for run in own]) for own in runs]
        hits = [(own == labels).astype(float) for own in answers]
        totals += [own.mean(axis=0).sum() for own in hits]
        accuracy.append(fold_difference(hits[0] - hits[1], groups))
        loss.append(fold_difference(losses[0] - losses[1], groups))
        right.append([majority_vote(own) == labels for own in answers])
    first_right, second_right = np.concatenate(right, axis=1)
    only_first, only_second, p = mcnemar(first_right, second_right)
    shapes = int(sum(fold.sizes.sum() for fold in accuracy))
    return {
        "pairs": len(pairs),
        "shapes": shapes,
        "accuracies": (totals / shapes).tolist(),
        "effect": effect(accuracy),
        "interval": interval(accuracy),
        "bootstrap_interval": bootstrap_interval(accuracy),
        "loss_effect": effect(loss),
        "loss_interval": interval(loss),
        "vote_accuracies": [float(first_right.mean()), float(second_right.mean())],
        "only_first": only_first,
        "only_second": only_second,
        "mcnemar_p": p,
    }


def cell_row(cell: Cell, planned: int, runs: Mapping[tuple[int, int], Mapping[str, Any]]) -> dict[str, Any]:
    """Compute the figures of a cell; accuracies are over the shapes of all folds, seed by seed."""
    row: dict[str, Any] = {**cell._asdict(), "planned": planned, "runs": len(runs)}
    if not runs:
        return row
    by_seed = [
        np.concatenate([np.equal(run["predictions"], run["labels"]) for (own, _), run in runs.items() if own == seed])
        for seed in sorted({seed for seed, _ in runs})
    ]
    accuracies = [float(right.mean()) for right in by_seed]
    row["accuracies"] = accuracies
    row["accuracy"] = float(np.concatenate(by_seed).mean())
    row["accuracy_std"] = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
    row["loss"] = float(np.mean(np.concatenate([run["losses"] for run in runs.values()])))
    for name in ("cpu_seconds", "seconds", "train_rows", "trained_parameters"):
        row[name] = float(np.mean([run[name] for run in runs.values()]))
    return row


def percent(value: float, sign: str = "") -> str:
    """Format a share as percentage with one digit."""
    return f"{100 * value:{sign}.1f}"


def cells_table(rows: Iterable[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Format the accuracies of cells as Markdown."""
    lines = [
        "| set | budget | model | layers | runs | accuracy, % | cross-entropy | CPU s a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cell = cell_named(row)
        start = f"| {cell.data} | {cell.budget} | {titles[cell.arm]} | {cell.layers or '–'} "
        if not row["runs"]:
            lines.append(f"{start}| 0 of {row['planned']} | not run yet | | |")
            continue
        spread = "" if row["accuracy_std"] is None else f" ± {percent(row['accuracy_std'])}"
        lines.append(
            f"{start}| {row['runs']} of {row['planned']} | {percent(row['accuracy'])}{spread} | {row['loss']:.3f} "
            f"| {row['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def comparisons_table(rows: Iterable[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Format comparisons as Markdown."""
    lines = [
        "| set | budget | layers | compared | pairs | accuracies, % | effect, points | 95 % interval | bootstrap "
        "| McNemar, votes | cross-entropy |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cell = cell_named(row)
        start = f"| {cell.data} | {cell.budget} | {cell.layers} | {titles[cell.arm]} − {titles[row['against']]} "
        found = row["found"]
        if found is None:
            lines.append(f"{start}| 0 of {row['planned']} | not run yet | | | | | |")
            continue
        lines.append(
            f"{start}| {found['pairs']} of {row['planned']} "
            f"| {', '.join(map(percent, found['accuracies']))} | {percent(found['effect'], '+')} "
            f"| {limits(found['interval'])} | {limits(found['bootstrap_interval'])} "
            f"| {found['only_first']} : {found['only_second']}, p = {found['mcnemar_p']:.2g} "
            f"| {found['loss_effect']:+.3f} [{found['loss_interval'][0]:+.3f}, {found['loss_interval'][1]:+.3f}] |"
        )
    return "\n".join(lines) + "\n"


def limits(pair: Sequence[float]) -> str:
    """Format an interval of shares in points."""
    return f"[{percent(pair[0], '+')}, {percent(pair[1], '+')}]"


def verdict(row: Mapping[str, Any]) -> str:
    """Describe the outcome of a main comparison, or how much of it is missing."""
    found, name = row["found"], f"`{row['data']}`"
    if found is None:
        return f"- {name}: not run yet.\n"
    text = f"{percent(found['effect'], '+')} points, 95 % interval {limits(found['interval'])}"
    if found["pairs"] < row["planned"]:
        return f"- {name}: unfinished, {found['pairs']} of {row['planned']} pairs of runs; so far {text}.\n"
    low, high = found["interval"]
    outcome = "helps" if low > 0 else "harms" if high < 0 else "neither helps nor harms measurably"
    return f"- {name}: pretraining {outcome}: {text}.\n"


def summarize(planned: Mapping[Cell, int], results: Results, main: Sequence[Cell]) -> dict[str, Any]:
    """Compute the figures of all cells and comparisons.

    Args:
        planned: Cell -> number of its runs in the full study.
        results: Stored results.
        main: The cells of the main comparison, one for each set.
    """
    comparisons = []
    for cell in planned:
        if cell.arm != "pretrained":
            continue
        others = [other for other in planned if other != cell and same_budget(cell, other)]
        for other in sorted(others, key=lambda other: other.arm != "random"):
            found = compare(results.get(cell, {}), results.get(other, {}))
            count = min(planned[cell], planned[other])
            comparisons.append({**cell._asdict(), "against": other.arm, "planned": count, "found": found})
    chosen = [row for row in comparisons if row["against"] == "random" and cell_named(row) in main]
    rows = [cell_row(cell, count, results.get(cell, {})) for cell, count in planned.items()]
    return {
        "machine": machine(),
        "main": chosen,
        "comparisons": comparisons,
        "rows": rows,
    }


def cell_named(row: Mapping[str, Any]) -> Cell:
    """Return the cell of a row."""
    return Cell(*(row[name] for name in Cell._fields))


def same_budget(cell: Cell, other: Cell) -> bool:
    """Return whether two cells differ in their model alone; models without an encoder have no layers."""
    return (
        (cell.data, cell.epochs, cell.shots) == (other.data, other.epochs, other.shots)
        and other.layers in (0, cell.layers)
        and (other.layers > 0 or cell.layers == 2)
    )


def markdown(summary: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Format all tables."""
    return "\n".join(
        [
            "Main comparison, pretrained minus random encoder:\n",
            "".join(verdict(row) for row in summary["main"]),
            "Comparisons with the pretrained encoder:\n",
            comparisons_table(summary["comparisons"], titles),
            "Accuracies over the shapes of all folds, ± standard deviation over seeds:\n",
            cells_table(summary["rows"], titles),
        ]
    )


def plot(summary: Mapping[str, Any], path: Path) -> None:
    """Plot the effect of the pretrained against the random encoder with its interval, for budgets that have runs."""
    from matplotlib.figure import Figure

    rows = [row for row in summary["comparisons"] if row["against"] == "random" and row["found"]]
    figure = Figure(figsize=(8, 1 + 0.36 * len(rows)), dpi=120)
    axes = figure.add_subplot()
    names = []
    for place, row in enumerate(rows):
        cell, found = cell_named(row), row["found"]
        done = found["pairs"]
        names.append(f"{cell.data}, {cell.budget}, {cell.layers} layers ({done} of {row['planned']} pairs)")
        middle, (low, high) = 100 * found["effect"], (100 * limit for limit in found["interval"])
        color = "tab:blue" if row in summary["main"] and done == row["planned"] else "tab:gray"
        axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="o", capsize=3, color=color)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("accuracy, pretrained minus random, points (95 % interval; gray: exploratory or unfinished)")
    axes.grid(axis="x", alpha=0.3)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png", bbox_inches="tight")


def write(
    folder: Path, planned: Mapping[Cell, int], results: Results, main: Sequence[Cell], titles: Mapping[str, str]
) -> dict[str, Any]:
    """Write transfer.parquet, transfer.md and transfer.png, and print the tables."""
    summary = summarize(planned, results, main)
    # The report needs what was predicted, not how the training went.
    runs = [
        {name: value for name, value in run.items() if name != "train_losses"}
        for cell in results.values()
        for run in cell.values()
    ]
    write_results(folder, "transfer", {**summary, "runs": runs}, markdown(summary, titles))
    plot(summary, folder / "transfer.png")
    return summary


def simulated_folds(
    seeds: int, shapes: int, advantage: float, generator: np.random.Generator, folds: int = 5
) -> list[FoldDifference]:
    """Simulate a study: shapes of different difficulty, of which each model finds others hard, and noisy runs.

    Args:
        seeds: Pairs of runs of a fold.
        shapes: Shapes of a fold, each a group.
        advantage: Difference of the log odds of the two models for each shape.
        generator: Source of randomness.
        folds: Number of folds.
    """
    found = []
    for _ in range(folds):
        difficulty = generator.normal(2.2, 3.0, (1, shapes))
        hits = []
        for sign in (1, -1):
            odds = difficulty + sign * advantage / 2 + generator.normal(0, 0.7, (1, shapes))
            odds = odds + generator.normal(0, 0.15, (seeds, 1))
            hits.append((generator.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(float))
        found.append(fold_difference(hits[0] - hits[1], np.arange(shapes)))
    return found


def simulate(seeds: int, shapes: int, advantage: float, studies: int = 500, replicates: int = 0) -> dict[str, float]:
    """Compute how the intervals do in simulated studies.

    Args:
        seeds: See `simulated_folds`.
        shapes: See `simulated_folds`.
        advantage: See `simulated_folds`.
        studies: Number of studies.
        replicates: Replicates of the bootstrap; 0 for no such interval.

    Returns:
        `effect`, the mean one; `coverage`, the share of intervals that contain it; `power`, the share above zero;
        `half_width`, the mean one; with replicates also `bootstrap_coverage` and `bootstrap_half_width`.
    """
    generator = np.random.default_rng(0)
    simulated = [simulated_folds(seeds, shapes, advantage, generator) for _ in range(studies)]
    # The mean over the studies is the truth up to a small part of an interval.
    truth = float(np.mean([effect(folds) for folds in simulated])) if advantage else 0.0
    found: dict[str, float] = {"effect": truth}
    for name, compute in (("", interval), ("bootstrap_", bootstrap_interval)):
        if name and not replicates:
            continue
        settings = {"replicates": replicates} if name else {}
        low, high = np.array([compute(folds, **settings) for folds in simulated]).T
        found[f"{name}coverage"] = float(((low <= truth) & (truth <= high)).mean())
        if not name:
            found["power"] = float((low > 0).mean())
        found[f"{name}half_width"] = float((high - low).mean() / 2)
    return found


def main() -> None:
    """Print coverage and power of the planned main comparisons."""
    print("| set | mean effect, points | interval contains it, % | interval above zero, % | half width, points |")
    print("|---|---|---|---|---|")
    sizes = (("embedded", 5, 115), ("generated", 3, 960))
    for name, seeds, shapes in sizes:
        for advantage in (0.0, 0.1, 0.2, 0.3, 0.5):
            found = simulate(seeds, shapes, advantage)
            print(f"| {name} | {' | '.join(percent(value) for value in found.values())} |")
    for name, seeds, shapes in sizes:
        found = simulate(seeds, shapes, 0.0, studies=100, replicates=500)
        print(
            f"{name}: the bootstrap contains zero in {percent(found['bootstrap_coverage'])} % of 100 studies without "
            f"an effect, half width {percent(found['bootstrap_half_width'])} points"
        )


if __name__ == "__main__":
    main()
