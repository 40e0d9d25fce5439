"""What the common suites ask and we refuse: one list, each entry with its error and its reason.

A suite wraps what it asks of a model class or method in `asking(question, subject)`. Where the pair stands in
`REFUSALS`, the block has to raise the documented error; everywhere else it has to pass. So a refusal that is lifted,
or that turns into another error, fails its test, and nothing is skipped in silence.

`python -m tests.common.refusals` prints the list as a table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from torch._dynamo.exc import TorchDynamoException


@dataclass(frozen=True)
class Refusal:
    """An error that stands for an answer.

    Args:
        error: Its type.
        match: A regular expression that its text holds.
        reason: Why it is refused.
    """

    error: type[Exception]
    match: str
    reason: str


QUESTIONS: dict[str, str] = {}
"""What the suites ask, by name; a refusal of a question that nobody asks fails."""
REFUSALS: dict[tuple[str, str], Refusal] = {}
"""By (question, name of a model class or method)."""


def question(name: str, meaning: str) -> str:
    """Add a question; for the suites, which then ask it by its name."""
    QUESTIONS[name] = meaning
    return name


def refuse(name: str, subjects: tuple[str, ...], error: type[Exception], match: str, reason: str) -> None:
    """Add refusals of one question for one reason."""
    for subject in subjects:
        REFUSALS[name, subject] = Refusal(error, match, reason)


def refusal_of(name: str, subject: str) -> Refusal | None:
    """The refusal of a pair, or None where it is answered.

    Raises:
        KeyError: If there is no such question.
    """
    if name not in QUESTIONS:
        raise KeyError(f"no question {name!r}; expected one of {', '.join(sorted(QUESTIONS))}")
    return REFUSALS.get((name, subject))


@contextmanager
def asking(name: str, subject: str) -> Iterator[bool]:
    """Run what is asked: it passes, or raises the documented error.

    Gives whether an answer is expected. Keep the block to what is asked, and compare answers behind it.
    """
    refusal = refusal_of(name, subject)
    if refusal is None:
        yield True
        return
    with pytest.raises(refusal.error, match=refusal.match):
        yield False


def table() -> str:
    """All refusals as a table in Markdown."""
    lines = ["| asked | of | answer | reason |", "|---|---|---|---|"]
    grouped: dict[tuple[str, Refusal], list[str]] = {}
    for (name, subject), refusal in REFUSALS.items():
        grouped.setdefault((name, refusal), []).append(subject)
    for (name, refusal), subjects in grouped.items():
        asked = f"{name}: {QUESTIONS[name]}" if name in QUESTIONS else name
        lines.append(f"| {asked} | {', '.join(subjects)} | `{refusal.error.__name__}` | {refusal.reason} |")
    return "\n".join(lines) + "\n"


# Models (tests/common/test_models.py)
_POINT_MODELS = (
    "ActModel",
    "ActForPointCloudClassification",
    "ActForSemanticSegmentation",
    "ActForPartSegmentation",
    "ActForPreTraining",
    "Any2PointModel",
    "Any2PointForPointCloudClassification",
    "Any2PointForSemanticSegmentation",
    "Any2PointForPartSegmentation",
    "Any2PointForZeroShotPointCloudClassification",
    "ActAutoencoder",
    "ImageBindAudioModel",
)
question("resize_token_embeddings", "a vocabulary of another size")
refuse(
    "resize_token_embeddings",
    _POINT_MODELS,
    ValueError,
    "has no token embeddings to resize",
    "tokens are made of points, or of sound",
)
question("device_map with disk", "weights left on disk while a model opens")
refuse(
    "device_map with disk",
    (
        "Any2PointModel",
        "Any2PointForPointCloudClassification",
        "Any2PointForSemanticSegmentation",
        "Any2PointForPartSegmentation",
        "Any2PointForZeroShotPointCloudClassification",
    ),
    ValueError,
    "the encoder comes from another repository",
    "transformers looks for them in the opened repository alone; accelerate.disk_offload works once a model is open",
)
question("return_dict", "tuples where the config says `return_dict=False`")
refuse(
    "return_dict",
    ("NormedPhiForCausalLM",),
    AttributeError,
    "last_hidden_state",
    "transformers' own language models do not run with this config; `return_dict=False` in the call is honoured",
)
question("problem_type", "several labels a point, or numbers")
refuse(
    "problem_type",
    (
        "ActForSemanticSegmentation",
        "ActForPartSegmentation",
        "Any2PointForSemanticSegmentation",
        "Any2PointForPartSegmentation",
    ),
    ValueError,
    "every point has one label",
    "segmentation is single label classification of points",
)
question("torch.compile", "one graph without breaks")
refuse(
    "torch.compile",
    ("MiniGPT3DForConditionalGeneration",),
    TorchDynamoException,
    "data-dependent",
    "clouds are checked against their places in the prompt; it compiles with breaks",
)
refuse(
    "torch.compile",
    ("ActAutoencoder",),
    TorchDynamoException,
    "(?i)data-dependent",
    "the nearest pairs of the loss are searched by what is found; it compiles with breaks",
)

# Generation (tests/common/test_generation.py)
question("static cache", "a cache of fixed size")
question("assisted generation", "a smaller model that drafts the answer")
refuse(
    "assisted generation",
    ("MiniGPT3DForConditionalGeneration",),
    ValueError,
    "point_features|places for point tokens",
    "transformers hands a helper the prompt without the clouds that stand in it; `prompt_lookup_num_tokens` works",
)
question("prompt lookup", "drafts out of the prompt")

# Adapters (tests/common/test_tuners.py)
_OURS = ("GUIDED_ADAPTER", "BITFIT", "PROMPT_TOKENS")
_ANY2POINT = (
    "Any2PointModel",
    "Any2PointForPointCloudClassification",
    "Any2PointForSemanticSegmentation",
    "Any2PointForPartSegmentation",
    "Any2PointForZeroShotPointCloudClassification",
)
_ACT = (
    "ActModel",
    "ActForPointCloudClassification",
    "ActForSemanticSegmentation",
    "ActForPartSegmentation",
    "ActForPreTraining",
)
_NO_POINT_TOKENS = ("ImageBindAudioModel", "NormedPhiModel", "NormedPhiForCausalLM")


def _pairs(methods: tuple[str, ...], models: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{method} on {model}" for method in methods for model in models)


refuse(
    "adapt",
    _pairs(_OURS, _NO_POINT_TOKENS),
    ValueError,
    "has no frozen encoder for point tokens",
    "our methods take hold of layers that point tokens pass; parts of models have PEFT's own methods",
)
refuse(
    "adapt",
    _pairs(_OURS, ("MiniGPT3DForConditionalGeneration",)),
    ValueError,
    "has several pretrained parts",
    "what trains beside an adapter has no default where all parts are pretrained; with modules_to_save it works",
)
refuse(
    "adapt",
    ("GUIDED_ADAPTER on ActAutoencoder",),
    ValueError,
    "do not get the positions of tokens",
    "the teacher inside an autoencoder gets no places of tokens, by which guidance goes",
)
refuse(
    "open",
    ("ActForPreTraining",),
    ValueError,
    "autoencoder_config is missing; build the model with from_autoencoder_pretrained",
    "an adapter's directory keeps the student; pretraining goes on from a whole checkpoint, teacher included",
)
refuse(
    "merge",
    ("GUIDED_ADAPTER", "PROMPT_TOKENS"),
    ValueError,
    r"cannot be merged into the encoder; use unload\(\) to remove",
    "what follows a non-linear layer, and tokens, are no change of its weights",
)
refuse(
    "unload",
    ("IA3", "VERA", "BOFT", "OFT"),
    AttributeError,
    "object has no attribute 'weight'",
    "PEFT 0.21.2 looks for a weight in whatever modules_to_save holds; LoRA, LN tuning and ours do not",
)
refuse(
    "adapter_names",
    _OURS,
    ValueError,
    "runs one adapter for a whole batch",
    "statistics, places and masks are those of a batch; PEFT itself would ignore the argument",
)
refuse(
    "task_type",
    _pairs(("CAUSAL_LM",), (*_ANY2POINT, *_ACT, "ActAutoencoder", "ImageBindAudioModel", "NormedPhiModel")),
    AttributeError,
    "has no attribute 'prepare_inputs_for_generation'",
    "models that write no text; PEFT and transformers' own encoders end in the same words",
)
refuse(
    "prompts",
    _pairs(("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"), (*_ANY2POINT, *_ACT, "ActAutoencoder")),
    ValueError,
    "learns embeddings of words, and .* reads none",
    "PEFT's prompts stand in front of embedded words; PROMPT_TOKENS puts prompts beside point tokens",
)
refuse(
    "prompts",
    _pairs(("PROMPT_TUNING", "P_TUNING"), ("MiniGPT3DForConditionalGeneration",)),
    ValueError,
    "in place of input_ids, which mark the places of clouds",
    "PEFT hands on embeddings without input_ids, so that clouds would be left out in silence",
)
refuse(
    "prompts",
    _pairs(("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"), ("ImageBindAudioModel",)),
    AttributeError,
    "has no attribute 'vocab_size'",
    "an encoder of spectrograms, as transformers' own audio and vision encoders end",
)


if __name__ == "__main__":
    sys.stdout.write(table())
