"""Evaluate the answers of a stage's model about unseen shapes, and whether they depend on the cloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_any3d.chat import clean_question, released_evaluation_answer
from hf_any3d.data.catalog.pointllm_annotations import CLASSIFICATION_QUESTIONS
from hf_any3d.evaluation.caption_metrics import caption_metrics
from hf_any3d.evaluation.llm_judge import ClassNameJudge
from hf_any3d.evaluation.llm_judge.verdicts import judge_answers, verdicts_path
from hf_any3d.evaluation.question_answering import PROTOCOLS, Generate, Protocol, answer_question, colored_cloud
from studies.chat_language import described_in_words
from studies.shape_conversations import (
    COLOR_QUESTION,
    DETAILED_QUESTIONS,
    PROPORTION_QUESTION,
    SECOND_QUESTION,
    described,
    named_color,
    named_proportion,
    object_id,
    reference_captions,
)
from studies.shape_facts import ShapeFacts

BATCH_SIZE = 48
GREEDY = {"max_new_tokens": 60, "do_sample": False}
_SAMPLED = PROTOCOLS["modelnet40-instruction"].settings
PUBLISHED = tuple(
    Protocol(name, question, "shapes", "class", _SAMPLED)
    for name, question in zip(("instruction", "completion"), CLASSIFICATION_QUESTIONS, strict=True)
)
"""The published questions with the published generation: two beams, sampling at a low temperature."""
CAPTION = Protocol("caption", DETAILED_QUESTIONS[0], "shapes", "caption", GREEDY)
METRICS = ("bleu-1", "bleu-4", "rouge-1", "rouge-l")
ASKED = {
    "color": (COLOR_QUESTION, named_color),
    "second": (SECOND_QUESTION, named_color),
    "proportion": (PROPORTION_QUESTION, named_proportion),
}
"""Facts that are asked for: the question, and the function that finds the fact in an answer."""
DESCRIBED = ("proportion", "second", "upper", "lower")
"""Facts that are looked for in detailed descriptions."""


def evaluation_rows(test: Dataset, facts: Sequence[ShapeFacts]) -> Dataset:
    """Build test rows for the protocols: `object_id`, `points`, `colors` from 0 to 1, `label`, `caption`."""
    test = test.with_format("numpy")
    names = test.features["label"].names
    rows = Dataset.from_dict(
        {
            "object_id": [object_id("test", number) for number in range(len(test))],
            "points": [row["points"] for row in test],
            "colors": [row["colors"] / np.float32(255) for row in test],
            "label": [int(row["label"]) for row in test],
            "caption": [reference_captions(one)["detailed_description"] for one in facts],
        }
    )
    return rows.cast_column("label", ClassLabel(names=names)).with_format("numpy")


def answer_function(pipe: Any, template: str) -> Generate:
    """Return the function that protocols call for answers, with a template of the model's processor."""

    def generate(clouds: Sequence[np.ndarray], question: str, settings: Mapping[str, Any]) -> list[str]:
        # Questions are cleaned like those in training.
        text = clean_question(question) if template == "training" else question
        answers = pipe(list(clouds), text=text, chat_template=template, batch_size=len(clouds), **settings)
        return [texts[0]["generated_text"] for texts in answers]

    return generate


