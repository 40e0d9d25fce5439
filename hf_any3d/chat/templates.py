"""Prompts as token ids; chat templates: the published ones of MiniGPT-3D, and a check of untrusted ones."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jinja2 import Environment, TemplateSyntaxError, nodes

IGNORED = -100
SIDES = ("left", "right")


@dataclass
class Prompt:
    """One conversation as input of the model.

    Attributes:
        input_ids: Token ids, with point tokens in the places of clouds.
        attention_mask: 0 for hidden tokens.
        labels: The ids of answers, -100 elsewhere.
        points: Its clouds, each `(points, channels)` float32, in the order of their places.
    """

    input_ids: list[int] = field(default_factory=list)
    attention_mask: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)

    def add(self, ids: Sequence[int], is_answer: bool = False) -> None:
        """Append tokens."""
        self.input_ids += ids
        self.attention_mask += [1] * len(ids)
        self.labels += ids if is_answer else [IGNORED] * len(ids)

    def shorten(self, length: int) -> None:
        """Keep the first `length` tokens."""
        for values in (self.input_ids, self.attention_mask, self.labels):
            del values[length:]


def pad_prompts(prompts: Sequence[Prompt], pad_token_id: int, side: str, least: int = 0) -> dict[str, np.ndarray]:
    """Pad prompts to arrays.

    Args:
        prompts: The prompts.
        pad_token_id: Id of the padding token.
        side: "left" for generation or "right" for training.
        least: Minimum number of tokens per row.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each `(prompts, tokens)` int64.

    Raises:
        ValueError: The side is unknown.
    """
    if side not in SIDES:
        raise ValueError(f"padding_side={side!r}; expected 'left' or 'right'")
    length = max(least, *(len(prompt.input_ids) for prompt in prompts))
    arrays = {}
    for name, fill in (("input_ids", pad_token_id), ("attention_mask", 0), ("labels", IGNORED)):
        arrays[name] = np.full((len(prompts), length), fill, dtype=np.int64)
        for row, prompt in zip(arrays[name], prompts, strict=True):
            values = getattr(prompt, name)
            start = length - len(values) if side == "left" else 0
            row[start : start + len(values)] = values
    return arrays


PLACE_MARK = "<PointCloudHere>"
"""Marks the place of a cloud's tokens in a rendered prompt."""
END_MARK = "###"
"""The model was trained to write this after an answer."""
_LONGEST_TEMPLATE = 100_000
_LONGEST_LITERAL = 2_000
_DEEPEST_LOOP = 2
# Functions that make sequences of any length.
_SEQUENCES = ("range", "lipsum", "cycler")
_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
_CLOUD = f"<PC>{PLACE_MARK}</PC>"
_TEXT = (
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
)
_TEXT_AND_CLOUDS = _TEXT.replace(
    "{%- endif -%}{%- endfor -%}",
    f"{{%- elif part['type'] == 'point_cloud' -%}}{{{{- '{_CLOUD} ' -}}}}{{%- endif -%}}{{%- endfor -%}}",
)
_HAS_CLOUD = (
    "message['content'] is not string and message['content'] | selectattr('type', 'equalto', 'point_cloud') | list"
)


def _conversation(question: str, answer: str) -> str:
    return (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}" + question + "{%- elif message['role'] == 'assistant' -%}" + answer + ""
        "{%- else -%}{{- raise_exception(\"role '\" ~ message['role'] ~ \"'; expected user or assistant\") -}}"
        "{%- endif -%}{%- endfor -%}"
    )


def _opened_by_cloud(separator: str) -> str:
    clouds = (
        "{%- for part in message['content'] -%}{%- if part['type'] == 'point_cloud' -%}"
        f"{{{{- '{_CLOUD}' -}}}}{{%- endif -%}}{{%- endfor -%}}"
    )
    opening = f"{{%- if {_HAS_CLOUD} -%}}{{{{- '<s>[INST] ' -}}}}{clouds}{{{{- '{separator}' -}}}}{{%- endif -%}}"
    return opening + "{{- '<s>[INST] ' -}}" + _TEXT + "{{- ' [/INST]' -}}"


