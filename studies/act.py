"""Effect of ACT's pretraining, and of its teacher, on the embedded shapes: three seeds, all stages.

    python -m studies.act
    python -m studies.act --arms scratch pretrained --seeds 0
    python -m studies.act --validate
    python -m studies.act --choose

Every arm runs the programs of both stages, of few-shot and of full fine-tuning by the recipes
`recipes/shapes_act_*.yaml`; the arms differ in the teacher alone. Every stage is stored when it ends and is not
repeated with the same recipes; an interrupted one resumes from its last checkpoint or fold.

With `--validate` the arms are compared on five folds of the training shapes: each takes the place of the test shapes
once, which are not read. With `--choose`, settings are compared on the first of these folds.
The rule was fixed before the runs: the settings with the highest few-shot accuracy, as the mean of students from
scratch and pretrained ones, so that the choice favors neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tqdm.auto import tqdm

from studies.act_stages import (
    ARMS,
    FOLDS,
    FROZEN,
    MEAN_OF,
    NO_CHANGES,
    PARTS,
    PRETRAINING,
    SHOT,
    TARGETS,
    TUNING,
    WAYS,
    Changes,
    draw,
    first_stage_of,
    recipe_of,
    run_stage,
    stages_of,
    write_fold,
)
from studies.runs import machine, over_seeds, percent, runs_parser, use_threads, write_results

WHEN = ("before", "after")
STAGES = (*PRETRAINING, TARGETS, *TUNING)
COSTS = ("seconds", "cpu_seconds")
_TURNED = {"augment": ["rotate", "scale:low=0.8,high=1.25", "shift:limit=0.05"]}
CANDIDATES: dict[str, Changes] = {
    "as in the recipes": {},
    "fine-tuning: turned about the vertical": {"tuning": _TURNED},
    "fine-tuning: half the learning rate": {"tuning": {"learning_rate": 1e-3}},
    "fine-tuning: turned, half the learning rate": {"tuning": _TURNED | {"learning_rate": 1e-3}},
}
"""Settings that `--choose` compares."""
Runs = list[dict[str, Any]]


def runs_of(runs: Runs, arm: str, stage: str) -> Runs:
    """Return the runs of an arm's stage, ordered by seed."""
    return sorted((run for run in runs if (run["arm"], run["stage"]) == (arm, stage)), key=lambda run: run["seed"])


def pretraining_row(runs: Runs, arm: str) -> dict[str, Any]:
    """Average the results of both stages of an arm over its seeds."""
    first, second = (runs_of(runs, arm, stage) for stage in PRETRAINING)
    flat = [{f"{name}_{when}": run[when][name] for when in WHEN for name in run[when]} for run in first]
    return {
        "arm": arm,
        **over_seeds(flat, flat[0]),
        **over_seeds(second, ("probe_before", "probe", "loss")),
        "trained_parameters": [stage[0]["trained_parameters"] for stage in (first, second)],
    }


def targets_row(runs: Runs, arm: str) -> dict[str, Any]:
    """Average the probes of an arm's autoencoders over its seeds."""
    return {"arm": arm, **over_seeds(runs_of(runs, arm, TARGETS), (*PARTS, "constant"))}


def tuning_row(runs: Runs, arm: str) -> dict[str, Any]:
    """Average the accuracies of an arm's students over its seeds, also relative to students from scratch."""
    row: dict[str, Any] = {"arm": arm, "title": ARMS[arm][0]}
    compared = {stage: [runs_of(runs, who, stage) for who in (arm, "scratch")] for stage in TUNING}
    compared["few"] = [mean_of_ways(runs, who) for who in (arm, "scratch")]
    for stage, (own, scratch) in compared.items():
        if own:
            figures = over_seeds(own, ("accuracy",))
            row |= {stage: figures["accuracy"], f"{stage}_std": figures["accuracy_std"], f"{stage}_runs": len(own)}
            row |= {} if arm == "scratch" else gain(own, scratch, stage)
    return row


def mean_of_ways(runs: Runs, arm: str) -> Runs:
    """Compute the mean few-shot accuracy of each seed that has all few-shot stages."""
    found: dict[int, list[float]] = {}
    for stage in MEAN_OF:
        for run in runs_of(runs, arm, stage):
            found.setdefault(run["seed"], []).append(run["accuracy"])
    complete = {seed: values for seed, values in found.items() if len(values) == len(MEAN_OF)}
    return [{"seed": seed, "accuracy": float(np.mean(values))} for seed, values in complete.items()]


def gain(own: Runs, scratch: Runs, name: str) -> dict[str, float]:
    """Compute `<name>_gain`, the accuracy above students from scratch with the same seeds, and its deviation."""
    others = {run["seed"]: run["accuracy"] for run in scratch}
    gains = [{"gain": run["accuracy"] - others[run["seed"]]} for run in own if run["seed"] in others]
    if not gains:
        return {}
    figures = over_seeds(gains, ("gain",))
    return {f"{name}_gain": figures["gain"], f"{name}_gain_std": figures["gain_std"]}


