"""Questions and answers about colored shapes, written as a folder with PointLLM's layout.

Answers have several wordings; they state the facts of `ShapeFacts` and nothing else.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from datasets import Dataset

from examples.shapes_chat.facts import COLORS, PROPORTIONS, THIRDS, ShapeFacts, all_facts
from hf_any3d.data.catalog.objaverse_captions import COMPLEX, FILTERED, NUM_POINTS, TEST, cloud_path
from hf_any3d.utils.atomic_files import write_text

NOUNS = {"clothing": "piece of clothing", "sanitary": "sanitary fixture", "storage": "storage unit"}
"""Names of shapes whose class name does not name a single shape."""

BRIEF_QUESTIONS = (
    "What is this?",
    "This is an object of ",
    "Describe this object briefly.",
    "What does this point cloud show?",
    "Give a short caption of this 3D model.",
)
"""The first two are the questions of the published protocols."""

DETAILED_QUESTIONS = ("Caption this 3D model in detail.", "Describe this object in detail.", "Tell me all you see.")
"""The first is the question of the published protocol."""

LARGEST_QUESTION = "Which part is the largest?"
UPPER_QUESTION = "What color is the upper part?"
LOWER_QUESTION = "What is the lower part?"
WHERE_QUESTION = "Which part is {}?"
PROPORTION_QUESTION = "Is it tall, flat, thin, long or compact?"

BRIEF_OF_A_SHAPE, DETAILED_OF_A_SHAPE, SINGLE_OF_A_SHAPE, MULTI_OF_A_SHAPE = 2, 1, 5, 1
"""Number of conversations of each kind per training shape."""

_SHARES = ((0.9, "nearly all"), (0.6, "most"), (0.4, "about half"), (0.2, "about a third"), (0.0, "a small part"))
_COUNTS = ("no", "one", "two", "three", "four", "five")
_SHARE_IN_BRIEF = 0.2
_ABSENT = 0.2  # share of the questions about a color that no part has
_A_COLOR = re.compile(rf"\b(?:{'|'.join(COLORS)})\b")
_A_PROPORTION = re.compile(rf"\b({'|'.join(PROPORTIONS)})\b")

Turn = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True)
class Conversation:
    """A conversation about a shape.

    Attributes:
        kind: One of the types of `hf_any3d.data.catalog.pointllm_annotations`.
        turns: Questions and answers.
    """

    kind: str
    turns: tuple[Turn, ...]


def brief(facts: ShapeFacts, random: Random) -> Conversation:
    """Write a brief caption."""
    return Conversation("simple_description", ((random.choice(BRIEF_QUESTIONS), _brief_answer(facts, random)),))


def detailed(facts: ShapeFacts, random: Random) -> Conversation:
    """Write a description with all facts."""
    return Conversation(
        "detailed_description", ((random.choice(DETAILED_QUESTIONS), _detailed_answer(facts, random)),)
    )


def single_round(facts: ShapeFacts, random: Random, topic: str) -> Conversation:
    """Write one question about one of `TOPICS`."""
    return Conversation("single_round", (TOPICS[topic](facts, random),))


def multi_round(facts: ShapeFacts, random: Random, rounds: int = 4) -> Conversation:
    """Write questions about different topics, the kind of object first."""
    others = random.sample([topic for topic in TOPICS if topic != "kind"], rounds - 1)
    return Conversation("multi_round", tuple(TOPICS[topic](facts, random) for topic in ("kind", *others)))


def reference_captions(facts: ShapeFacts) -> dict[str, str]:
    """Return the captions that answers are compared with, by kind; they are always the same."""
    return {
        "simple_description": f"{_a(f'{_colors(facts)} {_noun(facts)}')}.",
        "detailed_description": _detailed_answer(facts, Random(0)),
    }


def annotation(object_id: str, conversation: Conversation) -> dict[str, object]:
    """Build an entry of an annotation file, with the cloud's mark before the first question."""
    values: list[dict[str, str]] = []
    for number, (question, answer) in enumerate(conversation.turns):
        values.append({"from": "human", "value": question if number else f"<point>\n{question}"})
        values.append({"from": "gpt", "value": answer})
    return {"object_id": object_id, "conversation_type": conversation.kind, "conversations": values}


