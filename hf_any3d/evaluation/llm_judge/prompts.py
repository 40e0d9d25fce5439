"""Prompts of judges, in our own wording; the task and the form of the reply are those of the published protocols.

`{ground_truth}`, `{model_output}` and `{classes}` are filled in.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping

JUDGE_PROMPTS = {
    "same": """Two sentences describe 3D objects. Decide whether they speak of the same kind of object. Only what the \
object is counts: leave aside its colour, size, shape, material and style.
Reply with T if both speak of the same kind of object and with F if they do not, then a # and your reason in at most \
20 words. Write nothing before the letter.

Examples
1. A cartoon-like white and yellow duck.
2. This is a small rubber duck for the bath.
Reply: T#both are ducks
1. An old wooden barrel.
2. The model shows a tall green cactus in a pot.
Reply: F#a barrel is no cactus

Your turn
1. {ground_truth}
2. {model_output}
Reply: """,
    "class": """A model was asked what a 3D object is. Find out which of the following classes its answer means:
{classes}

Reply in one line with the number of the class, a #, the name of the class, a #, and your reason in at most 20 words, \
in the form number#class#reason. Go by what kind of object the answer speaks of, and leave aside colour, size and \
style. If it names none of the classes, choose the one that its object comes closest to. If the answer gives no hint \
at all, reply -1#NA#reason.

Examples
Answer: a small jet with two engines
Reply: 0#airplane#a jet is an airplane
Answer: this is an object
Reply: -1#NA#the answer does not say what it is

Your turn
Answer: {model_output}
Reply: """,
    "caption": """A person and a model have each described the same 3D object. List the aspects that the person \
mentions, such as what it is, its parts, colours, materials and purpose. Then find the share of them that the model \
mentions correctly or in part; other words for the same thing count as the same, and what the model says beyond them \
does not count.
Reply in one line with that share from 0 to 100, a #, and your reason in at most 30 words, in the form score#reason. \
Write nothing before the score.

Example
Person: A white van with red stripes.
Model: this is a 3d model of a white vehicle, perhaps a van, on four wheels.
Reply: 66#van and white are mentioned, the red stripes are not

Your turn
Person: {ground_truth}
Model: {model_output}
Reply: """,
}
"""The default prompt for each kind of protocol."""

_FIELDS = {
    "same": {"ground_truth", "model_output"},
    "class": {"classes", "model_output"},
    "caption": {"ground_truth", "model_output"},
}


def check_prompt(prompt: str, kind: str) -> str:
    """Return a prompt if it has exactly the fields of its kind.

    Raises:
        ValueError: A field is missing or unknown.
    """
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None}
    except ValueError as error:
        raise ValueError(f"judge prompt: {error}; write a brace that is no field twice") from None
    if fields != _FIELDS[kind]:
        found, expected = (", ".join(f"{{{n}}}" for n in sorted(names)) for names in (fields, _FIELDS[kind]))
        raise ValueError(f"judge prompt has fields {found or 'none'}; expected {expected}")
    return prompt


def fill_prompt(prompt: str, entry: Mapping[str, object], classes: list[str] | None = None) -> str:
    """Fill in a prompt for one answer; an empty answer becomes ##."""
    listed = "\n".join(f"{number}: {name}" for number, name in enumerate(classes or []))
    output = entry["model_output"] or "##"
    return prompt.format_map({"ground_truth": entry["ground_truth"], "model_output": output, "classes": listed})


def prompt_checksum(prompt: str) -> str:
    """Return `sha256:…` of a prompt, so that figures of different wordings can be told apart."""
    return f"sha256:{hashlib.sha256(prompt.encode()).hexdigest()}"
