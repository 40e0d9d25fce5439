"""Does MiniGPT-3D learn to describe the embedded shapes? Three seeds, all parts and stages.

    python -m studies.chat
    python -m studies.chat --seeds 0 --processes 1

Point encoder and language model are trained here, then the four stages by `run_minigpt3d.py` and the recipes
`recipes/shapes_chat_*.yaml`. Every step is stored when it ends and is not repeated with the same settings.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm

from hf_any3d.evaluation.llm_judge import ClassNameJudge
from hf_any3d.evaluation.question_answering import read_results
from hf_any3d.visualization.figures import plot_point_clouds
from studies.chat_evaluation import ASKED, CAPTION, DESCRIBED, METRICS, PUBLISHED
from studies.chat_steps import STAGES, STEPS, prepare, recipe_of, run_step, shapes
from studies.runs import machine, over_seeds, percent, runs_parser, write_results
from studies.shape_conversations import described

LINE = 34
RIGHT, WRONG = "#2a7a2a", "#b03030"
NAMED = {
    "instruction": 'class, "What is this?"',
    "completion": 'class, "This is an object of "',
    "instruction_evaluation": "the first, released evaluation prompt",
    "completion_evaluation": "the second, that prompt",
    "asked_color": "main color, asked",
    "asked_second": "second color, asked",
    "asked_proportion": "proportion, asked",
}
"""Shares of right answers, and their titles."""
FACTS = {
    "proportion": "proportion, in a description",
    "second": "second color, in a description",
    "upper": "upper part, in a description",
    "lower": "lower part, in a description",
}
"""Shares of right facts in detailed answers, and their titles."""
EXPERT = {"chosen": "chosen for", "class": "class", **{what: f"{what}, asked" for what in ASKED}}
"""Figures of a query expert, and their titles."""
CONTROLS = {
    "greedy": "own cloud: names its class",
    "swapped_cloud": "cloud of another class: names that class",
    "swapped_own": "cloud of another class: names the own class",
    "black": "without colors: names its class",
    "noise": "random points: names the class of the shape",
}
"""Shares of answers to right and wrong clouds, and their titles."""
JUDGED = (*NAMED, *METRICS, *CONTROLS)
Runs = list[dict[str, Any]]


def runs_of(runs: Runs, step: str) -> Runs:
    """Return the runs of a step, ordered by seed."""
    return sorted((run for run in runs if run["step"] == step), key=lambda run: run["seed"])


def majority(values: Sequence[str | None]) -> float:
    """Compute the accuracy of always giving the most frequent answer."""
    return max(values.count(value) for value in values) / len(values)


def answers_of(folder: Path, seed: int, stage: int = STAGES[-1]) -> dict[str, list[str]]:
    """Read the answers of a stage's model about all test shapes, by protocol."""
    place = folder / f"seed-{seed}" / f"judge_{stage}"
    results = {protocol.name: read_results(place / f"{protocol.name}.json") for protocol in (PUBLISHED[0], CAPTION)}
    return {name: [entry["model_output"] for entry in result["results"]] for name, result in results.items()}


def right_in_captions(folder: Path, seed: int, stage: int) -> dict[str, float]:
    """Compute the share of detailed answers that are right about each of `DESCRIBED`."""
    facts, captions = shapes(folder)[1]["test"], answers_of(folder, seed, stage)[CAPTION.name]
    pairs = [(one, described(text)) for one, text in zip(facts, captions, strict=True)]
    return {what: float(np.mean([getattr(one, what) == found[what] for one, found in pairs])) for what in DESCRIBED}


def summarize(runs: Runs, folder: Path) -> dict[str, Any]:
    """Compute the figures of all steps over the seeds; the folder has the answers."""
    encoders, languages = runs_of(runs, "encoder"), runs_of(runs, "language")
    stages = []
    for stage in STAGES:
        trained, judged = runs_of(runs, f"stage_{stage}"), runs_of(runs, f"judge_{stage}")
        about = {"stage": stage, "trained_parameters": trained[0]["trained_parameters"]}
        figures = over_seeds(trained, ("loss",)) | over_seeds(judged, JUDGED)
        figures |= over_seeds([right_in_captions(folder, run["seed"], stage) for run in judged], DESCRIBED)
        stages.append(about | figures | {"experts": [run["experts"] for run in judged]})
    facts = shapes(folder)[1]["test"]
    probes, alone = [run["probes"]["test"] for run in encoders], [run["alone"] for run in languages]
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "seeds": sorted({run["seed"] for run in runs}),
        "majority": {what: majority([getattr(one, what) for one in facts]) for what in ("label", "color", *DESCRIBED)},
        "parameters": {"encoder": encoders[0]["parameters"], "language": languages[0]["parameters"]},
        "encoder": over_seeds(probes, probes[0]),
        "language": over_seeds(alone, alone[0]) | over_seeds(languages, ("loss",)),
        "stages": stages,
        "costs": {step: over_seeds(runs_of(runs, step), ("seconds", "cpu_seconds")) for step in STEPS},
        "peak_memory": max((run["peak_memory"] for run in runs if run["peak_memory"]), default=None),
        "settings": {f"stage_{stage}": recipe_of(stage) for stage in STAGES},
        "runs": runs,
    }


