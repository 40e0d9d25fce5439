"""What does ACT's pretraining give on the embedded shapes, and does it matter who teaches? Three seeds, all stages.

    python examples/bench_act.py
    python examples/bench_act.py --arms scratch pretrained --seeds 0

Every arm goes through the programs of both stages, of few-shot and of full fine-tuning by the recipes
`recipes/shapes_act_*.yaml`; the arms differ in the teacher alone. Every stage is stored when it ends, and one that is
there already, made by the same recipes, is not repeated; one that was cut goes on from its last checkpoint or fold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from act_shapes import ARMS, PRETRAINING, SHOT, TUNING, WAYS, draw, recipe_of, run_stage, stages_of
from tqdm.auto import tqdm
from training_runs import machine, over_seeds, percent, write_text

WHEN = ("before", "after")
COSTS = ("seconds", "cpu_seconds")
Runs = list[dict[str, Any]]


def of(runs: Runs, arm: str, stage: str) -> Runs:
    """The runs of an arm's stage, by seed."""
    return sorted((run for run in runs if (run["arm"], run["stage"]) == (arm, stage)), key=lambda run: run["seed"])


def pretraining_row(runs: Runs, arm: str) -> dict[str, Any]:
    """What both stages of an arm gave, over its seeds."""
    first, second = (of(runs, arm, stage) for stage in PRETRAINING)
    flat = [{f"{name}_{when}": run[when][name] for when in WHEN for name in run[when]} for run in first]
    return {
        "arm": arm,
        **over_seeds(flat, flat[0]),
        **over_seeds(second, ("probe_before", "probe", "loss")),
        "trained_parameters": [stage[0]["trained_parameters"] for stage in (first, second)],
    }


def tuning_row(runs: Runs, arm: str) -> dict[str, Any]:
    """How an arm's students learn classes, over its seeds, and beside those from scratch on the same folds."""
    row: dict[str, Any] = {"arm": arm, "title": ARMS[arm][0]}
    few = {stage: of(runs, arm, stage) for stage in WAYS}
    for stage, own in {**few, "full": of(runs, arm, "full")}.items():
        figures = over_seeds(own, ("accuracy",))
        row |= {stage: figures["accuracy"], f"{stage}_std": figures["accuracy_std"]}
        row |= difference(own, of(runs, "scratch", stage), stage)
    row |= over_seeds(mean_of_ways(few.values()), ("few",))
    row |= difference(mean_of_ways(few.values()), mean_of_ways(of(runs, "scratch", stage) for stage in WAYS), "few")
    return row


def mean_of_ways(stages: Iterable[Runs]) -> Runs:
    """Few-shot accuracy of each seed, as the mean of the settings."""
    together = zip(*stages, strict=True)
    return [{"seed": own[0]["seed"], "few": float(np.mean([run["accuracy"] for run in own]))} for own in together]


def difference(own: Runs, scratch: Runs, name: str) -> dict[str, float]:
    """`<name>_gain`: points above the students from scratch with the same seeds, and its deviation."""
    key = "few" if name == "few" else "accuracy"
    others = {run["seed"]: run[key] for run in scratch}
    gains = [{"gain": run[key] - others[run["seed"]]} for run in own if run["seed"] in others]
    if not gains:
        return {}
    figures = over_seeds(gains, ("gain",))
    return {f"{name}_gain": figures["gain"], f"{name}_gain_std": figures["gain_std"]}


def cost_row(runs: Runs, arm: str) -> dict[str, Any]:
    """What an arm's stages took, mean over its seeds."""
    row: dict[str, Any] = {"arm": arm}
    for stage in stages_of(arm):
        row[stage] = {name: over_seeds(of(runs, arm, stage), (name,))[name] for name in COSTS}
    return row


def summarise(runs: Runs, arms: Iterable[str], folds: int) -> dict[str, Any]:
    """Figures of all arms over their seeds."""
    arms = list(arms)
    peaks = [run["peak_memory"] for run in runs if run["peak_memory"]]
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "folds": folds,
        "seeds": sorted({run["seed"] for run in runs}),
        "settings": {stage: recipe_of(stage) for stage in (*PRETRAINING, *WAYS, "full")},
        "pretraining": [pretraining_row(runs, arm) for arm in arms if ARMS[arm][1] is not None],
        "tuning": [tuning_row(runs, arm) for arm in arms],
        "costs": [cost_row(runs, arm) for arm in arms],
        "peak_memory": max(peaks, default=None),
        "runs": runs,
    }


