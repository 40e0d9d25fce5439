"""Does MiniGPT-3D around SmolLM2 learn to talk about colored shapes? All four published stages on two cores.

    make donors
    python -m examples.shapes_chat --seeds 0

A point encoder is trained here on the embedded and on generated shapes, then the four stages by `run_minigpt3d.py` and
the recipes `recipes/shapes_chat_*.yaml`, around SmolLM2-135M-Instruct. Every step is stored when it ends and is not
repeated with the same settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm

from examples.shapes_chat.evaluation import ASKED, Right
from examples.shapes_chat.steps import GENERATED, STAGES, STEPS, examination, prepare, recipe_of, run_step, shapes
from hf_any3d.utils.atomic_files import read_json
from studies.generated_shapes import CLASSES
from studies.runs import machine, runs_parser, write_results

PROBES = {"class": "label", "largest": "color", **{name: name for name in ("upper", "lower", "proportion")}}
"""Question -> head of the encoder's linear probe."""
Runs = list[dict[str, Any]]


def lines_of(runs: Runs) -> dict[str, list[Right]]:
    """Collect the lines of the table, the blind control first: for each title a `Right` of each seed."""
    by_step = {step: [run for run in runs if run["step"] == step] for step in STEPS}
    last = by_step[f"judge_{STAGES[-1]}"]
    probes = [{what: run["probes"][head] for what, head in PROBES.items()} for run in by_step["encoder"]]
    return {
        "no cloud: the most frequent answer of the training shapes": [run["blind"] for run in by_step["alone"]],
        "the true main color, whatever is asked": [run["main_color"] for run in by_step["alone"]],
        "SmolLM2-135M-Instruct, no cloud": [run["alone"] for run in by_step["alone"]],
        "after stage 4, no cloud": [run["language"] for run in last],
        "after stage 4, the cloud of another class": [run["swapped"] for run in last],
        **{f"after stage {stage}": [run["own"] for run in by_step[f"judge_{stage}"]] for stage in STAGES},
        "linear probe of the point encoder": probes,
    }


def table(runs: Runs, places: slice) -> str:
    """Format the shares of right answers about some test shapes as Markdown, means over seeds."""
    lines = [f"| right answers, % | {' | '.join(ASKED)} |", "|---" * (1 + len(ASKED)) + "|"]
    for title, seeds in lines_of(runs).items():
        cells = []
        for what in ASKED:
            shares = [100 * np.mean([int(one) for one in right[what][places]]) for right in seeds if what in right]
            spread = f" ± {np.std(shares, ddof=1):.1f}" if len(shares) > 1 and np.ptp(shares) > 0 else ""
            cells.append(f"{np.mean(shares):.1f}{spread}" if shares else "–")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cost_table(runs: Runs) -> str:
    """Format mean seconds and largest memory of the steps, and what the first seed trained."""
    lines = ["| step | CPU seconds | peak memory, GB | trained parameters | training loss |", "|---|---|---|---|---|"]
    for step in STEPS:
        own = [run for run in runs if run["step"] == step]
        seconds = f"{np.mean([run['cpu_seconds'] for run in own]):.0f}"
        trained, loss = own[0].get("trained_parameters", own[0].get("parameters")), own[0].get("loss")
        figures = "" if trained is None else f"{trained:,}", "" if loss is None else f"{loss:.3f}"
        memory = f"{max(run['peak_memory'] or 0 for run in own) / 1e9:.1f}"
        lines.append(f"| {' | '.join((step.replace('_', ' '), seconds, memory, *figures))} |")
    return "\n".join(lines) + "\n"


def chosen(labels: np.ndarray, count: int) -> list[int]:
    """Choose shapes to show, the first ones of as many different classes as possible."""
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
    return firsts[:: max(1, len(firsts) // count)][:count]


def answers_of(folder: Path, seed: int) -> Mapping[str, list[str]]:
    """Read the answers of the last stage's model."""
    answers = read_json(folder / f"seed-{seed}" / f"stage_{STAGES[-1]}" / "answers.json")
    assert answers is not None
    return answers


def answer_table(folder: Path, seed: int, count: int) -> str:
    """Format the answers about some shapes as Markdown; wrong ones are crossed out."""
    exam, answers = examination(folder), answers_of(folder, seed)
    right, labels = exam.right(answers), np.asarray(shapes(folder)[0]["test"]["label"])
    lines = [f"| class | {' | '.join(ASKED)} |", "|---" * (1 + len(ASKED)) + "|"]
    for number in chosen(labels, count):
        texts = [own[number] if right[what][number] == "1" else f"~~{own[number]}~~" for what, own in answers.items()]
        texts[-1] = f"{exam.questions('where')[number]} {texts[-1]}"
        lines.append(f"| {exam.facts[number].label} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def finish(runs: Runs, folder: Path, clouds: int) -> None:
    """Store and print the results of all steps of some seeds."""
    seed, generated = runs[0]["seed"], GENERATED["test"] * len(CLASSES)
    settings = {f"stage_{stage}": recipe_of(stage) for stage in STAGES}
    summary = {"date": date.today().isoformat(), "machine": machine(), "settings": settings, "runs": runs}
    tables = [
        "The embedded shapes:\n",
        table(runs, slice(None, -generated)),
        "The generated shapes:\n",
        table(runs, slice(-generated, None)),
        cost_table(runs),
        answer_table(folder, seed, clouds),
    ]
    write_results(folder, "chat_shapes", summary, "\n".join(tables))


def positive(text: str) -> int:
    """Parse a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number from 1")
    return int(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__, "outputs/chat_shapes", with_threads=False)
    parser.add_argument("--threads", type=positive, default=1, help="threads of torch")
    parser.add_argument("--clouds", type=positive, default=9, help="test shapes whose answers are shown")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print and store its results."""
    options = parse(arguments)
    folder: Path = options.output_dir
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    prepare(folder)
    runs: Runs = []
    for seed in options.seeds:
        for step in tqdm(STEPS, desc=f"seed {seed}"):
            runs.append(run_step(step, seed, folder))
            tqdm.write(f"seed {seed}, {step}: {runs[-1]['cpu_seconds']:.0f} CPU seconds")
    finish(runs, folder, options.clouds)


if __name__ == "__main__":
    main()