def named_color(answer: str) -> str | None:
    """Find the color that an answer names first; None if it names none."""
    found = _A_COLOR.search(answer.lower())
    return found.group() if found else None


def named_thirds(answer: str) -> str:
    """List the thirds that an answer names, as `ShapeFacts.where` does."""
    return ", ".join(third for third in THIRDS if re.search(rf"\b{third}\b", answer.lower()))


def named_proportion(answer: str) -> str | None:
    """Find the proportion that an answer names first; None if it names none."""
    found = _A_PROPORTION.search(answer.lower())
    return None if found is None else found.group(1)


def object_id(split: str, number: int) -> str:
    """Name a shape of the embedded set; names differ between splits."""
    return f"shape-{split}-{number:03d}"


def conversations_about(facts: ShapeFacts, random: Random) -> list[Conversation]:
    """Write all conversations about a training shape, brief captions first."""
    topics = random.sample(list(TOPICS), SINGLE_OF_A_SHAPE)
    return [
        *(brief(facts, random) for _ in range(BRIEF_OF_A_SHAPE)),
        *(detailed(facts, random) for _ in range(DETAILED_OF_A_SHAPE)),
        *(single_round(facts, random, topic) for topic in topics),
        *(multi_round(facts, random) for _ in range(MULTI_OF_A_SHAPE)),
    ]


def write_tree(folder: Path, train: Dataset, test: Dataset, seed: int = 0) -> Path:
    """Write clouds and annotation files, unless the folder exists; an existing one is complete.

    Clouds of this layout have 8,192 points, so the points of a shape are repeated in order: the first 1,024 are the
    shape.

    Args:
        folder: The `data_dir` for `load_point_dataset("objaverse_captions", verify=False)`.
        train: Training rows of the embedded shapes.
        test: Test rows; no training file is about them.
        seed: Seed of the wording.

    Raises:
        ValueError: A cloud's number of points does not divide 8,192.
    """
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    random = Random(seed)
    entries: dict[str, list[dict[str, object]]] = {FILTERED: [], COMPLEX: [], TEST: []}
    for number, facts in enumerate(all_facts(train)):
        for conversation in conversations_about(facts, random):
            name = FILTERED if conversation.kind == "simple_description" else COMPLEX
            entries[name].append(annotation(object_id("train", number), conversation))
    for number, facts in enumerate(all_facts(test)):
        caption = reference_captions(facts)["simple_description"]
        conversation = Conversation("simple_description", (("What is this?", caption),))
        entries[TEST].append(annotation(object_id("test", number), conversation))
    for name, some in entries.items():
        write_text(part / "anno_data" / name, json.dumps(some, indent=1))
    for split, rows in (("train", train), ("test", test)):
        _write_clouds(part / f"{NUM_POINTS}_npy", split, rows)
    part.rename(folder)
    return folder


