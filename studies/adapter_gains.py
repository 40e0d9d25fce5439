"""Gain of each adapter on each encoder: over no adapter, and over the same encoder with random weights.

    python -m studies.adapter_gains --encoder packaged hf_any3d/default_model --cpu-minutes 40
    python -m studies.adapter_gains --encoder act DIRECTORY --datasets generated --seeds 0
    python -m studies.adapter_gains --table-only --reports REPORTS

A grid of methods and encoders, each with pretrained and with random weights, trained alike: the augmentation,
schedule and learning rates of `studies.adapters`, the model of the last epoch, the test split once. The data are the
embedded shapes, and generated shapes of classes that these have not, of which 160 are learned. Cells run in a fixed
order, seed by seed, until the budget of processor time is spent; those that are left stay empty, as do encoders
that were not given. Each run is stored when it ends, so that a later call with a further budget goes on.

`--reports` is a folder with results on other data sets, one file of `hf-any3d evaluate --report` for each run, which
others have measured: see `SLOTS`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModel

from hf_any3d.evaluation.classification import wilson_interval
from hf_any3d.model_card.evaluation_reports import read_report
from studies import earlier_recipe
from studies.adapter_methods import POINT_METHODS, PUBLISHED_POINTGST, TOKEN_METHODS
from studies.adapter_runs import GENERATED, Run, train_and_measure
from studies.adapters import MODEL, refuse, stored_or_done
from studies.runs import machine, runs_parser, write_results

ENCODERS = {
    "packaged": "the encoder of the classifier in the package, which learned the same training shapes with labels",
    "act": "ACT's student (`python -m studies.act --arms pretrained --seeds 0`)",
    "uni3d": "Uni3D's layout (`hf-any3d train shapes_uni3d.yaml`)",
    "minilm": "Any2Point around MiniLM's first two layers",
}
"""Encoders of the grid; all but the last are given by directory."""
METHODS = ("head", "lora", *TOKEN_METHODS)
"""No adapter first."""
DATASETS = {GENERATED: 10, "shapes": 6}
"""Epochs on each data set of the grid: 100 steps of 16 generated shapes, 162 of embedded ones."""
WEIGHTS = ("pretrained", "random")
SLOTS = ("scanobjectnn", "pcc13")
"""Other data sets, of which `hf-any3d evaluate --report` writes the reports."""
CELL = ("dataset", "encoder", "method", "seed", "random")
"""What tells the runs of the table apart."""
KEPT = (
    *("accuracy", "rows", "correct", "trained_parameters", "encoder_parameters", "stored_bytes", "saved_activations"),
    *("step_cpu_seconds", "cpu_seconds"),
)
"""Figures of a run that are stored with the table; `correct` has a 1 for each test shape that was recognized."""
_ON_ACT_ALONE = ("ppt",)


def cells(
    encoders: dict[str, str],
    seeds: Sequence[int],
    datasets: Sequence[str] = tuple(DATASETS),
    weights: Sequence[str] = WEIGHTS,
) -> Iterator[tuple[str, bool, Run]]:
    """Iterate over the runs in their order: a seed of all methods on an encoder, with its weights and random ones.

    Args:
        encoders: Directories or names by the keys of `ENCODERS`.
        seeds: Seeds.
        datasets: Names of `DATASETS`.
        weights: Some of `WEIGHTS`.

    Yields the encoder's key, whether its weights are random, and the run.
    """
    for seed, dataset, (key, place), kind, method in product(seeds, datasets, encoders.items(), weights, METHODS):
        if method in _ON_ACT_ALONE and key in ("uni3d", "minilm"):
            continue
        is_random, on_points = kind == "random", key != "minilm"
        settings: dict[str, Any] = {} if on_points else dict(MODEL)
        if is_random and not on_points:
            settings["encoder_weights"] = "random"
        run = Run(
            method,
            seed,
            POINT_METHODS[method].rate,
            False,
            dataset,
            place,
            settings,
            {"num_train_epochs": DATASETS[dataset]},
            base=place if on_points else None,
            random_base=is_random and on_points,
        )
        yield key, is_random, run


def run_cells(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run cells until the budget is spent; return the results of all that are stored."""
    spent, found = 0.0, []
    places = {key: _without_head(key, place, options.output_dir) for key, place in options.encoder}
    for key, is_random, run in cells(places, options.seeds, options.datasets, options.weights):
        folder = options.output_dir / run.dataset / f"{key}{'-random' if is_random else ''}"
        name = f"{run.method}-test-{run.encoder_learning_rate:g}-{run.seed}.json"
        is_stored = (folder / "runs" / name).is_file()
        if not is_stored and (options.table_only or spent >= 60 * options.cpu_minutes):
            continue
        result = stored_or_done(run, folder, refuse if options.table_only else train_and_measure)
        spent += 0 if is_stored else result["cpu_seconds"]
        cell = dict(zip(CELL, (run.dataset, key, run.method, run.seed, is_random), strict=True))
        print(*cell.values(), f"{100 * result['accuracy']:.1f} %", flush=True)
        found.append(cell | {name: result[name] for name in KEPT})
    return found


