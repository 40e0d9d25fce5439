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
from collections.abc import Iterable, Mapping, Sequence
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

NAMED = {
    "instruction": 'class, "What is this?"',
    "completion": 'class, "This is an object of "',
    "instruction_evaluation": "the first, released evaluation prompt",
    "completion_evaluation": "the second, that prompt",
    "color": "main color",
}
"""Shares of right answers, and what they are called."""
CONTROLS = {
    "greedy": "own cloud: names its class",
    "swapped_cloud": "cloud of another class: names that class",
    "swapped_own": "cloud of another class: names the own class",
    "black": "without colors: names its class",
    "noise": "random points: names the class of the shape",
}
"""Answers to right and wrong clouds."""
JUDGED = (*NAMED, *METRICS, *CONTROLS)
Runs = list[dict[str, Any]]


def of(runs: Runs, step: str) -> Runs:
    """The runs of a step, by seed."""
    return sorted((run for run in runs if run["step"] == step), key=lambda run: run["seed"])


def majority(values: Sequence[str]) -> float:
    """Accuracy of always giving the most frequent answer."""
    return max(values.count(value) for value in values) / len(values)


def summarise(runs: Runs) -> dict[str, Any]:
    """Figures of all steps over the seeds."""
    encoders, languages = of(runs, "encoder"), of(runs, "language")
    stages = []
    for stage in STAGES:
        trained, judged = of(runs, f"stage_{stage}"), of(runs, f"judge_{stage}")
        about = {"stage": stage, "trained_parameters": trained[0]["trained_parameters"]}
        figures = over_seeds(trained, ("loss",)) | over_seeds(judged, JUDGED)
        stages.append(about | figures | {"experts": [run["experts"] for run in judged]})
    facts = shapes()[1]["test"]
    probes, alone = [run["probes"]["test"] for run in encoders], [run["alone"] for run in languages]
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "seeds": sorted({run["seed"] for run in runs}),
        "majority": {
            "instruction": majority([one.label for one in facts]),
            "color": majority([one.color for one in facts]),
        },
        "parameters": {"encoder": encoders[0]["parameters"], "language": languages[0]["parameters"]},
        "encoder": over_seeds(probes, probes[0]),
        "language": over_seeds(alone, alone[0]) | over_seeds(languages, ("loss",)),
        "stages": stages,
        "costs": {step: over_seeds(of(runs, step), ("seconds", "cpu_seconds")) for step in STEPS},
        "peak_memory": max((run["peak_memory"] for run in runs if run["peak_memory"]), default=None),
        "settings": {f"stage_{stage}": recipe_of(stage) for stage in STAGES},
        "runs": runs,
    }


def table(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    stages, encoder, alone = summary["stages"], summary["encoder"], summary["language"]
    heads = [f"stage {row['stage']}" for row in stages]
    lines = _head("unseen shapes, %", "most frequent", "no cloud", "encoder's probe", *heads)
    for name, text in NAMED.items():
        probe = percent(encoder, "color" if name == "color" else "label")
        often = f"{100 * summary['majority']['color' if name == 'color' else 'instruction']:.1f}"
        blind = percent(alone, name) if name in alone else "–"
        lines.append(_line(text, often, blind, probe, *(percent(row, name) for row in stages)))
    lines += ["", *_head('"What is this?", greedy, %', *heads)]
    lines += [_line(text, *(percent(row, name) for row in stages)) for name, text in CONTROLS.items()]
    lines += ["", *_head("detailed captions, × 100", "no cloud", *heads)]
    lines += [_line(name.upper(), *(percent(row, name) for row in (alone, *stages))) for name in METRICS]
    lines += ["", *_head("", *heads)]
    lines.append(_line("trained parameters", *(f"{row['trained_parameters']:,}" for row in stages)))
    lines.append(_line("training loss", *(f"{row['loss']:.3f} ± {row['loss_std']:.3f}" for row in stages)))
    experts = stages[-1]["experts"]
    lines += ["", *_head("seed", *(f"expert {number}, % of the clouds" for number in range(len(experts[0]))))]
    for seed, shares in zip(summary["seeds"], experts, strict=True):
        lines.append(_line(str(seed), *(f"{100 * share:.0f}" for share in shares)))
    seconds = {step: cost["cpu_seconds"] for step, cost in summary["costs"].items()}
    lines += ["", *_head("CPU seconds of a seed", *(step.replace("_", " ") for step in seconds), "together")]
    lines.append(_line("", *(f"{second:.0f}" for second in [*seconds.values(), sum(seconds.values())])))
    return "\n".join(lines) + "\n"


def _head(*cells: str) -> list[str]:
    return [_line(*cells), "|---" * len(cells) + "|"]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


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
