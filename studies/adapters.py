"""Accuracy and cost of the ways to adapt a frozen encoder to point clouds, all trained alike.

    python -m studies.adapters
    python -m studies.adapters --methods lora guided --ablations --seeds 0
    python -m studies.adapters --table-only
    python -m studies.adapters --encoder DIR_OF_AN_ACT_STUDENT --output-dir outputs/act_adapters
    python -m studies.adapters --encoder DIR_OF_A_CONVERTED_UNI3D --output-dir outputs/uni3d_adapters

Every method (see `adapter_methods.py`) has the same data, augmentation, schedule and tokenizer. Inside the encoder the
learning rate is that of the quickstart, in full fine-tuning a tenth of it; with `--learning-rates` each method uses
the one with the lowest loss on a part of the training split. Ablations are of the guided adapter and use its learning
rate. The test split selects nothing. With an `--encoder` of points (ACT, OpenShape, Uni3D, Point Transformer V3) the
methods adapt its layers; there is no tokenizer around it and there are no ablations then. `--base` is another name of
it.

Each run has its own process and is stored when it ends; it is not repeated with the same settings. So the study can be
stopped and restarted, and several processes with different seeds or methods can share an output directory.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import AutoConfig

from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.training.models import MODEL_TYPES
from hf_any3d.utils.atomic_files import atomic_write
from studies import earlier_recipe
from studies.adapter_methods import ABLATIONS, HEAD, METHODS, POINT_METHODS, find_method
from studies.adapter_runs import Run, in_fresh_process
from studies.runs import kept_run, machine, runs_parser, write_results

MODEL = {"num_tokens": 16}
"""Changes of the quickstart's model: half the tokens, for speed."""

AVERAGED = (
    "accuracy",
    "mean_class_accuracy",
    "loss",
    "step_seconds",
    "step_cpu_seconds",
    "peak_memory",
    "training_memory",
    "saved_activations",
    "stored_bytes",
    "trained_parameters",
    "encoder_parameters",
    "seconds",
    "cpu_seconds",
)


