"""The prompts that MiniGPT-3D was trained, evaluated and shown with, as chat templates."""

from __future__ import annotations

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
