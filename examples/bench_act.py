"""What does ACT's pretraining give on the embedded shapes, and does it matter who teaches? Three seeds, all stages.

    python examples/bench_act.py
    python examples/bench_act.py --arms scratch pretrained --seeds 0
    python examples/bench_act.py --choose

Every arm goes through the programs of both stages, of few-shot and of full fine-tuning by the recipes
`recipes/shapes_act_*.yaml`; the arms differ in the teacher alone. Every stage is stored when it ends, and one that is
there already, made by the same recipes, is not repeated; one that was cut goes on from its last checkpoint or fold.

With `--choose`, settings are compared on a validation part of the training shapes, and the test shapes are not read.
The rule stands before the runs: the settings with the highest few-shot accuracy, as the mean of students from scratch
and pretrained ones, so that the choice favors neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from act_shapes import (
    ARMS,
    FROZEN,
    MEAN_OF,
    PARTS,
    PRETRAINING,
    SHOT,
    TARGETS,
    TUNING,
    WAYS,
    Changes,
    draw,
    recipe_of,
    run_stage,
    stages_of,
    write_validation_cut,
)
from tqdm.auto import tqdm
from training_runs import leave_results, machine, over_seeds, percent, runs_parser

WHEN = ("before", "after")
STAGES = (*PRETRAINING, TARGETS, *TUNING)
COSTS = ("seconds", "cpu_seconds")
_TURNED = {"augment": ["rotate", "scale:low=0.8,high=1.25", "shift:limit=0.05"]}
CANDIDATES: dict[str, Changes] = {
    "as in the recipes": {},
    "fine-tuning: turned about the vertical": {"tuning": _TURNED},
    "fine-tuning: half the learning rate": {"tuning": {"learning_rate": 1e-3}},
    "fine-tuning: turned, half the learning rate": {"tuning": _TURNED | {"learning_rate": 1e-3}},
    "first stage: a KL term of 0.05": {"autoencoder": {"kl_weight_end": 0.05}},
}
"""Settings that `--choose` compares: those in question when the recipes were written."""
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


def targets_row(runs: Runs, arm: str) -> dict[str, Any]:
    """What the autoencoders of an arm know inside, over its seeds."""
    return {"arm": arm, **over_seeds(of(runs, arm, TARGETS), (*PARTS, "constant"))}


def tuning_row(runs: Runs, arm: str) -> dict[str, Any]:
    """How an arm's students learn classes, over its seeds, and beside those from scratch with the same seeds."""
    row: dict[str, Any] = {"arm": arm, "title": ARMS[arm][0]}
    compared = {stage: [of(runs, who, stage) for who in (arm, "scratch")] for stage in TUNING}
    compared["few"] = [mean_of_ways(runs, who) for who in (arm, "scratch")]
    for stage, (own, scratch) in compared.items():
        if own:
            figures = over_seeds(own, ("accuracy",))
            row |= {stage: figures["accuracy"], f"{stage}_std": figures["accuracy_std"], f"{stage}_runs": len(own)}
            row |= {} if arm == "scratch" else gain(own, scratch, stage)
    return row


def mean_of_ways(runs: Runs, arm: str) -> Runs:
    """Few-shot accuracy of each seed that has all settings, as their mean."""
    found: dict[int, list[float]] = {}
    for stage in MEAN_OF:
        for run in of(runs, arm, stage):
            found.setdefault(run["seed"], []).append(run["accuracy"])
    whole = {seed: values for seed, values in found.items() if len(values) == len(MEAN_OF)}
    return [{"seed": seed, "accuracy": float(np.mean(values))} for seed, values in whole.items()]


def gain(own: Runs, scratch: Runs, name: str) -> dict[str, float]:
    """`<name>_gain`: accuracy above the students from scratch with the same seeds, and its deviation."""
    others = {run["seed"]: run["accuracy"] for run in scratch}
    gains = [{"gain": run["accuracy"] - others[run["seed"]]} for run in own if run["seed"] in others]
    if not gains:
        return {}
    figures = over_seeds(gains, ("gain",))
    return {f"{name}_gain": figures["gain"], f"{name}_gain_std": figures["gain_std"]}


def cost_row(runs: Runs, arm: str) -> dict[str, Any]:
    """What an arm's stages took, mean over its seeds."""
    row: dict[str, Any] = {"arm": arm}
    for stage in stages_of(arm):
        if own := of(runs, arm, stage):
            row[stage] = {name: over_seeds(own, (name,))[name] for name in COSTS}
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
        "settings": {stage: recipe_of(stage) for stage in (*PRETRAINING, *TUNING)},
        "pretraining": [pretraining_row(runs, arm) for arm in arms if of(runs, arm, "pretraining")],
        "targets": [targets_row(runs, arm) for arm in arms if of(runs, arm, TARGETS)],
        "tuning": [tuning_row(runs, arm) for arm in arms],
        "costs": [cost_row(runs, arm) for arm in arms],
        "peak_memory": max(peaks, default=None),
        "runs": runs,
    }