def stored_or_done(run: Run, directory: Path, work: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
    """Read the stored result of a run, or do the run and store its result."""
    split = "validation" if run.on_validation else "test"
    path = directory / "runs" / f"{run.method}-{split}-{run.encoder_learning_rate:g}-{run.seed}.json"
    settings = json.loads(json.dumps(asdict(run)))
    for name, default in (("base", None), ("random_base", False)):  # older runs were stored without them
        if settings[name] == default:
            del settings[name]
    return kept_run(path, settings, lambda: work(run))


def choose_learning_rate(
    name: str, options: argparse.Namespace, work: Callable[[Run], dict[str, Any]]
) -> tuple[float, list[dict[str, Any]]]:
    """Return a method's learning rate and the runs that chose it: the lowest loss on the validation part."""
    method = find_method(name)
    if not method.own or not options.learning_rates:
        return method.rate, []
    tried = []
    for rate in tqdm(options.learning_rates, desc=f"learning rate of {name}", leave=False):
        run = make_run(name, options.search_seed, rate, options, on_validation=True)
        tried.append(stored_or_done(run, options.output_dir, work))
    best = min(tried, key=lambda run: run["loss"])
    return best["settings"]["encoder_learning_rate"], tried


def make_run(name: str, seed: int, rate: float, options: argparse.Namespace, on_validation: bool = False) -> Run:
    """Describe the run of a method and a seed, by the command line."""
    training = {"num_train_epochs": options.epochs}
    if options.max_steps is not None:
        training = {"max_steps": options.max_steps}
    return Run(
        name, seed, rate, on_validation, options.dataset, options.encoder, model_settings(options), training,
        options.threads, options.base,
    )  # fmt: skip


def model_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the changes of the model's settings for all runs."""
    return options.model if options.base is not None else MODEL | options.model


def run_all(options: argparse.Namespace, work: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
    """Choose learning rates, then train every method and ablation with every seed."""
    ablations = [*options.ablations, *(f"views_{count}" for count in options.views)]
    rates, search, runs = {}, [], []
    bar = tqdm([*options.methods, *ablations], desc="methods")
    for name in bar:
        bar.set_postfix_str(name)
        chooser = name if name in METHODS else "guided"
        if chooser not in rates:
            rates[chooser], tried = choose_learning_rate(chooser, options, work)
            search += tried
        for seed in options.seeds:
            run = stored_or_done(make_run(name, seed, rates[chooser], options), options.output_dir, work)
            tqdm.write(f"{name}, seed {seed}: {100 * run['accuracy']:.1f} % in {run['seconds']:.0f} s")
            runs.append(run)
    return {
        "methods": options.methods,
        "ablations": ablations,
        "seeds": options.seeds,
        "learning_rates": rates,
        "search": search,
        "runs": runs,
        "settings": {
            "model": (earlier_recipe.MODEL if options.base is None else HEAD) | model_settings(options),
            "training": earlier_recipe.TRAINING | make_run("head", 0, 0.0, options).training,
            "augmentation": earlier_recipe.AUGMENTATION,
            "label_smoothing": earlier_recipe.LABEL_SMOOTHING,
            **({"encoder": options.encoder} if options.base is None else {"base": options.base}),
            "dataset": options.dataset,
        },
        "machine": f"{machine()}, {options.threads} thread{'s' if options.threads > 1 else ''} a run",
        "date": date.today().isoformat(),
    }


def refuse(run: Run) -> dict[str, Any]:
    """Replace the work for `--table-only`, where all runs must be stored."""
    raise SystemExit(f"--table-only: {run.method} with seed {run.seed} has not been run with these settings")


def summarize(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Compute mean and sample standard deviation of every method and ablation over its seeds."""
    rows = []
    for name in (*results["methods"], *results["ablations"]):
        own = [run for run in results["runs"] if run["settings"]["method"] == name]
        method = find_method(name) if results["settings"].get("base") is None else POINT_METHODS[name]
        row: dict[str, Any] = {"method": name, "title": method.title, "about": method.about, "runs": len(own)}
        row["encoder_learning_rate"] = own[0]["settings"]["encoder_learning_rate"] if method.own else None
        for key in AVERAGED:
            values = [run[key] for run in own]
            if None in values:
                row[key] = row[f"{key}_std"] = None
                continue
            row[key] = statistics.fmean(values)
            row[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append(row)
    return rows


def markdown(summary: dict[str, Any]) -> str:
    """Format both tables and the meaning of each row."""
    rows = {row["method"]: row for row in summary["rows"]}
    parts = [_table([rows[name] for name in summary["methods"]])]
    if summary["ablations"]:
        kept = [rows[name] for name in (*(["guided"] if "guided" in rows else []), *summary["ablations"])]
        parts += ["Ablations of the guided adapter:\n", _table(kept)]
    parts.append("".join(f"- **{row['title']}**: {row['about']}.\n" for row in summary["rows"]))
    return "\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| method | trained | of it in the encoder | its learning rate | test accuracy, % | class accuracy, % | "
        "CPU s a step | wall s a step | peak memory, MB | saved for backward, MB | stored, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = "–" if row["encoder_learning_rate"] is None else f"{row['encoder_learning_rate']:g}"
        cells = [
            row["title"],
            f"{row['trained_parameters']:,.0f}",
            f"{row['encoder_parameters']:,.0f}",
            rate,
            _spread(row, "accuracy", 100, 1),
            _spread(row, "mean_class_accuracy", 100, 1),
            _spread(row, "step_cpu_seconds", 1, 3),
            _spread(row, "step_seconds", 1, 3),
            "?" if row["peak_memory"] is None else _spread(row, "peak_memory", 1e-6, 0),
            f"{row['saved_activations'] / 1e6:.0f}",
            f"{row['stored_bytes'] / 1e6:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(row: dict[str, Any], key: str, scale: float, digits: int) -> str:
    return f"{scale * row[key]:.{digits}f} ± {scale * row[f'{key}_std']:.{digits}f}"


def plot(summary: dict[str, Any], path: Path) -> None:
    """Plot accuracy against trained parameters as PNG, with error bars of one standard deviation."""
    from matplotlib.figure import Figure

    rows = {row["method"]: row for row in summary["rows"]}
    figure = Figure(figsize=(8, 5), dpi=120)
    axes = figure.add_subplot()
    for number, name in enumerate(summary["methods"]):
        row = rows[name]
        place = row["trained_parameters"], 100 * row["accuracy"]
        color = "tab:red" if name == "guided" else "tab:blue"
        axes.errorbar(*place, yerr=100 * row["accuracy_std"], fmt="o", capsize=3, color=color)
        # Methods of nearly equal size form a column, so their names alternate between both sides.
        left = number % 2 == 1
        axes.annotate(
            row["title"],
            place,
            xytext=(-7 if left else 7, 3),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=9,
        )
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png", bbox_inches="tight")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__, "outputs/adapters", with_threads=False)
    parser.add_argument(
        "--base", help="name or directory of a pretrained point encoder; the same as --encoder with it"
    )
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--ablations", nargs="*", choices=list(ABLATIONS),
                        help="by default all; none with an encoder of points")  # fmt: skip
    parser.add_argument("--views", nargs="*", type=int, choices=range(1, 7), metavar="N",
                        help="ablations with N views; the guided adapter has six")  # fmt: skip
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[],
                        help="candidates for each method, inside the encoder")  # fmt: skip
    parser.add_argument("--search-seed", type=int, default=0, help="seed of the runs that choose learning rates")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--max-steps", type=int, help="instead of epochs")
    parser.add_argument("--dataset", default="shapes", help="name for load_point_dataset; with columns points, label")
    parser.add_argument("--encoder", default=earlier_recipe.ENCODER,
                        help="name or directory of a pretrained encoder, also one of points")  # fmt: skip
    parser.add_argument("--model", type=json.loads, default={}, help="JSON: further settings of the model's config")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch in a run")
    parser.add_argument("--table-only", action="store_true", help="train nothing, write the table of stored runs")
    options = parser.parse_args(arguments)
    if options.base is None and reads_points(options.encoder):
        options.base = options.encoder
    if options.base is not None and (options.ablations or options.views):
        parser.error(
            f"{options.base} is an encoder of points; expected neither --ablations nor --views, which are about "
            "virtual views"
        )
    if options.ablations is None:
        options.ablations = list(ABLATIONS) if options.base is None else []
    if options.views is None:
        options.views = [1, 2, 3] if options.base is None else []
    return options


def reads_points(encoder: str) -> bool:
    """Return whether an encoder is a registered one of points with a classifier, not one of another modality."""
    if encoder == earlier_recipe.ENCODER:
        return False
    model_type = AutoConfig.from_pretrained(encoder).model_type
    return model_type in MODEL_TYPES and model_type != Any2PointConfig.model_type


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print and store its table and plot."""
    options = parse(arguments)
    results = run_all(options, refuse if options.table_only else in_fresh_process)
    summary = {**results, "rows": summarize(results)}
    write_results(options.output_dir, "adapters", summary, markdown(summary))
    plot(summary, options.output_dir / "adapters.png")


if __name__ == "__main__":
    main()