def evaluate_stage(
    model_dir: Path, rows: Dataset, facts: Sequence[ShapeFacts], folder: Path, seed: int
) -> dict[str, Any]:
    """Evaluate a stage's model on test shapes.

    Args:
        model_dir: Directory of the model and its processor.
        rows: Result of `evaluation_rows`.
        facts: Facts about each.
        folder: Where answers are stored.
        seed: Seed of sampling and noise.

    Returns:
        `instruction` and `completion`, also with the suffix `_evaluation`: shares of answers that name the class;
        `asked_color`, `asked_second` and `asked_proportion`: shares of right answers to the questions of `ASKED`;
        caption metrics; the controls; `experts`: see `expert_answers`, None for a model without query experts.
    """
    pipe = pipeline("point-cloud-text-to-text", model=str(model_dir), device="cpu")
    about = {"model": str(model_dir), "revision": None}
    judge = ClassNameJudge(rows.features["label"].names)
    scores: dict[str, Any] = {}
    for template, suffix in (("training", ""), ("evaluation", "_evaluation")):
        for protocol in PUBLISHED:
            path = folder / f"{protocol.name}{suffix}.json"
            ask = answer_function(pipe, template)
            answers = answer_question(rows, protocol, ask, path, about, None, BATCH_SIZE, seed)
            judged = judge_answers(answers, "class", judge, verdicts_path(path, judge), protocol.class_names(rows))
            right = sum(entry["score"] for entry in judged["results"] if entry["is_valid"])
            scores[f"{protocol.name}{suffix}"] = right / len(rows)
    ask = answer_function(pipe, "training")
    clouds = [colored_cloud(row) for row in rows]
    scores |= {f"asked_{what}": share for what, share in asked(ask, clouds, facts).items()}
    captions = answer_question(rows, CAPTION, ask, folder / "caption.json", about, None, BATCH_SIZE, seed)
    metrics = caption_metrics(captions["results"], None, None)
    scores |= {name: metrics[name]["score"] / 100 for name in METRICS}
    scores |= controls(ask, clouds, rows, judge, seed)
    scores["experts"] = expert_answers(pipe, clouds, rows, facts, judge)
    return scores


def asked(ask: Generate, clouds: Sequence[np.ndarray], facts: Sequence[ShapeFacts]) -> dict[str, float]:
    """Compute the share of right answers to each question of `ASKED`, greedy.

    A shape of one color has no second one: an answer is right about that if it names no color.
    """
    found = {what: map(find, _greedy(ask, clouds, question)) for what, (question, find) in ASKED.items()}
    return {
        what: _mean(one == getattr(fact, what) for one, fact in zip(named, facts, strict=True))
        for what, named in found.items()
    }


def controls(
    ask: Generate, clouds: Sequence[np.ndarray], rows: Dataset, judge: ClassNameJudge, seed: int
) -> dict[str, float]:
    """Compare greedy answers to "What is this?" for the right cloud and for wrong ones.

    Returns:
        `greedy`: share of answers that name the class; `swapped_cloud` and `swapped_own`: shares that name the class
        of the shown cloud and of the shape itself, when a cloud of another class is shown; `black`: share without
        colors; `noise`: share with random points and colors.
    """
    labels = np.asarray(rows["label"])
    random = np.random.default_rng(seed)
    partners = partners_of(labels, random)
    black = [np.concatenate([cloud[:, :3], np.zeros_like(cloud[:, 3:])], axis=1) for cloud in clouds]
    noise = [random.random(cloud.shape, np.float32) for cloud in clouds]
    own = _named(judge, _greedy(ask, clouds, CLASSIFICATION_QUESTIONS[0]))
    swapped = _named(judge, _greedy(ask, [clouds[number] for number in partners], CLASSIFICATION_QUESTIONS[0]))
    return {
        "greedy": _mean(own == labels),
        "swapped_cloud": _mean(swapped == labels[partners]),
        "swapped_own": _mean(swapped == labels),
        "black": _mean(_named(judge, _greedy(ask, black, CLASSIFICATION_QUESTIONS[0])) == labels),
        "noise": _mean(_named(judge, _greedy(ask, noise, CLASSIFICATION_QUESTIONS[0])) == labels),
    }


