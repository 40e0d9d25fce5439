"""Split messages into text for a template and clouds for a processor, as the released MiniGPT-3D programs do too."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_any3d.data.options import one_of
from hf_any3d.processing.chat_templates import PLACE_MARK


def clean_question(text: str) -> str:
    """Clean a question as BLIP cleans captions: lower case, some punctuation replaced by spaces, at most 50 words."""
    return " ".join(re.sub(r"[.!\"()*#:;~]", " ", text.lower()).split()[:50])


def training_messages(conversations: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Convert a stored conversation to messages as the released training does: cloud first, question cleaned.

    Only the question of a conversation with a single question is cleaned; answers are not changed.
    `hf_any3d.data.catalog.pointllm_annotations.to_messages` changes no text.

    Parts of the first message begin with the place of the cloud.
    """
    from hf_any3d.data.catalog.pointllm_annotations import POINT, SPEAKERS  # loads `datasets`, which takes seconds

    turns = list(conversations)
    messages = []
    for number, turn in enumerate(turns):
        parts: list[dict[str, str]] = [{"type": "text", "text": turn["value"]}]
        if number == 0:
            # The cloud is a part of its own, which comes first.
            text = turn["value"].replace(POINT, "").replace("\n", "").strip()
            if len(turns) == 2:
                text = clean_question(text)
            parts = [{"type": "point_cloud"}, {"type": "text", "text": text}]
        messages.append({"role": "user" if turn["from"] == SPEAKERS[0] else "assistant", "content": parts})
    return messages


def released_answer(decoded: str) -> str:
    """Return the result of the released model's `generate` for decoded tokens."""
    return decoded.split("</s>")[0].replace("<s>", "").split("[/INST]")[-1].strip()


def released_evaluation_answer(answer: str) -> str:
    """Process the result of `released_answer` as the released evaluation scripts do before judging."""
    text = answer.lower().replace("<unk>", "").strip()
    # The scripts then search for "Assistant:", which lower case text never matches.
    return text.split("###")[0].strip()


def is_conversation(value: Any) -> bool:
    """Return whether a value is a list of messages."""
    first = value[0] if isinstance(value, (list, tuple)) and value else None
    return isinstance(first, Mapping) and "role" in first and "content" in first


ROLES = ("system", "user", "assistant")


def check_texts(messages: Sequence[Mapping[str, Any]], tokens: Sequence[str]) -> None:
    """Check that no text becomes a special token, such as the end.

    Answers may have such tokens, as the model may have written them.
    """
    parts = [part for message in messages if message["role"] != "assistant" for part in message["content"]]
    texts = [part["text"] for part in parts if "text" in part]
    for token in tokens:
        if token and any(token in text for text in texts):
            raise ValueError(f"a text has {token!r} in it, a special token of the model; expected plain words")


def take_clouds(
    messages: Sequence[Mapping[str, Any]], further: Sequence[Any] | None = None, complete: bool = False
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Take the clouds out of a conversation.

    Parts without a cloud take `further` ones, in their order; with `complete`, a part that stays without is an error.

    Returns:
        The messages with lists of parts, without the clouds; and the clouds, in their order.
    """
    rest = list(further or ())
    plain = []
    clouds = []
    for message in messages:
        one_of("role of a message", message["role"], ROLES)
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        parts = []
        for part in content:
            if one_of("type of a part", part["type"], ("text", "point_cloud")) == "text":
                # Otherwise a question could add places of clouds that do not exist.
                if PLACE_MARK in part["text"]:
                    raise ValueError(f"a text has {PLACE_MARK!r} in it; expected a part of type 'point_cloud' instead")
                # Half of a surrogate pair, as JSON can hold, would fail deep inside the tokenizer.
                part["text"].encode()
                parts.append({"type": "text", "text": part["text"]})
                continue
            cloud = part.get("point_cloud")
            # A part may have the columns of its cloud itself.
            if cloud is None and any(part.get(name) is not None for name in ("points", "path", "bytes")):
                cloud = {name: value for name, value in part.items() if name != "type"}
            if cloud is None and rest:
                cloud = rest.pop(0)
            clouds.append(cloud)
            parts.append({"type": "point_cloud"})
        plain.append({"role": message["role"], "content": parts})
    # Places that neither had a cloud nor got one
    empty = sum(cloud is None for cloud in clouds)
    if rest or (complete and empty):
        total = len(further or ())
        places = empty + total - len(rest)
        raise ValueError(f"{places} places for point clouds and {total} clouds")
    return plain, clouds
