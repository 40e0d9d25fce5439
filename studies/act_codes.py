"""Which settings of the codebook make ACT's first stage use its codes, and does a student of it learn?

    python -m studies.act_codes
    python -m studies.act_codes --arms published nearest --seeds 0 1

Each setting trains an autoencoder without a teacher and a student on four of five folds of the embedded training
shapes, by the recipes `recipes/shapes_act_*.yaml`, and evaluates both on the fifth; the test shapes are not read. The
table and the picture show codes in use, their perplexity and the error of patches by step, how much the targets differ
between patches, and the student's loss. Every stage is stored when it ends and is not repeated with the same settings.

The rule was fixed before the runs: of the settings that use at least half of the codes, with a perplexity of at least
half of their number, the one with the smallest error of patches.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tqdm.auto import tqdm

from examples import run_act_autoencoder, run_act_pretraining
from hf_any3d.training.recipes import merge
from studies.act_stages import recipe_of, spread_of_targets, write_fold
from studies.runs import (
    kept_run,
    machine,
    over_seeds,
    reset_if_changed,
    runs_parser,
    stopwatch,
    use_threads,
    write_arguments,
    write_results,
)

EVERY = 25
"""Least number of steps between evaluations."""
PLAIN = {"teacher": "none", "teacher_layers": None}
COMMON = {
    "learning_rate": 4e-3,
    "temperature_start": 1.0,
    "temperature_end": 0.0625,
    "temperature_steps": 1280,
    "kl_weight_delay": 0,
    "kl_weight_steps": 0,
    "kl_weight_end": 0.0,
}
"""Settings of the first stage where a setting has no others; the nearest code has no temperature."""
PUBLISHED = {
    "code_scores": "projection",
    "code_width": None,
    "code_scale": 1.0,
    "code_norm": False,
    "quantizer": "gumbel",
    "code_ema_decay": None,
    "code_restart_share": 0.0,
}
_NEAREST = PUBLISHED | {"code_scores": "distance", "quantizer": "nearest", "code_norm": True}
_ALL = _NEAREST | {"code_ema_decay": 0.97, "code_restart_share": 0.1}
_SOFT = PUBLISHED | {"code_scores": "distance", "code_scale": 10.0, "code_norm": True, "code_restart_share": 0.1}
_COSINE = PUBLISHED | {"code_scores": "cosine", "code_scale": 20.0, "code_norm": True, "code_restart_share": 0.1}
_NARROW = {"code_width": 8}
_SHORT = {"max_steps": 400, "temperature_steps": 320, "warmup_steps": 20}
SETTINGS: dict[str, dict[str, Any]] = {
    "published": {"model_config": PUBLISHED} | _SHORT,
    "published, KL term of 0.05": {"model_config": PUBLISHED, "kl_weight_end": 0.05} | _SHORT,
    "cosine, restarts": {"model_config": _COSINE} | _SHORT,
    "distance, 8 channels, restarts": {"model_config": _SOFT | _NARROW} | _SHORT,
    "nearest": {"model_config": _NEAREST} | _SHORT,
    "nearest, averages": {"model_config": _NEAREST | {"code_ema_decay": 0.97}} | _SHORT,
    "nearest, averages, restarts": {"model_config": _ALL} | _SHORT,
    "nearest, averages, restarts, 8 channels": {"model_config": _ALL | _NARROW} | _SHORT,
    "published, 1,600 steps": {"model_config": PUBLISHED},
    "distance, 8 channels, restarts, 1,600 steps": {"model_config": _SOFT | _NARROW},
    "nearest, averages, restarts, 8 channels, 1,600 steps": {"model_config": _ALL | _NARROW},
    "nearest, averages, restarts, 8 channels, 1,600 steps, rate 1e-3": {
        "model_config": _ALL | _NARROW,
        "learning_rate": 1e-3,
    },
}
"""Settings of the first stage, relative to its recipe, which has 1,600 steps."""
CURVES = {"codes_used": "codes in use", "code_perplexity": "perplexity of codes", "loss": "error of patches"}
FIGURES = (*CURVES, "targets", "student_first", "student_last", "cpu_seconds")


def settings_of(name: str) -> dict[str, Any]:
    """Collect everything but the seed that affects the result of a setting, as JSON reads it back."""
    first = merge(recipe_of("autoencoder") | PLAIN | COMMON, SETTINGS[name])
    return json.loads(json.dumps({"autoencoder": first, "pretraining": recipe_of("pretraining"), "every": EVERY}))


def run(name: str, seed: int, folder: Path, data: dict[str, str]) -> dict[str, Any]:
    """Train an autoencoder and a student; returns their curves and figures, stored in `folder/runs`."""
    settings, place = settings_of(name), folder / f"{re.sub('[^A-Za-z0-9]+', '-', name)}-{seed}"

    def train() -> dict[str, Any]:
        reset_if_changed(place, settings)
        shared = {"seed": seed, "validation_file": data["test"], "train_file": data["train"]}
        shared |= {"eval_strategy": "steps", "pictured_clouds": 0}
        curves = {}
        with stopwatch() as spent:
            for stage, program in (("autoencoder", run_act_autoencoder), ("pretraining", run_act_pretraining)):
                own = settings[stage] | shared
                if stage == "pretraining":
                    own = {key: value for key, value in own.items() if key != "pictured_clouds"}
                    own["autoencoder"] = str(place / "autoencoder")
                own["eval_steps"] = max(EVERY, own["max_steps"] // 16)
                # The last checkpoint has the history of the run.
                own["save_steps"] = own["max_steps"]
                program.main([write_arguments(place / stage, own)])
                curves[stage] = curve_of(place / stage)
        last, student = curves["autoencoder"][-1], curves["pretraining"]
        return {
            "setting": name,
            "seed": seed,
            "curves": curves,
            **{key: last[key] for key in CURVES},
            "targets": spread_of_targets(place / "autoencoder", "validation"),
            "student_first": student[0]["loss"],
            "student_last": student[-1]["loss"],
            **spent,
        }

    return kept_run(folder / "runs" / f"{place.name}.json", settings, train)


def curve_of(folder: Path) -> list[dict[str, float]]:
    """Read the evaluations of a finished run, in the order of its steps."""
    (state,) = folder.glob("checkpoint-*/trainer_state.json")
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return [
        {"step": entry["step"], **{key.removeprefix("eval_"): value for key, value in entry.items() if "eval_" in key}}
        for entry in history
        if "eval_loss" in entry
    ]


def table(rows: list[dict[str, Any]], codes: int) -> str:
    """Format the figures of all settings as Markdown."""
    lines = [
        f"| codebook | codes in use of {codes} | perplexity | error of patches | distance of targets from their mean "
        "| student's loss, first evaluation | at the end | CPU seconds |",
        "|---" * 8 + "|",
    ]
    forms = dict(zip(FIGURES, (".0f", ".0f", ".4f", ".3f", ".2f", ".2f", ".0f"), strict=True))
    for row in rows:
        cells = [f"{row[key]:{form}}" for key, form in forms.items()]
        if row["runs"] > 1:
            cells = [
                f"{cell} ± {row[f'{key}_std']:{form}}" for cell, (key, form) in zip(cells, forms.items(), strict=True)
            ]
        lines.append(f"| {row['setting']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def choose(rows: list[dict[str, Any]], codes: int) -> str | None:
    """Return the setting that the rule selects, or None if none uses half of the codes."""
    used = [row for row in rows if min(row["codes_used"], row["code_perplexity"]) >= codes / 2]
    return min(used, key=lambda row: row["loss"])["setting"] if used else None


def draw(runs: list[dict[str, Any]], chosen: str | None, path: Path) -> Path:
    """Draw the curves of the first seed of each setting, those of the chosen and the published one thicker."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    panels = figure.subplots(1, 4)
    seed = min(one["seed"] for one in runs)
    for one in (one for one in runs if one["seed"] == seed):
        strong = one["setting"] in ("published", chosen)
        style = {"linewidth": 2.2 if strong else 1.0, "alpha": 1.0 if strong else 0.6}
        for panel, key in zip(panels, CURVES, strict=False):
            points = one["curves"]["autoencoder"]
            panel.plot([at["step"] for at in points], [at[key] for at in points], label=one["setting"], **style)
        points = one["curves"]["pretraining"]
        panels[-1].plot([at["step"] for at in points], [at["loss"] for at in points], **style)
    for panel, title in zip(panels, (*CURVES.values(), "student's loss"), strict=True):
        panel.set(title=title, xlabel="step")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print, store and draw its results."""
    parser = runs_parser(__doc__, "outputs/act_codes", SETTINGS)
    options: argparse.Namespace = parser.parse_args(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    folder: Path = options.output_dir
    data = write_fold(folder / "data", 0)
    files = {split: str(Path(data["data_dir"]) / f"{split}.parquet") for split in ("train", "test")}
    runs = []
    for seed, name in tqdm([(seed, name) for seed in options.seeds for name in options.arms], desc="settings"):
        runs.append(run(name, seed, folder, files))
        figures = {key: round(runs[-1][key], 3) for key in FIGURES}
        tqdm.write(f"{name}, seed {seed}: {figures}")
    rows = []
    for name in options.arms:
        own = [one for one in runs if one["setting"] == name]
        rows.append({"setting": name, "runs": len(own), **over_seeds(own, FIGURES)})
    codes = int(np.max([settings_of(name)["autoencoder"]["model_config"]["num_codes"] for name in options.arms]))
    summary = {"machine": machine(), "seeds": options.seeds, "rows": rows, "runs": runs}
    write_results(folder, "act_codes", summary, table(rows, codes))
    chosen = choose(rows, codes)
    print(f"Chosen: {chosen}")
    draw(runs, chosen, folder / "act_codes.png")


if __name__ == "__main__":
    main()
