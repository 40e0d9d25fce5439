"""Does MiniGPT-3D learn on the embedded shapes to say what it sees? Three seeds, all parts and stages.

    python examples/bench_chat.py
    python examples/bench_chat.py --seeds 0 --processes 1

Point encoder and language model are trained here, then the four stages by the program `run_minigpt3d.py` and the
recipes `recipes/shapes_chat_*.yaml`. Every step is stored when it ends, and one that is there already, made by the
same settings, is not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from chat_answers import draw, sample_table
from chat_judging import METRICS
from chat_shapes import STAGES, STEPS, prepare, recipe_of, run_step, shapes
from tqdm.auto import tqdm
from training_runs import machine, over_seeds, percent, write_text

QUESTIONS = ("instruction", "completion", "instruction_evaluation", "completion_evaluation")
CONTROLS = ("greedy", "swapped_cloud", "swapped_own", "black", "noise")
JUDGED = (*QUESTIONS, "color", *METRICS, *CONTROLS)
Runs = list[dict[str, Any]]


def of(runs: Runs, step: str) -> Runs:
    """The runs of a step, by seed."""
    return sorted((run for run in runs if run["step"] == step), key=lambda run: run["seed"])


def majority() -> float:
    """Accuracy of always naming the most frequent class of the test shapes."""
    labels = [one.label for one in shapes()[1]["test"]]
    return max(labels.count(label) for label in labels) / len(labels)


def summarise(runs: Runs) -> dict[str, Any]:
    """Figures of all steps over the seeds."""
    encoders, languages = of(runs, "encoder"), of(runs, "language")
    stages = []
    for stage in STAGES:
        trained, judged = of(runs, f"stage_{stage}"), of(runs, f"judge_{stage}")
        row = {
            "stage": stage,
            "trained_parameters": trained[0]["trained_parameters"],
            **over_seeds(trained, ("loss",)),
        }
        stages.append(row | over_seeds(judged, JUDGED) | {"experts": [run["experts"] for run in judged]})
    probes = [{f"probe_{name}": value for name, value in run["probes"]["test"].items()} for run in encoders]
    costs = {step: over_seeds(of(runs, step), ("seconds", "cpu_seconds")) for step in STEPS}
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "seeds": sorted({run["seed"] for run in runs}),
        "majority": majority(),
        "encoder": {"parameters": encoders[0]["parameters"], **over_seeds(probes, probes[0])},
        "language": {"parameters": languages[0]["parameters"], **over_seeds(languages, ("loss", "alone"))},
        "stages": stages,
        "costs": costs,
        "peak_memory": max((run["peak_memory"] for run in runs if run["peak_memory"]), default=None),
        "settings": {f"stage_{stage}": recipe_of(stage) for stage in STAGES},
        "runs": runs,
    }


def table(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    stages, encoder, language = summary["stages"], summary["encoder"], summary["language"]
    majority = f"{100 * summary['majority']:.1f}"
    lines = [
        *_rows(stages, "named by, %", {
            "\"What is this?\"": "instruction", "\"This is an object of \"": "completion",
            "the same, released evaluation prompt": "instruction_evaluation",
            "completion, that prompt": "completion_evaluation", "main color": "color",
        }),
        f"| most frequent class | {' | '.join([majority] * len(stages))} |",
        f"| language model, no cloud | {' | '.join([percent(language, 'alone')] * len(stages))} |",
        f"| the encoder's own probe | {' | '.join([percent(encoder, 'probe_label')] * len(stages))} |",
        "",
        *_rows(stages, "\"What is this?\", greedy, %", {
            "own cloud": "greedy", "cloud of another class: names that class": "swapped_cloud",
            "cloud of another class: names the own class": "swapped_own", "without colors": "black",
            "random points": "noise",
        }),
        "",
        *_rows(stages, "detailed captions, ×100", {name: name for name in METRICS}),
        "",
        "| stage | trained parameters | training loss |", "|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {row['stage']} | {row['trained_parameters']:,} | {row['loss']:.3f} ± {row['loss_std']:.3f} |"
        for row in stages
    ]
    lines += ["", "| seed | experts chosen, % of the clouds |", "|---|---|"]
    for seed, shares in zip(summary["seeds"], stages[-1]["experts"], strict=True):
        lines.append(f"| {seed} | {', '.join(f'{100 * share:.0f}' for share in shares)} |")
    costs = summary["costs"]
    lines += ["", f"| CPU seconds of a seed | {' | '.join(costs)} | together |", "|---" * (2 + len(costs)) + "|"]
    seconds = [cost["cpu_seconds"] for cost in costs.values()]
    lines.append(f"| | {' | '.join(f'{second:.0f}' for second in [*seconds, sum(seconds)])} |")
    return "\n".join(lines) + "\n"


def _rows(stages: Iterable[Mapping[str, Any]], title: str, names: Mapping[str, str]) -> list[str]:
    stages = list(stages)
    head = f"| {title} | {' | '.join('stage ' + str(row['stage']) for row in stages)} |"
    rows = [f"| {text} | {' | '.join(percent(row, name) for row in stages)} |" for text, name in names.items()]
    return [head, "|---" * (1 + len(stages)) + "|", *rows]


def run_seeds(options: argparse.Namespace) -> None:
    """Run each seed in a process of its own, several at once."""

    def run(seed: int) -> None:
        own = ["--output-dir", str(options.output_dir), "--threads", str(options.threads), "--steps-of", str(seed)]
        subprocess.run([sys.executable, __file__, *own], check=True)

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(run, options.seeds))


def run_steps(seed: int, folder: Path) -> Runs:
    """All steps of a seed."""
    runs = []
    for step in tqdm(STEPS, desc=f"seed {seed}"):
        runs.append(run_step(step, seed, folder))
        tqdm.write(f"seed {seed}, {step}: {runs[-1]['cpu_seconds']:.0f} CPU seconds")
    return runs


def finish(seeds: Iterable[int], folder: Path, clouds: int) -> None:
    """Table and draw what all steps of some seeds gave, print and store it."""
    seeds = list(seeds)
    summary = summarise([run for seed in seeds for run in run_steps(seed, folder)])
    write_text(folder / "chat_shapes.json", json.dumps(summary, indent=1))
    text = table(summary) + "\n" + sample_table(folder, seeds[0], clouds)
    write_text(folder / "chat_shapes.md", text)
    draw(folder, seeds[0], clouds)
    print(text)
    print(f"Stored in {folder}.")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/chat_shapes"), help="all results go here")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="seeds that run at once")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--clouds", type=int, default=9, help="clouds with answers in the picture")
    parser.add_argument("--steps-of", type=int, metavar="SEED", help="run the steps of this seed here, and no more")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for; print, store and draw what came out."""
    options = parse(arguments)
    folder: Path = options.output_dir
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    if options.steps_of is not None:
        run_steps(options.steps_of, folder)
        return
    prepare(folder)
    run_seeds(options)
    finish(options.seeds, folder, options.clouds)


if __name__ == "__main__":
    main()
