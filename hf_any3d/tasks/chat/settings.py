"""Settings of chat models."""

from __future__ import annotations

from dataclasses import dataclass

from hf_any3d.tasks.settings import setting

_ONE_TABLE = {"runs": "captions of many files are rows of `hf_any3d.many_files.caption`"}
_NO_SLIDER = {"demo": "its other settings are those of the released demo"}
_GREEDY = {"many_files": "captions are greedy, and `generation` has all that `generate` takes"}


@dataclass(frozen=True)
class ChatSettings:
    """Settings of `point-cloud-text-to-text`; further ones of `generate` are its arguments."""

    text: str | None = setting(
        None,
        "The question to ask.",
        refused={
            "command": "questions are typed, line by line",
            "service": "questions are among the `messages`, as in OpenAI's API",
            "demo": "questions are typed",
            **_ONE_TABLE,
        },
    )
    max_new_tokens: int = setting(
        256,
        "Maximum number of tokens in an answer.",
        low=1,
        defaults={"command": 200, "demo": 60},
        names={"service": "max_tokens"},
        refused=_ONE_TABLE,
    )
    num_beams: int = setting(
        1,
        "Beams.",
        low=1,
        refused={
            "command": "answers are streamed, and beams have no answer before the end",
            "service": "answers may be streamed, and beams have no answer before the end",
            **_ONE_TABLE,
        },
    )
    temperature: float = setting(
        0.2, "Sampling temperature; 0 for greedy decoding.", low=0, high=2, refused=_ONE_TABLE | _GREEDY
    )
    top_p: float = setting(
        0.9, "Probability mass for nucleus (top-p) sampling.", low=0, high=1, refused=_ONE_TABLE | _GREEDY | _NO_SLIDER
    )
    repetition_penalty: float = setting(
        1.05,
        "Repetition penalty; values above 1 make repetition less likely.",
        low=0.1,
        refused={"service": "it is none of OpenAI's API", **_ONE_TABLE, **_GREEDY, **_NO_SLIDER},
    )
    seed: int | None = setting(
        None, "Random seed, for reproducible answers.", argument=None, refused=_ONE_TABLE | _GREEDY | _NO_SLIDER
    )
