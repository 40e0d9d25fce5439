"""What a stage's model says about shapes that it has not seen, and whether it says it because of the cloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from shape_conversations import COLOR_QUESTION, DETAILED_QUESTIONS, named_color, reference_captions
from shape_facts import ShapeFacts
from shape_tree import object_id
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_any3d.chat import clean_question, released_evaluation_answer
from hf_any3d.data.catalog.pointllm_annotations import CLASSIFICATION_QUESTIONS
from hf_any3d.evaluation import (
    PROTOCOLS,
    ClassNameJudge,
    Protocol,
    answer_question,
    caption_metrics,
    judge_answers,
    verdicts_path,
)
from hf_any3d.evaluation.question_answering import Generate, colored_cloud

BATCH_SIZE = 48
GREEDY = {"max_new_tokens": 60, "do_sample": False}
_SAMPLED = PROTOCOLS["modelnet40-instruction"].settings
PUBLISHED = tuple(
    Protocol(name, question, "shapes", "class", _SAMPLED)
    for name, question in zip(("instruction", "completion"), CLASSIFICATION_QUESTIONS, strict=True)
)
"""The published questions, answered as published: two beams, sampling at a low temperature."""
CAPTION = Protocol("caption", DETAILED_QUESTIONS[0], "shapes", "caption", GREEDY)
METRICS = ("bleu-1", "bleu-4", "rouge-1", "rouge-l")


def judged_rows(test: Dataset, facts: Sequence[ShapeFacts]) -> Dataset:
    """Test shapes as the protocols take them: `object_id`, `points`, `colors` from 0 to 1, `label`, `caption`."""
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


def asker(pipe: Any, template: str) -> Generate:
    """A model as the protocols ask it, with a template of its processor."""

    def generate(clouds: Sequence[np.ndarray], question: str, settings: Mapping[str, Any]) -> list[str]:
        # Questions are cleaned as those that the model was trained with.
        asked = clean_question(question) if template == "training" else question
        told = pipe(list(clouds), text=asked, chat_template=template, batch_size=len(clouds), **settings)
        return [texts[0]["generated_text"] for texts in told]

    return generate


def judge_stage(
    model_dir: Path, rows: Dataset, facts: Sequence[ShapeFacts], folder: Path, seed: int
) -> dict[str, Any]:
    """Ask a stage's model about test shapes.

    Args:
        model_dir: The model with its processor.
        rows: As `judged_rows` makes them.
        facts: What is true of each.
        folder: Answers go here.
        seed: Governs sampling and noise.

    Returns:
        `instruction` and `completion`, and the same with `_evaluation`, the share that names the class; `color`, that
        names the main colour; caption metrics; the controls; `experts`, how often each was chosen.
    """
    pipe = pipeline("point-cloud-text-to-text", model=str(model_dir), device="cpu")
    ask = asker(pipe, "training")
    about = {"model": str(model_dir), "revision": None}
    judge = ClassNameJudge(rows.features["label"].names)
    told: dict[str, Any] = {}
    for template, suffix in (("training", ""), ("evaluation", "_evaluation")):
        for protocol in PUBLISHED:
            path = folder / f"{protocol.name}{suffix}.json"
            answers = answer_question(rows, protocol, asker(pipe, template), path, about, None, BATCH_SIZE, seed)
            judged = judge_answers(answers, "class", judge, verdicts_path(path, judge), protocol.class_names(rows))
            told[f"{protocol.name}{suffix}"] = sum(
                entry["score"] for entry in judged["results"] if entry["is_valid"]
            ) / len(rows)
    clouds = [colored_cloud(row) for row in rows]
    colors = [named_color(text) for text in _greedy(ask, clouds, COLOR_QUESTION)]
    told["color"] = _mean(color == one.color for color, one in zip(colors, facts, strict=True))
    captions = answer_question(rows, CAPTION, ask, folder / "caption.json", about, None, BATCH_SIZE, seed)
    metrics = caption_metrics(captions["results"], None, None)
    told |= {name: metrics[name]["score"] / 100 for name in METRICS}
    told |= controls(ask, clouds, rows, judge, seed)
    told["experts"] = expert_use(pipe, clouds)
    return told


def controls(
    ask: Generate, clouds: Sequence[np.ndarray], rows: Dataset, judge: ClassNameJudge, seed: int
) -> dict[str, float]:
    """Greedy answers to "What is this?" with the right cloud and with wrong ones.

    Returns:
        `greedy`, the share of answers that name the class; `swapped_cloud` and `swapped_own`, with the cloud of a
        shape of another class in place of the own one, the shares that name the class of that cloud and the own;
        `black`, without colours; `noise`, the share with random points and colours.
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
    """For each shape the number of one of another class, `(shapes,)`."""
    return np.array([random.choice(np.flatnonzero(labels != label)) for label in labels])


@torch.no_grad()
def expert_use(pipe: Any, clouds: Sequence[np.ndarray]) -> list[float] | None:
    """Share of the clouds that each set of queries is chosen for; None where there is no choice."""
    model = pipe.model
    if not model.config.use_query_experts or model.config.router != "sparse":
        return None
    points = torch.from_numpy(np.stack(pipe.processor.read_points(list(clouds))))
    chosen = torch.cat([model.bridge.experts.route(model.encode(part)).index for part in points.split(BATCH_SIZE)])
    counts = torch.bincount(chosen.flatten(), minlength=model.config.num_query_experts)
    return (counts / len(clouds)).tolist()


@torch.no_grad()
def words_alone(language: Path, rows: Dataset, facts: Sequence[ShapeFacts]) -> dict[str, float]:
    """What a language model reaches that was never told of clouds, and so says the same of every shape.

    Returns:
        `instruction`, `color` and caption metrics, as `judge_stage` has them.
    """
    model, tokenizer = AutoModelForCausalLM.from_pretrained(language).eval(), AutoTokenizer.from_pretrained(language)

    def say(question: str) -> str:
        prompt = f"{tokenizer.bos_token}[INST] <PC></PC> {clean_question(question)}  [/INST]"
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        told = model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
        return released_evaluation_answer(tokenizer.decode(told[0, ids.shape[1] :]))

    kind = _named(ClassNameJudge(rows.features["label"].names), [say(CLASSIFICATION_QUESTIONS[0])])
    color, caption = named_color(say(COLOR_QUESTION)), say(CAPTION.question)
    captions = caption_metrics([item | {"model_output": caption} for item in CAPTION.items(rows)], None, None)
    return {
        "instruction": _mean(np.asarray(rows["label"]) == kind),
        "color": _mean(one.color == color for one in facts),
        **{name: captions[name]["score"] / 100 for name in METRICS},
    }


def _greedy(ask: Generate, clouds: Sequence[np.ndarray], question: str) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(clouds), BATCH_SIZE):
        texts += [
            released_evaluation_answer(text) for text in ask(clouds[start : start + BATCH_SIZE], question, GREEDY)
        ]
    return texts


def _named(judge: ClassNameJudge, texts: Sequence[str]) -> np.ndarray:
    """Numbers of the classes that texts name first, -1 for none."""
    return np.array([int(judge(text).split("#")[0]) for text in texts])


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
