"""Gain of each adapter on each encoder: over no adapter, and over the same encoder with random weights.

    python -m studies.adapter_gains --encoder packaged hf_any3d/default_model --cpu-minutes 40
    python -m studies.adapter_gains --encoder act DIRECTORY --datasets generated --seeds 0
    python -m studies.adapter_gains --table-only --reports REPORTS

A grid of methods and encoders, each with pretrained and with random weights, trained alike: the augmentation,
schedule and learning rates of `studies.adapters`, the model of the last epoch, the test split once. The data are the
embedded shapes, and generated shapes of classes that these have not, of which 160 are learned. Cells run in a fixed
order, seed by seed, until the budget of processor time is spent; those that are left stay empty, as do encoders
that were not given. Each run is stored when it ends, so that a later call with a further budget goes on.

`--reports` is a folder with results on other data sets, one JSON file a run, which others have measured: see `SLOTS`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from transformers import AutoModel

from hf_any3d.modeling.config_checks import read_settings
from studies import earlier_recipe
from studies.adapter_methods import POINT_METHODS, TOKEN_METHODS
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
SLOTS = ("scanobjectnn", "pcc13")
"""Other data sets of reports. A file holds `dataset`, `encoder`, `method`, `seed`, `random`, and what the evaluation
of the test split gave: `accuracy` between 0 and 1, and `rows`, its number of clouds."""
KEPT = (
    *("accuracy", "rows", "correct", "trained_parameters", "encoder_parameters", "stored_bytes", "saved_activations"),
    *("step_cpu_seconds", "cpu_seconds"),
)
"""Figures of a run that are stored with the table; `correct` has a 1 for each test shape that was recognized."""
_ON_ACT_ALONE = ("ppt",)


def cells(
    encoders: dict[str, str], seeds: Sequence[int], datasets: Sequence[str] = tuple(DATASETS)
) -> Iterator[tuple[str, bool, Run]]:
    """Iterate over the runs in their order: a seed of all methods on an encoder, with its weights and random ones.

    Args:
        encoders: Directories or names by the keys of `ENCODERS`.
        seeds: Seeds.
        datasets: Names of `DATASETS`.

    Yields the encoder's key, whether its weights are random, and the run.
    """
    for seed, dataset, (key, place), is_random, method in product(
        seeds, datasets, encoders.items(), (False, True), METHODS
    ):
        if method in _ON_ACT_ALONE and key in ("uni3d", "minilm"):
            continue
        on_points = key != "minilm"
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
    for key, is_random, run in cells(places, options.seeds, options.datasets):
        folder = options.output_dir / run.dataset / f"{key}{'-random' if is_random else ''}"
        name = f"{run.method}-test-{run.encoder_learning_rate:g}-{run.seed}.json"
        is_stored = (folder / "runs" / name).is_file()
        if not is_stored and (options.table_only or spent >= 60 * options.cpu_minutes):
            continue
        result = stored_or_done(run, folder, refuse if options.table_only else train_and_measure)
        spent += 0 if is_stored else result["cpu_seconds"]
        cell = {
            "dataset": run.dataset,
            "encoder": key,
            "method": run.method,
            "seed": run.seed,
            "random": is_random,
        }
        print(*cell.values(), f"{100 * result['accuracy']:.1f} %", flush=True)
        found.append(cell | {name: result[name] for name in KEPT})
    return found


def _without_head(key: str, place: str, folder: Path) -> str:
    """Return where an encoder is; that of a classifier is stored without its head, which is for other classes."""
    settings = Path(place) / "config.json"
    if key == "minilm" or not settings.is_file():
        return place
    if not any("Classification" in name for name in read_settings(settings).get("architectures") or ()):
        return place
    stored = folder / "encoders" / key
    if not stored.is_dir():
        AutoModel.from_pretrained(place).save_pretrained(stored)
    return str(stored)


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """Read and check the reports on other data sets.

    Raises:
        ValueError: A file lacks a field, or has a value that cannot be; the message names it.
    """
    allowed = {
        "dataset": lambda value: value in SLOTS,
        "encoder": lambda value: value in ENCODERS,
        "method": lambda value: value in METHODS,
        "seed": lambda value: type(value) is int and value >= 0,
        "random": lambda value: type(value) is bool,
        "accuracy": lambda value: type(value) is float and 0 <= value <= 1,
        "rows": lambda value: type(value) is int and value > 0,
    }
    found = []
    for path in sorted(folder.glob("*.json")):
        report = read_settings(path)
        for name, is_allowed in allowed.items():
            if name not in report or not is_allowed(report[name]):
                value = report.get(name, "missing")
                raise ValueError(
                    f"{path}: {name}={value!r}; expected the fields that studies.adapter_gains.SLOTS names"
                )
        found.append({name: report[name] for name in allowed})
    return found


def table(runs: list[dict[str, Any]], dataset: str) -> str:
    """Return the accuracies on a data set and their gains, in Markdown; cells without runs are empty."""
    lines = [
        "| encoder | method | seeds | accuracy, % | over no adapter | over random weights |",
        "|---|---|---|---|---|---|",
    ]
    own = [run for run in runs if run["dataset"] == dataset]
    for key in ENCODERS:
        for method in METHODS:
            if method in _ON_ACT_ALONE and key in ("uni3d", "minilm"):
                continue
            scores = _scores(own, key, method, is_random=False)
            cells_of_row = [
                key,
                POINT_METHODS[method].title,
                str(len(scores)) if scores else "",
                f"{100 * statistics.fmean(scores.values()):.1f}" if scores else "",
                "" if method == METHODS[0] else _gain(scores, _scores(own, key, METHODS[0], is_random=False)),
                _gain(scores, _scores(own, key, method, is_random=True)),
            ]
            lines.append(f"| {' | '.join(cells_of_row)} |")
    return "\n".join(lines) + "\n"


def _scores(runs: list[dict[str, Any]], key: str, method: str, is_random: bool) -> dict[int, float]:
    return {
        run["seed"]: run["accuracy"]
        for run in runs
        if (run["encoder"], run["method"], run["random"]) == (key, method, is_random)
    }


def _gain(scores: dict[int, float], others: dict[int, float]) -> str:
    """Format the mean difference over the seeds that both have."""
    both = scores.keys() & others.keys()
    return f"{100 * statistics.fmean(scores[seed] - others[seed] for seed in both):+.1f}" if both else ""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__, "outputs/adapter_gains", with_threads=False)
    parser.add_argument("--encoder", nargs=2, action="append", default=[], metavar=("KEY", "PLACE"),
                        help=f"one of {', '.join(ENCODERS)} and its directory or name; may be repeated")  # fmt: skip
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
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
    for dataset in (*DATASETS, *SLOTS):
        parts.append(f"## {dataset}\n\n{table(runs, dataset)}")
    summary = {
        "runs": runs,
        "settings": {"epochs": DATASETS, "training": earlier_recipe.TRAINING, "model": MODEL},
        "machine": machine(),
    }
    write_results(options.output_dir, "adapter_gains", json.loads(json.dumps(summary)), "\n".join(parts))


if __name__ == "__main__":
    main()