# Generation blocks mark the answers that are learned; labels and the borders of tokenization follow from them.
TRAINING = _conversation(
    "{{- bos_token -}}{{- '[INST] ' -}}" + _TEXT_AND_CLOUDS + "{{- '  [/INST]' -}}",
    "{%- generation -%}" + _TEXT + f"{{{{- '{END_MARK}' -}}}}" + "{%- endgeneration -%}",
)
EVALUATION = _conversation(_opened_by_cloud(" "), _TEXT)
DEMO = _conversation(_opened_by_cloud(""), _TEXT)
PUBLISHED = {"training": TRAINING, "evaluation": EVALUATION, "demo": DEMO}


def published_templates(default: str = "training") -> dict[str, str]:
    """Return the published prompts by name, one of them also as the default.

    - "training": `<|endoftext|>[INST] <PC>…</PC> {question}  [/INST]{answer}###`, and so on;
    - "evaluation": `<s>[INST] <PC>…</PC> <s>[INST] {question} [/INST]`;
    - "demo": `<s>[INST] <PC>…</PC><s>[INST] {question} [/INST]{answer}<s>[INST] {question} [/INST]`, and so on.

    The three differ because the released programs do. Models trained here use the first.

    Args:
        default: Name of the default prompt.

    Raises:
        ValueError: There is no such prompt.
    """
    if default not in PUBLISHED:
        raise ValueError(f"default={default!r}; expected one of {', '.join(map(repr, PUBLISHED))}")
    return {"default": PUBLISHED[default], **PUBLISHED}


def check_templates(templates: Mapping[str, str] | str) -> None:
    """Check that rendering time of a processor's templates is bounded by the length of the conversation.

    Templates are untrusted programs. Transformers' sandbox restricts their access, but they may loop for ever, while
    they only need loops over messages and their parts.

    Args:
        templates: Templates by name, or one template.

    Raises:
        ValueError: A template is invalid; the message names it and the reason.
    """
    named = {"default": templates} if isinstance(templates, str) else templates
    if not isinstance(named, Mapping):
        raise ValueError(f"chat_template is a {type(templates).__name__}; expected a template, or templates by name")
    for name, text in named.items():
        if not isinstance(text, str):
            raise ValueError(f"chat_template {name!r} is a {type(text).__name__}; expected text")
        if problem := _find_problem(text):
            raise ValueError(f"chat_template {name!r}: {problem}")


def _find_problem(text: str) -> str | None:
    if len(text) > _LONGEST_TEMPLATE:
        return f"{len(text):,} characters; expected at most {_LONGEST_TEMPLATE:,}"
    try:
        # Only parsed, never run; the tag `generation` is an extension of transformers, and removed first.
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", text))
    except (TemplateSyntaxError, RecursionError) as error:
        return f"no template of Jinja ({error})"
    macros = {node.name for node in tree.find_all(nodes.Macro)}
    for node in tree.find_all((nodes.Name, nodes.Pow, nodes.Mul, nodes.Const, nodes.Macro, nodes.For, nodes.Assign)):
        if isinstance(node, nodes.Name) and node.name in _SEQUENCES:
            return f"calls {node.name}; expected loops over messages and their parts"
        if isinstance(node, (nodes.Pow, nodes.Mul)):
            return "multiplies, which can make texts of any length"
        if isinstance(node, nodes.Const) and isinstance(node.value, str) and len(node.value) > _LONGEST_LITERAL:
            return f"holds a text of {len(node.value):,} characters in an expression"
        if isinstance(node, nodes.Macro) and any(name.name in macros for name in node.find_all(nodes.Name)):
            return f"macro {node.name} calls macros"
        if isinstance(node, nodes.For) and node.recursive:
            return "loops recursively"
        if isinstance(node, nodes.Assign) and _doubles(node):
            return "doubles a text"
    depth = _depth_of_loops(tree)
    return f"{depth} nested loops; expected at most {_DEEPEST_LOOP}" if depth > _DEEPEST_LOOP else None


def _doubles(node: nodes.Assign) -> bool:
    """Return whether an assignment reads its own target twice, like `x = x ~ x`."""
    if isinstance(node.target, nodes.NSRef):
        return sum(read.attr == node.target.attr for read in node.node.find_all(nodes.Getattr)) > 1
    if not isinstance(node.target, nodes.Name):
        return False
    return sum(read.name == node.target.name for read in node.node.find_all(nodes.Name)) > 1


def _depth_of_loops(node: nodes.Node) -> int:
    inside = max((_depth_of_loops(child) for child in node.iter_child_nodes()), default=0)
    return inside + isinstance(node, nodes.For)