def _without_head(key: str, place: str, folder: Path) -> str:
    """Return where an encoder is; that of a classifier is stored without its head, which is for other classes."""
    settings = Path(place) / "config.json"
    if key == "minilm" or not settings.is_file():
        return place
    if not any("Classification" in name for name in json.loads(settings.read_text()).get("architectures") or ()):
        return place
    stored = folder / "encoders" / key
    if not stored.is_dir():
        AutoModel.from_pretrained(place).save_pretrained(stored)
    return str(stored)


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """Read the reports on other data sets, which `hf-any3d evaluate --report` wrote.

    Raises:
        ValueError: A file is no such report, is about what the table has no row for, has a model that the test split
            selected, another number of test clouds than its data set, or repeats a cell; the message names the file.
    """
    found: list[dict[str, Any]] = []
    files: dict[tuple[Any, ...], Path] = {}
    for path in sorted(folder.glob("*.json")):
        report = read_report(path)
        is_published = PUBLISHED_POINTGST.items() <= report["settings"].items()
        method = "pointgst_published" if is_published else report["method"]
        for name, value, allowed in (("dataset", report["dataset"], SLOTS), ("method", method, METHODS)):
            if value not in allowed:
                raise ValueError(f"{path}: {name}={value!r}; expected one of {', '.join(allowed)}")
        if report["selected_on_test"]:
            raise ValueError(f"{path}: selected_on_test=true; expected a model that the test split did not select")
        dataset = " ".join(filter(None, (report["dataset"], report["variant"])))
        cell = dataset, report["encoder"], method, report["seed"], report["random"]
        if cell in files:
            raise ValueError(f"{path}: repeats {', '.join(map(str, cell))} of {files[cell]}; expected one file a cell")
        # The sizes of published sets are checked by `read_report`.
        sizes = {one["rows"] for one in found if one["dataset"] == dataset}
        if sizes and report["rows"] not in sizes:
            raise ValueError(f"{path}: rows={report['rows']}; the other reports on {dataset} have {min(sizes)}")
        files[cell] = path
        figures = {name: report[name] for name in ("accuracy", "rows", "model", "versions")}
        found.append(dict(zip(CELL, cell, strict=True)) | figures)
    return found


def table(runs: list[dict[str, Any]], dataset: str) -> str:
    """Return the accuracies on a data set, their gains and costs, in Markdown; what did not run stays empty."""
    titles = ("encoder", "method", "seeds", "accuracy, %", "95 % of shapes", "over no adapter", "over random weights")
    titles += ("trained", "of it in the encoder", "stored, MB", "CPU s a step", "saved for backward, MB")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    own = [run for run in runs if run["dataset"] == dataset]
    encoders = ENCODERS if dataset in DATASETS else sorted({run["encoder"] for run in own})
    for key in encoders:
        if not any(run["encoder"] == key for run in own):
            lines.append(f"| {key} | all |{' |' * (len(titles) - 2)}")
            continue
        for method in METHODS:
            if method in _ON_ACT_ALONE and key in ("uni3d", "minilm"):
                continue
            scores = _of(own, key, method, is_random=False)
            cells_of_row = [
                key,
                POINT_METHODS[method].title,
                str(len(scores)) if scores else "",
                *_accuracy(list(scores.values())),
                "" if method == METHODS[0] else _gain(scores, _of(own, key, METHODS[0], is_random=False)),
                _gain(scores, _of(own, key, method, is_random=True)),
                *_costs(list(scores.values())),
            ]
            lines.append(f"| {' | '.join(cells_of_row)} |")
    return "\n".join(lines) + "\n"