def plain(row: Mapping[str, Any], name: str, form: str) -> str:
    """A figure with its deviation, `0.121 ± 0.002`."""
    return f"{row[name]:{form}} ± {row[f'{name}_std']:{form}}"


def gained(row: Mapping[str, Any], name: str) -> str:
    """Percentage points above scratch, where there are such runs."""
    if f"{name}_gain" not in row:
        return "–"
    return f"{100 * row[f'{name}_gain']:+.1f} ± {100 * row[f'{name}_gain_std']:.1f}"


def table(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    codes = summary["settings"]["autoencoder"]["model_config"]["num_codes"]
    lines = []
    if summary["pretraining"]:
        lines += [
            "| teacher | trained, I and II | patches, before | patches, after | clouds, before | clouds, after "
            f"| codes of {codes} | probe before, % | probe after, % |",
            "|---" * 9 + "|",
        ]
    for row in summary["pretraining"]:
        cells = [plain(row, f"{name}_{when}", ".4f") for name in ("patches", "chamfer_l1") for when in WHEN]
        trained = " and ".join(f"{count:,}" for count in row["trained_parameters"])
        cells = [ARMS[row["arm"]][0], trained, *cells, plain(row, "codes_after", ".0f")]
        lines.append(f"| {' | '.join([*cells, percent(row, 'probe_before'), percent(row, 'probe')])} |")
    ways = [f"{way}-way {SHOT}-shot, %" for way in WAYS.values()]
    titles = " | ".join([*ways, "few-shot, mean", "above scratch", "all classes, %", "above scratch"])
    lines += ["", f"| student | {titles} |"]
    lines.append("|---" * (5 + len(ways)) + "|")
    for row in summary["tuning"]:
        cells = [percent(row, name) for name in (*WAYS, "few")] + [gained(row, "few"), percent(row, "full")]
        lines.append(f"| {row['title']} | {' | '.join(cells)} | {gained(row, 'full')} |")
    stages = (*PRETRAINING, *TUNING)
    lines += ["", f"| CPU seconds of a seed | {' | '.join(stages)} | together |", "|---" * (2 + len(stages)) + "|"]
    for row in summary["costs"]:
        cells = [f"{row[stage]['cpu_seconds']:.0f}" if stage in row else "–" for stage in stages]
        total = sum(row[stage]["cpu_seconds"] for stage in stages if stage in row)
        lines.append(f"| {ARMS[row['arm']][0]} | {' | '.join(cells)} | {total:.0f} |")
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/act_shapes"), help="all results go here")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="what to start from")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=10, help="few-shot folds of a seed")
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice by default")
    parser.add_argument("--clouds", type=int, default=6, help="rebuilt clouds in the picture")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for; print, store and draw what came out."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    folder: Path = options.output_dir
    todo = [(seed, arm, stage) for seed in options.seeds for arm in options.arms for stage in stages_of(arm)]
    runs: Runs = []
    for seed, arm, stage in tqdm(todo, desc="stages"):
        runs.append(run_stage(arm, stage, seed, folder, options.folds))
        tqdm.write(f"{arm}, seed {seed}, {stage}: {runs[-1]['cpu_seconds']:.0f} CPU seconds")
    summary = summarise(runs, options.arms, options.folds)
    write_text(folder / "act_shapes.json", json.dumps(summary, indent=1))
    write_text(folder / "act_shapes.md", table(summary))
    taught = [arm for arm in options.arms if ARMS[arm][1] is not None]
    if taught:
        place = folder / f"{taught[-1]}-{options.seeds[0]}" / "autoencoder"
        draw(place, folder / "act_reconstructions.png", options.clouds)
    print(table(summary))
    print(f"Stored in {folder}.")


if __name__ == "__main__":
    main()
