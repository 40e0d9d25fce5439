"""Prompts as token ids, and the published chat templates of MiniGPT-3D."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# The label that torch's cross entropy leaves out by default
IGNORED = -100


@dataclass
class Prompt:
    """One conversation as input of the model, with point tokens in the places of its clouds.

    `attention_mask` is 0 for hidden tokens, `labels` has the ids of answers and -100 elsewhere, and `points` the
    clouds, each `(points, channels)` float32.
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


PLACE_MARK = "<PointCloudHere>"
"""Marks the place of a cloud's tokens in a rendered prompt."""
END_MARK = "###"
"""The model was trained to write this after an answer."""
_CLOUD = f"<PC>{PLACE_MARK}</PC>"
_TEXT = (
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
)
# The same, with marks where there are parts with clouds
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
    # Clouds open a turn of their own before the question, as in the released programs.
    clouds = (
        "{%- for part in message['content'] -%}{%- if part['type'] == 'point_cloud' -%}"
        f"{{{{- '{_CLOUD}' -}}}}{{%- endif -%}}{{%- endfor -%}}"
    )
    # Only the turn with the clouds has this opening; later questions follow the answer before.
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
    """
    return {"default": PUBLISHED[default], **PUBLISHED}