def table(summary: Mapping[str, Any]) -> str:
    """Format the summary as Markdown."""
    stages, encoder, alone = summary["stages"], summary["encoder"], summary["language"]
    heads = [f"stage {row['stage']}" for row in stages]
    lines = _head("unseen shapes, %", "most frequent", "no cloud", "facts in words", "encoder's probe", *heads)
    for name, text in (NAMED | FACTS).items():
        what = name if name in FACTS else name.removeprefix("asked_") if name.startswith("asked_") else "label"
        often = f"{100 * summary['majority'][what]:.1f}"
        blind = percent(alone, name) if name in alone else "–"
        words = percent(alone, f"read_{name}") if name in FACTS else "–"
        lines.append(_line(text, often, blind, words, percent(encoder, what), *(percent(row, name) for row in stages)))
    lines += ["", *_head('"What is this?", greedy, %', *heads)]
    lines += [_line(text, *(percent(row, name) for row in stages)) for name, text in CONTROLS.items()]
    lines += ["", *_head("detailed captions, × 100", "no cloud", *heads)]
    lines += [_line(name.upper(), *(percent(row, name) for row in (alone, *stages))) for name in METRICS]
    lines += ["", *_head("", *heads)]
    lines.append(_line("trained parameters", *(f"{row['trained_parameters']:,}" for row in stages)))
    lines.append(_line("training loss", *(f"{row['loss']:.3f} ± {row['loss_std']:.3f}" for row in stages)))
    lines += ["", *_head("seed", "expert", *(f"{title}, %" for title in EXPERT.values()))]
    for seed, experts in zip(summary["seeds"], stages[-1]["experts"], strict=True):
        for number, expert in enumerate(experts):
            lines.append(_line(str(seed), str(number), *(f"{100 * expert[name]:.0f}" for name in EXPERT)))
    seconds = {step: cost["cpu_seconds"] for step, cost in summary["costs"].items()}
    lines += ["", *_head("CPU seconds of a seed", *(step.replace("_", " ") for step in seconds), "together")]
    lines.append(_line("", *(f"{second:.0f}" for second in [*seconds.values(), sum(seconds.values())])))
    return "\n".join(lines) + "\n"


def _head(*cells: str) -> list[str]:
    return [_line(*cells), "|---" * len(cells) + "|"]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def chosen(labels: np.ndarray, count: int) -> list[int]:
    """Choose shapes to show, the first ones of as many different classes as possible."""
    firsts = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    turns = [own[turn] for turn in range(len(labels)) for own in firsts if turn < len(own)]
    step = max(1, len(firsts) // count) if count <= len(firsts) else 1
    return [int(number) for number in turns[::step][:count]]


def draw(folder: Path, seed: int, count: int) -> Path:
    """Draw test shapes with their answers as `chat_answers.png`; green where the answer names the class."""
    rows, answers = shapes(folder)[0]["test"].with_format("numpy"), answers_of(folder, seed)
    names = rows.features["label"].names
    judge = ClassNameJudge(names)
    clouds, titles, colors = [], [], []
    for number in chosen(np.asarray(rows["label"]), count):
        row, answer = rows[number], answers["instruction"][number]
        clouds.append(np.concatenate([row["points"], row["colors"] / np.float32(255)], axis=1))
        caption = textwrap.fill(answers["caption"][number], LINE)
        titles.append(f"{names[row['label']]}\nWhat is this? {answer}\n{caption}")
        right = judge(answer).split("#")[0] == str(row["label"])
        colors.append(RIGHT if right else WRONG)
    path = folder / "chat_answers.png"
    return plot_point_clouds(clouds, path, titles=titles, title_colors=colors, columns=3, cell=3.4)


def answer_table(folder: Path, seed: int, count: int) -> str:
    """Format the answers of `draw` as Markdown."""
    splits, facts = shapes(folder)
    answers = answers_of(folder, seed)
    labels = np.asarray(splits["test"].with_format("numpy")["label"])
    lines = ['| class | "What is this?" | "Caption this 3D model in detail." |', "|---|---|---|"]
    for number in chosen(labels, count):
        texts = [answers[name][number] for name in ("instruction", "caption")]
        lines.append(f"| {facts['test'][number].label} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def run_seeds(options: argparse.Namespace) -> None:
    """Run each seed in its own process, several at once."""

    def run(seed: int) -> None:
        own = ["--output-dir", str(options.output_dir), "--threads", str(options.threads), "--steps-of", str(seed)]
        subprocess.run([sys.executable, "-m", "studies.chat", *own], check=True)

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(run, options.seeds))


def run_steps(seed: int, folder: Path) -> Runs:
    """Run all steps of a seed."""
    runs = []
    for step in tqdm(STEPS, desc=f"seed {seed}"):
        runs.append(run_step(step, seed, folder))
        tqdm.write(f"seed {seed}, {step}: {runs[-1]['cpu_seconds']:.0f} CPU seconds")
    return runs


def finish(seeds: Iterable[int], folder: Path, clouds: int) -> None:
    """Store, print and draw the results of all steps of some seeds."""
    seeds = list(seeds)
    summary = summarize([run for seed in seeds for run in run_steps(seed, folder)], folder)
    write_results(folder, "chat_shapes", summary, table(summary) + "\n" + answer_table(folder, seeds[0], clouds))
    draw(folder, seeds[0], clouds)


def positive(text: str) -> int:
    """Parse a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number from 1")
    return int(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__, "outputs/chat_shapes", with_threads=False)
    parser.add_argument("--processes", type=positive, default=2, help="seeds to run at once")
    parser.add_argument("--threads", type=positive, default=1, help="threads of each process")
    parser.add_argument("--clouds", type=positive, default=9, help="clouds with answers in the picture")
    parser.add_argument(
        "--validation", action="store_true", help="evaluate on a part of the training shapes, to choose settings"
    )
    parser.add_argument("--steps-of", type=int, metavar="SEED", help="only run the steps of this seed, here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print, store and draw its results."""
    options = parse(arguments)
    folder: Path = options.output_dir
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    if options.steps_of is not None:
        run_steps(options.steps_of, folder)
        return
    prepare(folder, options.validation)
    run_seeds(options)
    finish(options.seeds, folder, options.clouds)


if __name__ == "__main__":
    main()