def partners_of(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Choose a shape of another class for each shape, as indices `(shapes,)`."""
    return np.array([random.choice(np.flatnonzero(labels != label)) for label in labels])


@torch.no_grad()
def expert_answers(
    pipe: Any, clouds: Sequence[np.ndarray], rows: Dataset, facts: Sequence[ShapeFacts], judge: ClassNameJudge
) -> list[dict[str, float]] | None:
    """Find out what each query expert is used for, and what it answers alone.

    Returns:
        For each expert the share of the clouds that it is chosen for (`chosen`) and the shares of right greedy answers
        with its queries alone: `class`, and those of `asked`. None for a model without a sparse router.
    """
    model = pipe.model
    if not model.config.use_query_experts or model.config.router != "sparse":
        return None
    points = torch.from_numpy(np.stack(pipe.processor.read_points(list(clouds))))
    chosen = torch.cat([model.bridge.experts.route(model.encode(part)).index for part in points.split(BATCH_SIZE)])
    counts = torch.bincount(chosen.flatten(), minlength=model.config.num_query_experts)
    shares = (counts / len(clouds)).tolist()
    ask, labels, queries = answer_function(pipe, "training"), np.asarray(rows["label"]), model.bridge.experts.queries
    first = queries[0].clone()
    model.config.use_query_experts = False  # the first set answers alone
    experts = []
    for share, own in zip(shares, [first, *(one.clone() for one in queries[1:])], strict=True):
        queries[0].copy_(own)
        named = _named(judge, _greedy(ask, clouds, CLASSIFICATION_QUESTIONS[0]))
        experts.append({"chosen": share, "class": _mean(named == labels), **asked(ask, clouds, facts)})
    queries[0].copy_(first)
    model.config.use_query_experts = True
    return experts


@torch.no_grad()
def evaluate_language_model(language: Path, rows: Dataset, facts: Sequence[ShapeFacts]) -> dict[str, float]:
    """Evaluate the language model without clouds: with nothing in their place, and with all facts in words.

    Returns:
        `instruction`, `asked_…` and caption metrics, as in `evaluate_stage`, with nothing in place of the cloud, where
        it gives the same answer for every shape. `read_…`: shares of right facts in descriptions (`DESCRIBED`) with
        the facts in place of the cloud: a limit for answers about clouds.
    """
    model, tokenizer = AutoModelForCausalLM.from_pretrained(language).eval(), AutoTokenizer.from_pretrained(language)

    def answers(words: Sequence[str], question: str) -> list[str]:
        begin, end = f"{tokenizer.bos_token}[INST] <PC>", f"</PC> {clean_question(question)}  [/INST]"
        # The parts are tokenized one by one, as in training.
        ids = [[token for part in (begin, own, end) for token in _ids(tokenizer, part)] for own in words]
        batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
        generated = model.generate(**batch, pad_token_id=tokenizer.pad_token_id, **GREEDY)
        texts = tokenizer.batch_decode(generated[:, batch["input_ids"].shape[1] :])
        return [released_evaluation_answer(text) for text in texts]

    (kind_answer,), (caption,) = answers([""], CLASSIFICATION_QUESTIONS[0]), answers([""], CAPTION.question)
    kind = _named(ClassNameJudge(rows.features["label"].names), [kind_answer])
    captions = caption_metrics([item | {"model_output": caption} for item in CAPTION.items(rows)], None, None)
    found = {what: find(answers([""], question)[0]) for what, (question, find) in ASKED.items()}
    random = Random(0)
    read = [described(text) for text in answers([described_in_words(one, random) for one in facts], CAPTION.question)]
    return {
        "instruction": _mean(np.asarray(rows["label"]) == kind),
        **{f"asked_{what}": _mean(getattr(one, what) == named for one in facts) for what, named in found.items()},
        **{name: captions[name]["score"] / 100 for name in METRICS},
        **{
            f"read_{what}": _mean(one[what] == getattr(fact, what) for one, fact in zip(read, facts, strict=True))
            for what in DESCRIBED
        },
    }


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _greedy(ask: Generate, clouds: Sequence[np.ndarray], question: str) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(clouds), BATCH_SIZE):
        texts += [
            released_evaluation_answer(text) for text in ask(clouds[start : start + BATCH_SIZE], question, GREEDY)
        ]
    return texts


def _named(judge: ClassNameJudge, texts: Sequence[str]) -> np.ndarray:
    """Return the number of the class that each text names first, -1 for none."""
    return np.array([int(judge(text).split("#")[0]) for text in texts])


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