def _of(runs: list[dict[str, Any]], key: str, method: str, is_random: bool) -> dict[int, dict[str, Any]]:
    cell = key, method, is_random
    return {run["seed"]: run for run in runs if (run["encoder"], run["method"], run["random"]) == cell}


def _accuracy(runs: list[dict[str, Any]]) -> list[str]:
    """Format mean and deviation over seeds, and the 95 % interval of the mean as a binomial share of test shapes."""
    if not runs:
        return ["", ""]
    shares = [100 * run["accuracy"] for run in runs]
    mean = statistics.fmean(shares)
    spread = f" ± {statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    low, high = wilson_interval(round(mean / 100 * runs[0]["rows"]), runs[0]["rows"])
    return [f"{mean:.1f}{spread}", f"{100 * low:.1f} to {100 * high:.1f}"]


def _gain(runs: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]]) -> str:
    """Format the mean difference over the seeds that both have, with its 95 % interval over the test shapes.

    The differences of a shape are averaged over seeds first. Reports of others have no interval, for want of answers.
    """
    if not (seeds := sorted(runs.keys() & others.keys())):
        return ""
    pairs = [(runs[seed], others[seed]) for seed in seeds]
    mean = statistics.fmean(one["accuracy"] - other["accuracy"] for one, other in pairs)
    text = f"{100 * mean:+.1f}"
    if all("correct" in run for pair in pairs for run in pair):
        shapes = np.mean([np.subtract(one["correct"], other["correct"]) for one, other in pairs], axis=0)  # (rows,)
        text += f" ± {196 * shapes.std(ddof=1) / len(shapes) ** 0.5:.1f}"
    return f"{text} (from {100 * statistics.fmean(other['accuracy'] for _, other in pairs):.1f})"


def _costs(runs: list[dict[str, Any]]) -> list[str]:
    if not runs or "stored_bytes" not in runs[0]:
        return [""] * 5
    first = runs[0]
    return [
        f"{first['trained_parameters']:,}",
        f"{first['encoder_parameters']:,}",
        f"{first['stored_bytes'] / 1e6:.2f}",
        f"{statistics.median(run['step_cpu_seconds'] for run in runs):.3f}",
        f"{first['saved_activations'] / 1e6:.1f}",
    ]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__, "outputs/adapter_gains", with_threads=False)
    parser.add_argument("--encoder", nargs=2, action="append", default=[], metavar=("KEY", "PLACE"),
                        help=f"one of {', '.join(ENCODERS)} and its directory or name; may be repeated")  # fmt: skip
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), choices=WEIGHTS)
    parser.add_argument("--cpu-minutes", type=float, default=40, help="no cell begins after that")
    parser.add_argument("--reports", type=Path, help="folder with results on other data sets")
    parser.add_argument("--table-only", action="store_true", help="train nothing, write the tables of stored runs")
    options = parser.parse_args(arguments)
    if wrong := [key for key, _ in options.encoder if key not in ENCODERS]:
        parser.error(f"--encoder {wrong[0]}; expected one of {', '.join(ENCODERS)}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run the cells; print and store the tables."""
    options = parse(arguments)
    runs = run_cells(options) + ([] if options.reports is None else read_reports(options.reports))
    parts = []
    for dataset in dict.fromkeys([*DATASETS, *(run["dataset"] for run in runs)]):
        parts.append(f"## {dataset}\n\n{table(runs, dataset)}")
    summary = {
        "runs": runs,
        "settings": {"epochs": DATASETS, "training": earlier_recipe.TRAINING, "model": MODEL},
        "machine": machine(),
    }
    write_results(options.output_dir, "adapters_gains", json.loads(json.dumps(summary)), "\n".join(parts))


if __name__ == "__main__":
    main()
