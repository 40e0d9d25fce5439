"""Test shapes with what the last stage's model says about them, as a picture and as a table."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from chat_judging import CAPTION, PUBLISHED
from chat_shapes import STAGES, shapes
from shape_conversations import described

from hf_any3d.evaluation import ClassNameJudge, read_results
from hf_any3d.visualization.figures import plot_point_clouds

LINE = 34
DESCRIBED = ("proportion", "upper", "lower")
RIGHT, WRONG = "#2a7a2a", "#b03030"


def chosen(labels: np.ndarray, count: int) -> list[int]:
    """Numbers of shapes, of as many different classes as can be; the first ones of each, whatever was answered."""
    firsts = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    turns = [own[turn] for turn in range(len(labels)) for own in firsts if turn < len(own)]
    step = max(1, len(firsts) // count) if count <= len(firsts) else 1
    return [int(number) for number in turns[::step][:count]]


def answers_of(folder: Path, seed: int, stage: int = STAGES[-1]) -> dict[str, list[str]]:
    """What a stage's model of a seed said, by question: of all test shapes, in their order."""
    place = folder / f"seed-{seed}" / f"judge_{stage}"
    told = {}
    for protocol in (PUBLISHED[0], CAPTION):
        told[protocol.name] = [
            entry["model_output"] for entry in read_results(place / f"{protocol.name}.json")["results"]
        ]
    return told


def right_in_captions(folder: Path, seed: int, stage: int) -> dict[str, float]:
    """Share of the detailed answers that say it rightly, by what `described` looks for."""
    facts, told = shapes()[1]["test"], answers_of(folder, seed, stage)[CAPTION.name]
    pairs = [(one, described(text)) for one, text in zip(facts, told, strict=True)]
    return {what: float(np.mean([getattr(one, what) == said[what] for one, said in pairs])) for what in DESCRIBED}


def draw(folder: Path, seed: int, count: int) -> Path:
    """Draw test shapes under what is said of them, green where it names the class; as `chat_answers.png`."""
    splits, facts = shapes()
    rows, told = splits["test"].with_format("numpy"), answers_of(folder, seed)
    names = rows.features["label"].names
    judge = ClassNameJudge(names)
    clouds, titles, colors = [], [], []
    for number in chosen(np.asarray(rows["label"]), count):
        row, answer = rows[number], told["instruction"][number]
        clouds.append(np.concatenate([row["points"], row["colors"] / np.float32(255)], axis=1))
        caption = textwrap.fill(told["caption"][number], LINE)
        titles.append(f"{names[row['label']]}\nWhat is this? {answer}\n{caption}")
        right = judge(answer).split("#")[0] == str(row["label"])
        colors.append(RIGHT if right else WRONG)
    path = folder / "chat_answers.png"
    return plot_point_clouds(clouds, path, titles=titles, title_colors=colors, columns=3, cell=3.4)


def sample_table(folder: Path, seed: int, count: int) -> str:
    """The same as Markdown, with what is true."""
    splits, facts = shapes()
    told = answers_of(folder, seed)
    labels = np.asarray(splits["test"].with_format("numpy")["label"])
    lines = ['| class | "What is this?" | "Caption this 3D model in detail." |', "|---|---|---|"]
    for number in chosen(labels, count):
        said = [told[name][number] for name in ("instruction", "caption")]
        lines.append(f"| {facts['test'][number].label} | {' | '.join(said)} |")
    return "\n".join(lines) + "\n"
