"""Which way of adapting a frozen encoder to point clouds is worth its cost? Trains all of them alike and tables them.

    python examples/compare_adapters.py
    python examples/compare_adapters.py --methods lora guided --ablations --seeds 0
    python examples/compare_adapters.py --table-only
    python examples/compare_adapters.py --base DIR_OF_AN_ACT_STUDENT --output-dir outputs/act_adapters

Methods and ablations are defined in `adapter_methods.py`. Every method gets the same data, augmentation, schedule and
tokenizer. What trains inside the encoder has the recipe's learning rate, in full fine-tuning a tenth of it; with
`--learning-rates` each method takes of these the one with the lowest loss on a part of the training split. Ablations
are of the guided adapter and take its learning rate. The test split chooses nothing.

With `--base` the same methods adapt a pretrained point transformer (`act_adapter_methods.py`), without ablations.

Each run is a process of its own and is stored when it ends; a run that is there already, made with the same settings,
is not repeated. So the program can be stopped and started again, and several of them can share an output directory if
they are given different seeds or methods.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import shapes_recipe as recipe
from act_adapter_methods import HEAD
from adapter_methods import ABLATIONS, METHODS, find_method
from adapter_runs import Run, in_fresh_process
from adapter_table import markdown, plot, summarise
from tqdm.auto import tqdm
from training_runs import kept_run, leave_results, machine

MODEL = {"num_tokens": 16}
"""Changes of the recipe's model: half the tokens, for speed."""


def stored_or_done(run: Run, directory: Path, work: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
    """Read a run's result back, or do it and store it."""
    split = "validation" if run.on_validation else "test"
    path = directory / "runs" / f"{run.method}-{split}-{run.encoder_learning_rate:g}-{run.seed}.json"
    settings = json.loads(json.dumps(asdict(run)))
    if run.base is None:  # as they were stored before there was a choice
        del settings["base"]
    return kept_run(path, settings, lambda: work(run))


def choose_learning_rate(
    name: str, options: argparse.Namespace, work: Callable[[Run], dict[str, Any]]
) -> tuple[float, list[dict[str, Any]]]:
    """The learning rate with the lowest loss on the validation part, and all that was tried; the method's own else."""
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
    """What the command line asks for, for one method and seed."""
    training = {"num_train_epochs": options.epochs}
    if options.max_steps is not None:
        training = {"max_steps": options.max_steps}
    return Run(
        name, seed, rate, on_validation, options.dataset, options.encoder, model_settings(options), training,
        options.threads, options.base,
    )  # fmt: skip


def model_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Changes of the model's settings that hold for all runs."""
    return options.model if options.base is not None else MODEL | options.model


def run_all(options: argparse.Namespace, work: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
    """Choose learning rates, train every method and ablation with every seed."""
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
            "model": (recipe.MODEL if options.base is None else HEAD) | model_settings(options),
            "training": recipe.TRAINING | make_run("head", 0, 0.0, options).training,
            "augmentation": recipe.AUGMENTATION,
            "label_smoothing": recipe.LABEL_SMOOTHING,
            **({"encoder": options.encoder} if options.base is None else {"base": options.base}),
            "dataset": options.dataset,
        },
        "machine": f"{machine()}, {options.threads} thread{'s' if options.threads > 1 else ''} a run",
        "date": date.today().isoformat(),
    }


def refuse(run: Run) -> dict[str, Any]:
    """Stands in for the work where only stored runs are wanted."""
    raise SystemExit(f"--table-only: {run.method} with seed {run.seed} has not been run with these settings")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/adapters"), help="runs and tables go here")
    parser.add_argument("--base", help="name or directory of a pretrained ACT student, to be adapted in its place")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--ablations", nargs="*", choices=list(ABLATIONS), help="by default all; none with --base")
    parser.add_argument("--views", nargs="*", type=int, choices=range(1, 7), metavar="N",
                        help="ablations with so many views; the guided adapter has six")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[],
                        help="of what trains inside the encoder: choose for each method")  # fmt: skip
    parser.add_argument("--search-seed", type=int, default=0, help="seed of the runs that choose learning rates")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--max-steps", type=int, help="instead of epochs")
    parser.add_argument("--dataset", default="shapes", help="name for load_point_dataset; with columns points, label")
    parser.add_argument("--encoder", default=recipe.ENCODER, help="name or directory of a pretrained encoder")
    parser.add_argument("--model", type=json.loads, default={}, help="JSON: further settings of the model's config")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch in a run")
    parser.add_argument("--table-only", action="store_true", help="train nothing, write the table of stored runs")
    options = parser.parse_args(arguments)
    if options.base is not None and (options.ablations or options.views):
        parser.error("--base with --ablations or --views; expected neither, they are about virtual views")
    if options.ablations is None:
        options.ablations = list(ABLATIONS) if options.base is None else []
    if options.views is None:
        options.views = [1, 2, 3] if options.base is None else []
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for; print and store table and plot."""
    options = parse(arguments)
    found = run_all(options, refuse if options.table_only else in_fresh_process)
    summary = {**found, "rows": summarise(found)}
    leave_results(options.output_dir, "adapters", summary, markdown(summary))
    plot(summary, options.output_dir / "adapters.png")


if __name__ == "__main__":
    main()
