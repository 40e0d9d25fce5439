"""Questions and answers about shapes, in several wordings. Answers say what `ShapeFacts` hold and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from shape_facts import COLORS, ShapeFacts

NOUNS = {"clothing": "piece of clothing", "sanitary": "sanitary fixture", "storage": "storage unit"}
"""What a shape of a class is called, where the class alone is no name for one."""

BRIEF_QUESTIONS = (
    "What is this?",
    "This is an object of ",
    "Describe this object briefly.",
    "What does this point cloud show?",
    "Give a short caption of this 3D model.",
)
"""The first two are those of the published protocols."""

DETAILED_QUESTIONS = ("Caption this 3D model in detail.", "Describe this object in detail.", "Tell me all you see.")
"""The first is that of the published protocol."""

COLOR_QUESTION = "What is its main color?"

_SHARES = ((0.9, "nearly all"), (0.6, "most"), (0.4, "about half"), (0.2, "about a third"), (0.0, "a small part"))
_COUNTS = ("no", "one", "two", "three", "four", "five")
_SHARE_IN_BRIEF = 0.2
_A_COLOR = re.compile(rf"\b(?:{'|'.join(COLORS)})\b")

Turn = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True)
class Conversation:
    """What is said about a shape.

    Attributes:
        kind: One of the types of `hf_any3d.data.catalog.pointllm_annotations`.
        turns: Questions and answers.
    """

    kind: str
    turns: tuple[Turn, ...]


def brief(facts: ShapeFacts, random: Random) -> Conversation:
    """A brief caption."""
    return Conversation("simple_description", ((random.choice(BRIEF_QUESTIONS), _brief_answer(facts, random)),))


def detailed(facts: ShapeFacts, random: Random) -> Conversation:
    """A description with all that is known."""
    return Conversation(
        "detailed_description", ((random.choice(DETAILED_QUESTIONS), _detailed_answer(facts, random)),)
    )


def single_round(facts: ShapeFacts, random: Random, topic: str) -> Conversation:
    """One question about one of `TOPICS`."""
    return Conversation("single_round", (TOPICS[topic](facts, random),))


def multi_round(facts: ShapeFacts, random: Random, rounds: int = 3) -> Conversation:
    """Questions about different topics, first of all what it is."""
    others = random.sample([topic for topic in TOPICS if topic != "kind"], rounds - 1)
    return Conversation("multi_round", tuple(TOPICS[topic](facts, random) for topic in ("kind", *others)))


def reference_captions(facts: ShapeFacts) -> dict[str, str]:
    """The caption that answers are compared with, by kind; the same whenever it is asked for."""
    return {
        "simple_description": f"{_a(f'{_colors(facts)} {_noun(facts)}')}.",
        "detailed_description": _detailed_answer(facts, Random(0)),
    }


def annotation(object_id: str, conversation: Conversation) -> dict[str, object]:
    """An entry of an annotation file, with the mark of the cloud before the first question."""
    values: list[dict[str, str]] = []
    for number, (question, answer) in enumerate(conversation.turns):
        values.append({"from": "human", "value": question if number else f"<point>\n{question}"})
        values.append({"from": "gpt", "value": answer})
    return {"object_id": object_id, "conversation_type": conversation.kind, "conversations": values}


def named_color(answer: str) -> str | None:
    """The color that an answer names first; None if it names none."""
    found = _A_COLOR.search(answer.lower())
    return found.group() if found else None


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
    noun = _noun(facts)
    return question, random.choice((f"It is {_a(noun).lower()}.", f"{_a(noun)}."))


def _main_color(facts: ShapeFacts, random: Random) -> Turn:
    question = random.choice((COLOR_QUESTION, "What color is it?", "Which color does it have most of?"))
    return question, random.choice((f"It is mostly {facts.color}.", f"Mostly {facts.color}."))


def _color_count(facts: ShapeFacts, random: Random) -> Turn:
    question = random.choice(("How many colors does it have?", "Which parts can be told apart by color?"))
    names = _listed([part.color for part in facts.parts])
    if len(facts.parts) == 1:
        return question, f"One, it is {names} throughout."
    return question, f"{_COUNTS[min(len(facts.parts), 5)].capitalize()}, a {_listed_parts(facts)} one."


def _upper(facts: ShapeFacts, random: Random) -> Turn:
    question = random.choice(("What color is its upper part?", "What color is it at the top?"))
    return question, f"The upper part is {facts.upper}."


def _lower(facts: ShapeFacts, random: Random) -> Turn:
    question = random.choice(("What color is its lower part?", "What color is it at the bottom?"))
    return question, f"The lower part is {facts.lower}."


def _proportion(facts: ShapeFacts, random: Random) -> Turn:
    question = random.choice(("What are its proportions?", "Is it tall, flat, thin, long or compact?"))
    return question, f"It is {facts.proportion}."


def _share_of_color(facts: ShapeFacts, random: Random) -> Turn:
    part = random.choice(facts.parts)
    return f"How much of it is {part.color}?", f"{_share(part.share).capitalize()} of it."


TOPICS: Mapping[str, Callable[[ShapeFacts, Random], Turn]] = {
    "kind": _kind,
    "color": _main_color,
    "count": _color_count,
    "upper": _upper,
    "lower": _lower,
    "proportion": _proportion,
    "share": _share_of_color,
}
"""What single questions are about."""


def _noun(facts: ShapeFacts) -> str:
    return NOUNS.get(facts.label, facts.label)


def _colors(facts: ShapeFacts) -> str:
    """The colours that a brief caption names: the main one, and a second one that is not small."""
    first, *others = facts.parts
    second = [part.color for part in others[:1] if part.share >= _SHARE_IN_BRIEF]
    return " and ".join([first.color, *second])


def _share(share: float) -> str:
    return next(words for least, words in _SHARES if share >= least)


def _a(words: str) -> str:
    return f"{'An' if words[0] in 'aeiou' else 'A'} {words}"


def _listed(things: Sequence[str]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"


def _listed_parts(facts: ShapeFacts) -> str:
    return _listed([part.color for part in facts.parts]).replace(", ", ", a ").replace(" and ", " and a ")