def cost_row(runs: Runs, arm: str) -> dict[str, Any]:
    """Average the cost of an arm's stages over its seeds."""
    row: dict[str, Any] = {"arm": arm}
    for stage in stages_of(arm):
        if own := runs_of(runs, arm, stage):
            row[stage] = {name: over_seeds(own, (name,))[name] for name in COSTS}
    return row


def summarize(runs: Runs, arms: Iterable[str], folds: int) -> dict[str, Any]:
    """Collect the figures of all arms over their seeds."""
    arms = list(arms)
    peaks = [run["peak_memory"] for run in runs if run["peak_memory"]]
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "folds": folds,
        "seeds": sorted({run["seed"] for run in runs}),
        "settings": {stage: recipe_of(stage) for stage in (*PRETRAINING, *TUNING)},
        "pretraining": [pretraining_row(runs, arm) for arm in arms if runs_of(runs, arm, "pretraining")],
        "targets": [targets_row(runs, arm) for arm in arms if runs_of(runs, arm, TARGETS)],
        "tuning": [tuning_row(runs, arm) for arm in arms],
        "costs": [cost_row(runs, arm) for arm in arms],
        "peak_memory": max(peaks, default=None),
        "runs": runs,
    }


def plain(row: Mapping[str, Any], name: str, form: str) -> str:
    """Format a figure with its deviation, `0.121 ± 0.002`."""
    return f"{row[name]:{form}} ± {row[f'{name}_std']:{form}}"


def share(row: Mapping[str, Any], name: str) -> str:
    """Format an accuracy in percent, or a dash where there are no such runs."""
    return percent(row, name) if name in row else "–"


def gained(row: Mapping[str, Any], name: str) -> str:
    """Format percentage points above scratch, or a dash where there are no such runs."""
    if f"{name}_gain" not in row:
        return "–"
    return f"{100 * row[f'{name}_gain']:+.1f} ± {100 * row[f'{name}_gain_std']:.1f}"


def table(summary: Mapping[str, Any]) -> str:
    """Format the summary as Markdown."""
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


def validation_changes(folder: Path, fold: int) -> dict[str, dict[str, Any]]:
    """Return changes of the recipes that evaluate on a fold of the training shapes."""
    # A fold has three shapes or more of most classes.
    return {"data": write_fold(folder, fold), "few_shot": {"few_shot": {"test_per_class": 3}}}


def choose(seed: int, folder: Path, folds: int) -> str:
    """Run every candidate on the validation part and print a table; returns the best candidate."""
    data = validation_changes(folder / "data", 0)
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
    write_results(folder, "act_shapes_choice", {"seed": seed, "folds": folds, "rows": rows}, text)
    return rows[0]["title"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__, "outputs/act_shapes", ARMS)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES), help="which stages to run")
    parser.add_argument("--validate", action="store_true", help="use folds of the training shapes, one for each seed")
    parser.add_argument("--choose", action="store_true", help="only compare settings on a validation part")
    parser.add_argument("--folds", type=int, default=5, help="few-shot folds per seed")
    parser.add_argument("--clouds", type=int, default=6, help="reconstructed clouds in the picture")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print, store and draw its results."""
    options = parse(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    folder: Path = options.output_dir
    if options.choose:
        print(f"Chosen: {choose(options.seeds[0], folder / 'choice', options.folds)}")
        return
    name, changes = "act_shapes", dict.fromkeys(options.seeds, NO_CHANGES)
    if options.validate:
        # The number of a fold is also the seed of its runs.
        name, folder = "act_shapes_folds", folder / "folds"
        options.seeds = list(range(FOLDS))
        changes = {fold: validation_changes(folder / f"data-{fold}", fold) for fold in options.seeds}
    pairs = [(seed, arm) for seed in options.seeds for arm in options.arms]
    todo = [(*pair, stage) for pair in pairs for stage in stages_of(pair[1]) if stage in options.stages]
    runs: Runs = []
    for seed, arm, stage in tqdm(todo, desc="stages"):
        runs.append(run_stage(arm, stage, seed, folder, options.folds, changes[seed]))
        tqdm.write(f"{arm}, seed {seed}, {stage}: {runs[-1]['cpu_seconds']:.0f} CPU seconds")
    summary = summarize(runs, options.arms, options.folds)
    write_results(folder, name, summary, table(summary))
    for run in [run for run in runs if run["stage"] == "autoencoder"][:1]:
        first = first_stage_of(run["arm"], options.folds, changes[run["seed"]])
        place = folder / f"{first}-{run['seed']}" / "autoencoder"
        draw(place, folder / "act_reconstructions.png", options.clouds)


if __name__ == "__main__":
    main()