def plain(row: Mapping[str, Any], name: str, form: str) -> str:
    """A figure with its deviation, `0.121 ± 0.002`."""
    return f"{row[name]:{form}} ± {row[f'{name}_std']:{form}}"


def share(row: Mapping[str, Any], name: str) -> str:
    """An accuracy in percent, where there are such runs."""
    return percent(row, name) if name in row else "–"


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
    if summary["targets"]:
        probed = "probe of codes, % | of the teacher's output, % | of targets, %"
        lines += ["", f"| teacher | {probed} | cosine distance of targets from their mean |"]
        lines.append("|---" * 5 + "|")
    for row in summary["targets"]:
        cells = [percent(row, part) for part in PARTS] + [plain(row, "constant", ".3f")]
        lines.append(f"| {ARMS[row['arm']][0]} | {' | '.join(cells)} |")
    ways = [f"{WAYS[stage]}-way {SHOT}-shot, %" for stage in MEAN_OF]
    titles = [*ways, "few-shot, mean", "above scratch", "all classes, %", "above scratch"]
    frozen = [f"{WAYS[stage]}-way, student frozen, %" for stage in FROZEN]
    lines += ["", f"| student | {' | '.join([*titles, *frozen])} |", "|---" * (1 + len(titles) + len(frozen)) + "|"]
    for row in summary["tuning"]:
        cells = [share(row, name) for name in (*MEAN_OF, "few")] + [gained(row, "few"), share(row, "full")]
        cells += [gained(row, "full"), *(share(row, name) for name in FROZEN)]
        lines.append(f"| {row['title']} | {' | '.join(cells)} |")
    lines += ["", f"| CPU seconds of a seed | {' | '.join(STAGES)} | together |", "|---" * (2 + len(STAGES)) + "|"]
    for row in summary["costs"]:
        cells = [f"{row[stage]['cpu_seconds']:.0f}" if stage in row else "–" for stage in STAGES]
        total = sum(row[stage]["cpu_seconds"] for stage in STAGES if stage in row)
        lines.append(f"| {ARMS[row['arm']][0]} | {' | '.join(cells)} | {total:.0f} |")
    return "\n".join(lines) + "\n"


def choose(seed: int, folder: Path, folds: int) -> str:
    """Run every candidate on the validation part; a table, the highest few-shot accuracy first."""
    data = {"data": write_validation_cut(folder / "data")}
    rows = []
    for number, (title, own) in enumerate(tqdm(CANDIDATES.items(), desc="candidates")):
        # Candidates for fine-tuning start from the same students.
        place = folder / (f"candidate-{number}" if PRETRAINING[0] in own else "recipes")
        found = {}
        for arm in ("scratch", "pretrained"):
            for stage in stages_of(arm):
                if stage in (*PRETRAINING, *MEAN_OF):
                    name = f"-{number}" if stage in MEAN_OF else ""
                    run = run_stage(arm, stage, seed, place, folds, data | own, name)
                    found[arm, stage] = run.get("accuracy")
        few = {arm: float(np.mean([found[arm, stage] for stage in MEAN_OF])) for arm in ("scratch", "pretrained")}
        rows.append({"title": title, **few, "mean": float(np.mean(list(few.values())))})
    rows.sort(key=lambda row: -row["mean"])
    lines = ["| settings | few-shot from scratch, % | few-shot pretrained, % | mean, % |", "|---" * 4 + "|"]
    for row in rows:
        cells = [f"{100 * row[name]:.1f}" for name in ("scratch", "pretrained", "mean")]
        lines.append(f"| {row['title']} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    leave_results(folder, "act_shapes_choice", {"seed": seed, "folds": folds, "rows": rows}, text)
    return rows[0]["title"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__, "outputs/act_shapes", ARMS)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES), help="what to run of them")
    parser.add_argument("--choose", action="store_true", help="compare settings on a validation part, and no more")
    parser.add_argument("--folds", type=int, default=5, help="few-shot folds of a seed")
    parser.add_argument("--clouds", type=int, default=6, help="rebuilt clouds in the picture")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for; print, store and draw what came out."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    folder: Path = options.output_dir
    if options.choose:
        print(f"Chosen: {choose(options.seeds[0], folder / 'choice', options.folds)}")
        return
    pairs = [(seed, arm) for seed in options.seeds for arm in options.arms]
    todo = [(*pair, stage) for pair in pairs for stage in stages_of(pair[1]) if stage in options.stages]
    runs: Runs = []
    for seed, arm, stage in tqdm(todo, desc="stages"):
        runs.append(run_stage(arm, stage, seed, folder, options.folds))
        tqdm.write(f"{arm}, seed {seed}, {stage}: {runs[-1]['cpu_seconds']:.0f} CPU seconds")
    summary = summarise(runs, options.arms, options.folds)
    leave_results(folder, "act_shapes", summary, table(summary))
    for run in [run for run in runs if run["stage"] == "autoencoder"][:1]:
        place = folder / f"{run['arm']}-{run['seed']}" / "autoencoder"
        draw(place, folder / "act_reconstructions.png", options.clouds)


if __name__ == "__main__":
    main()
