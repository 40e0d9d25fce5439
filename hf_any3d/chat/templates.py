"""The prompts that MiniGPT-3D was trained, evaluated and shown with, as chat templates."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jinja2 import Environment, TemplateSyntaxError, nodes

PLACE_MARK = "<PointCloudHere>"
"""Stands in a rendered prompt where the tokens of a cloud belong."""

END_MARK = "###"
"""What the model was trained to write behind an answer."""

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


def _opened_by_cloud(behind: str) -> str:
    clouds = (
        "{%- for part in message['content'] -%}{%- if part['type'] == 'point_cloud' -%}"
        f"{{{{- '{_CLOUD}' -}}}}{{%- endif -%}}{{%- endfor -%}}"
    )
    opening = f"{{%- if {_HAS_CLOUD} -%}}{{{{- '<s>[INST] ' -}}}}{clouds}{{{{- '{behind}' -}}}}{{%- endif -%}}"
    return opening + "{{- '<s>[INST] ' -}}" + _TEXT + "{{- ' [/INST]' -}}"


# What the model learns to write stands in generation blocks; labels and borders of tokenization come from them.
TRAINING = _conversation(
    "{{- bos_token -}}{{- '[INST] ' -}}" + _TEXT_AND_CLOUDS + "{{- '  [/INST]' -}}",
    "{%- generation -%}" + _TEXT + f"{{{{- '{END_MARK}' -}}}}" + "{%- endgeneration -%}",
)
EVALUATION = _conversation(_opened_by_cloud(" "), _TEXT)
DEMO = _conversation(_opened_by_cloud(""), _TEXT)

PUBLISHED = {"training": TRAINING, "evaluation": EVALUATION, "demo": DEMO}


def published_templates(default: str = "training") -> dict[str, str]:
    """The published prompts by name, one of them also as the default.

    - "training": `<|endoftext|>[INST] <PC>…</PC> {question}  [/INST]{answer}###`, and so on;
    - "evaluation": `<s>[INST] <PC>…</PC> <s>[INST] {question} [/INST]`;
    - "demo": `<s>[INST] <PC>…</PC><s>[INST] {question} [/INST]{answer}<s>[INST] {question} [/INST]`, and so on.

    The three differ as the released programs do. A model trained here knows the first.

    Args:
        default: Which one is taken where none is named.

    Raises:
        ValueError: If there is no such prompt.
    """
    if default not in PUBLISHED:
        raise ValueError(f"default={default!r}; expected one of {', '.join(map(repr, PUBLISHED))}")
    return {"default": PUBLISHED[default], **PUBLISHED}


_LONGEST_TEMPLATE = 100_000
_LONGEST_LITERAL = 2_000
_DEEPEST_LOOP = 2
# Make sequences out of nothing, of any length.
_SEQUENCES = ("range", "lipsum", "cycler")
_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")


def check_templates(templates: Mapping[str, str] | str) -> None:
    """Make sure that the templates of a processor render in time that grows with the conversation alone.

    Templates are programs, and come from strangers. In transformers' sandbox they reach nothing, but may loop for
    ever. Loops over messages and their parts are what a template needs.

    Args:
        templates: By name, or one.

    Raises:
        ValueError: Names the template, and what it may not do.
    """
    named = {"default": templates} if isinstance(templates, str) else templates
    if not isinstance(named, Mapping):
        raise ValueError(f"chat_template is a {type(templates).__name__}; expected a template, or templates by name")
    for name, text in named.items():
        if not isinstance(text, str):
            raise ValueError(f"chat_template {name!r} is a {type(text).__name__}; expected text")
        if wrong := _what_is_wrong(text):
            raise ValueError(f"chat_template {name!r}: {wrong}")


def _what_is_wrong(text: str) -> str | None:
    if len(text) > _LONGEST_TEMPLATE:
        return f"{len(text):,} characters; expected at most {_LONGEST_TEMPLATE:,}"
    try:
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
    return f"{depth} loops in each other; expected at most {_DEEPEST_LOOP}" if depth > _DEEPEST_LOOP else None


def _doubles(node: nodes.Assign) -> bool:
    """Whether an assignment reads its own target twice, as `x = x ~ x` does."""
    if isinstance(node.target, nodes.NSRef):
        return sum(read.attr == node.target.attr for read in node.node.find_all(nodes.Getattr)) > 1
    if not isinstance(node.target, nodes.Name):
        return False
    own = [node.node] if isinstance(node.node, nodes.Name) else []
    return sum(read.name == node.target.name for read in [*own, *node.node.find_all(nodes.Name)]) > 1


def _depth_of_loops(node: nodes.Node) -> int:
    inside = max((_depth_of_loops(child) for child in node.iter_child_nodes()), default=0)
    return inside + isinstance(node, nodes.For)
