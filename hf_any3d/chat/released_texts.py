"""Text processing of the released MiniGPT-3D programs: questions before training, answers after generation."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

MOST_WORDS = 50


def clean_question(text: str) -> str:
    """Clean a question as BLIP cleans captions: lower case, some punctuation replaced by spaces, at most 50 words."""
    words = re.sub(r"[.!\"()*#:;~]", " ", text.lower()).split()
    return " ".join(words[:MOST_WORDS])


def training_messages(conversations: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Convert a stored conversation to messages as the released training does: cloud first, question cleaned.

    Only the question of a conversation with a single question is cleaned; answers are not changed.
    `hf_any3d.data.catalog.pointllm_annotations.to_messages` changes no text.

    Args:
        conversations: The column of that name in a row of `objaverse_captions`.

    Returns:
        Messages with `role` and `content`, a list of parts; the first holds the place of the cloud.
    """
    from hf_any3d.data.catalog.pointllm_annotations import POINT, SPEAKERS  # loads `datasets`, which takes seconds

    turns = list(conversations)
    messages = []
    for number, turn in enumerate(turns):
        text = turn["value"]
        if number == 0:
            text = text.replace(POINT, "").replace("\n", "").strip()
            text = clean_question(text) if len(turns) == 2 else text
        parts = [{"type": "text", "text": text}]
        if number == 0:
            parts.insert(0, {"type": "point_cloud"})
        role = "user" if turn["from"] == SPEAKERS[0] else "assistant"
        messages.append({"role": role, "content": parts})
    return messages


def released_answer(decoded: str) -> str:
    """Return the result of the released model's `generate` for decoded tokens."""
    return decoded.split("</s>")[0].replace("<s>", "").split("[/INST]")[-1].strip()


def released_evaluation_answer(answer: str) -> str:
    """Process the result of `released_answer` as the released evaluation scripts do before judging."""
    text = answer.lower().replace("<unk>", "").strip()
    # The scripts then search for "Assistant:", which lower case text never matches.
    return text.split("###")[0].strip()