def _write_clouds(folder: Path, split: str, rows: Dataset) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows.with_format("numpy")):
        count = len(row["points"])
        if NUM_POINTS % count:
            raise ValueError(f"shape {number} of {split} has {count} points; expected a divisor of {NUM_POINTS}")
        table = np.concatenate([row["points"], row["colors"] / np.float32(255)], axis=1).astype(np.float32)
        np.save(cloud_path(folder, object_id(split, number)), np.tile(table, (NUM_POINTS // count, 1)))


def _brief_answer(facts: ShapeFacts, random: Random) -> str:
    noun, colors = _noun(facts), _colors(facts)
    return random.choice(
        (
            f"{_a(f'{colors} {noun}')}.",
            f"{_a(f'{facts.proportion} {colors} {noun}')}.",
            f"This is {_a(f'{colors} {noun}').lower()}.",
            f"{_a(noun)} in {colors}.",
        )
    )


def _detailed_answer(facts: ShapeFacts, random: Random) -> str:
    noun = _noun(facts)
    opening = random.choice(
        (
            f"This is {_a(f'{facts.proportion} {noun}').lower()}.",
            f"The model shows {_a(f'{facts.proportion} {noun}').lower()}.",
        )
    )
    shares = [f"{_share(part.share)} of it is {part.color}" for part in facts.parts]
    ends = f"The upper part is {facts.upper} and the lower part is {facts.lower}."
    if facts.upper == facts.lower:
        ends = f"The upper and the lower part are {facts.upper}."
    return f"{opening} {_listed(shares).capitalize()}. {ends}"


def _kind(facts: ShapeFacts, random: Random) -> Turn:
    question = random.choice(("What kind of object is it?", "What is it?", "Which class of object is this?"))
    return question, f"It is {_a(_noun(facts)).lower()}."


def _main_color(facts: ShapeFacts, random: Random) -> Turn:
    question = random.choice(("What is its main color?", "What color is it?"))
    return question, f"It is mostly {facts.color}."


def _largest(facts: ShapeFacts, random: Random) -> Turn:
    question = random.choice((LARGEST_QUESTION, "Which of its parts is the largest?"))
    return question, f"The {facts.color} part is the largest."


def _color_count(facts: ShapeFacts, random: Random) -> Turn:
    question = random.choice(("How many colors does it have?", "Which parts can be told apart by color?"))
    names = _listed([part.color for part in facts.parts])
    if len(facts.parts) == 1:
        return question, f"One, it is {names} throughout."
    return question, f"{_COUNTS[min(len(facts.parts), 5)].capitalize()}, {_listed_parts(facts)}."


def _second_color(facts: ShapeFacts, random: Random) -> Turn:
    question = random.choice(("What is its second color?", "Which other color does it have?"))
    if facts.second is None:
        return question, "It has only one."
    return question, f"The second color is {facts.second}."


def _where(facts: ShapeFacts, random: Random) -> Turn:
    if random.random() < _ABSENT:
        color = random.choice([name for name in COLORS if name not in facts.colors_of_thirds])
        return WHERE_QUESTION.format(color), f"No part is mostly {color}."
    color = random.choice(facts.colors_of_thirds)
    thirds = facts.where(color).split(", ")
    verb = "is" if len(thirds) == 1 else "are"
    question = random.choice((WHERE_QUESTION, "Where is it {}?")).format(color)
    return question, f"The {_listed(thirds, ' the ')} part {verb} {color}."


def _upper(facts: ShapeFacts, random: Random) -> Turn:
    if random.random() < 1 / 3:
        return "Which part is at the top?", f"The {facts.upper} part is at the top."
    question = random.choice((UPPER_QUESTION, "What is the upper part?"))
    return question, f"The upper part is {facts.upper}."


def _lower(facts: ShapeFacts, random: Random) -> Turn:
    if random.random() < 1 / 3:
        return "Which part is at the bottom?", f"The {facts.lower} part is at the bottom."
    question = random.choice((LOWER_QUESTION, "What color is the lower part?"))
    return question, f"The lower part is {facts.lower}."


def _proportion(facts: ShapeFacts, random: Random) -> Turn:
    other = random.choice([word for word in PROPORTIONS if word != facts.proportion])
    either = " or ".join(random.sample((facts.proportion, other), 2))
    question = random.choice(("What are its proportions?", PROPORTION_QUESTION, f"Is it {either}?"))
    return question, f"It is {facts.proportion}."


TOPICS: Mapping[str, Callable[[ShapeFacts, Random], Turn]] = {
    "kind": _kind,
    "color": _main_color,
    "largest": _largest,
    "second": _second_color,
    "count": _color_count,
    "where": _where,
    "upper": _upper,
    "lower": _lower,
    "proportion": _proportion,
}
"""Topics of single questions."""


def _noun(facts: ShapeFacts) -> str:
    return NOUNS.get(facts.label, facts.label)


def _colors(facts: ShapeFacts) -> str:
    """List the colors of a brief caption: the main one, and a second one unless it is small."""
    first, *others = facts.parts
    second = [part.color for part in others[:1] if part.share >= _SHARE_IN_BRIEF]
    return " and ".join([first.color, *second])


def _share(share: float) -> str:
    return next(words for least, words in _SHARES if share >= least)


def _a(words: str) -> str:
    return f"{'An' if words[0] in 'aeiou' else 'A'} {words}"


def _listed(things: Sequence[str], before: str = " ") -> str:
    return things[0] if len(things) == 1 else f"{f',{before}'.join(things[:-1])} and{before}{things[-1]}"


def _listed_parts(facts: ShapeFacts) -> str:
    return f"a {_listed([part.color for part in facts.parts], ' a ')} one"
