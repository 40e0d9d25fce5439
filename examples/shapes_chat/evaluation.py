"""Ask a stage's model about unseen shapes, and compare its answers with the facts and with those of blind controls."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, pipeline

from examples.shapes_chat.conversations import (
    BRIEF_QUESTIONS,
    LARGEST_QUESTION,
    LOWER_QUESTION,
    PROPORTION_QUESTION,
    UPPER_QUESTION,
    WHERE_QUESTION,
    named_color,
    named_proportion,
    named_thirds,
)
from examples.shapes_chat.encoder import digits
from examples.shapes_chat.facts import ShapeFacts
from hf_any3d.chat import END_MARK, clean_question
from hf_any3d.evaluation.llm_judge import ClassNameJudge
from hf_any3d.evaluation.question_answering import colored_cloud
from hf_any3d.modeling.minigpt3d import merge_lora
from hf_any3d.utils.atomic_files import write_json

BATCH_SIZE = 48
TOKENS = 18


class Asked(NamedTuple):
    """A question that is asked about every shape.

    Attributes:
        text: The question; `{}` is a color of the shape.
        truth: The true answer, of the facts and that color.
        read: Finds it in an answer in words; classes are found by their names instead.
    """

    text: str
    truth: Callable[[ShapeFacts, str], str]
    read: Callable[[str], str | None] | None = None


ASKED = {
    "class": Asked(BRIEF_QUESTIONS[0], lambda one, _: one.label),
    "class, new words": Asked("Can you tell me which thing I am looking at?", lambda one, _: one.label),
    "largest": Asked(LARGEST_QUESTION, lambda one, _: one.color, named_color),
    "upper": Asked(UPPER_QUESTION, lambda one, _: one.upper, named_color),
    "upper, new words": Asked("Look at its top. Which color do you see?", lambda one, _: one.upper, named_color),
    "lower": Asked(LOWER_QUESTION, lambda one, _: one.lower, named_color),
    "proportion": Asked(PROPORTION_QUESTION, lambda one, _: one.proportion, named_proportion),
    "where": Asked(WHERE_QUESTION, lambda one, color: one.where(color), named_thirds),
}
"""Those with new words occur in no training conversation."""
Right = dict[str, str]
"""For each of `ASKED`, which shapes are answered correctly, a digit each."""


class Examination:
    """The questions about some shapes, their true answers, and verdicts about answers.

    Args:
        facts: Facts about the shapes.
        names: Names of all classes.
        seed: Seed of the colors that are asked for and of the shapes whose answers are swapped.
    """

    def __init__(self, facts: Sequence[ShapeFacts], names: Sequence[str], seed: int = 0):
        self.facts, self.names, self.judge = list(facts), list(names), ClassNameJudge(names)
        random = Random(seed)
        self.colors = [random.choice(one.colors_of_thirds) for one in self.facts]
        self.others = [self._others(number, random) for number in range(len(self.facts))]

    def _others(self, number: int, random: Random) -> tuple[int, int]:
        """Choose two shapes of another class: any, and one that is asked for the same color if there is one."""
        different = [n for n, one in enumerate(self.facts) if one.label != self.facts[number].label]
        same = [n for n in different if self.colors[n] == self.colors[number]]
        return random.choice(different), random.choice(same or different)

    def questions(self, what: str) -> list[str]:
        """Return the question about each shape."""
        return [ASKED[what].text.format(color) for color in self.colors]

    def truths(self, what: str) -> list[str]:
        """Return the true answer about each shape."""
        return [ASKED[what].truth(one, color) for one, color in zip(self.facts, self.colors, strict=True)]

    def read(self, what: str, answer: str) -> str | None:
        """Find what an answer in words says."""
        if (read := ASKED[what].read) is not None:
            return read(answer)
        number = int(self.judge(answer).split("#")[0])
        return self.names[number] if number >= 0 else None

    def right(self, answers: Mapping[str, Sequence[str]]) -> Right:
        """Judge answers about the shapes, in words."""
        return {
            what: digits(self.read(what, text) == truth for text, truth in zip(own, self.truths(what), strict=True))
            for what, own in answers.items()
        }

    def swapped(self, answers: Mapping[str, Sequence[str]]) -> Right:
        """Judge the answers to the same question about another shape each, as if its cloud were shown instead."""
        return self.right(
            {what: [own[pair["{}" in ASKED[what].text]] for pair in self.others] for what, own in answers.items()}
        )

    def main_color(self) -> Right:
        """Judge the true main color as the answer to all questions about a color."""
        asked = [what for what in ASKED if ASKED[what].read is named_color]
        return self.right({what: [one.color for one in self.facts] for what in asked})

    def blind(self, training: Sequence[ShapeFacts]) -> Right:
        """Judge the most frequent true answer about the training shapes to the same question, without any cloud."""
        right = {}
        for what, asked in ASKED.items():
            counts: dict[str, Counter[str]] = defaultdict(Counter)
            for one in training:
                colors = one.colors_of_thirds if "{}" in asked.text else [""]
                for color in colors:
                    counts[asked.text.format(color)][asked.truth(one, color)] += 1
            guesses = [counts[text].most_common(1)[0][0] for text in self.questions(what)]
            right[what] = digits(guess == truth for guess, truth in zip(guesses, self.truths(what), strict=True))
        return right


def answers_of(
    pipe: Any, clouds: Sequence[np.ndarray], questions: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Ask a model several questions about each cloud, greedily; what prompts have in common is processed once.

    Args:
        pipe: A `pipeline("point-cloud-text-to-text")`.
        clouds: Clouds `(points, 6)`.
        questions: For each name, the question about each cloud.
    """
    processor, answerer = pipe.processor, pipe.answerer
    settings = pipe.generate_settings({"max_new_tokens": TOKENS, "do_sample": False, "num_beams": 1})
    answers: dict[str, list[str]] = {what: [] for what in questions}
    for start in range(0, len(clouds), BATCH_SIZE):
        some = clouds[start : start + BATCH_SIZE]
        features = answerer.features(processor.read_points(some))
        cache, before = None, None
        for what, texts in questions.items():
            prompts = processor.prompts(
                [_question(cloud, text) for cloud, text in zip(some, texts[start:], strict=False)], None, read=False
            )
            rows = [prompt.input_ids for prompt in prompts]
            longest, shortest = max(map(len, rows)), min(map(len, rows))
            if cache is not None and before is not None and longest == shortest:
                columns = zip(*before, *rows, strict=False)
                shared = next(number for number, column in enumerate(columns) if len(set(column)) > 1)
                cache.crop(shared - cache.get_seq_length())
            else:
                cache = DynamicCache(config=pipe.model.config.get_text_config())
            generated = answerer.generate(prompts, settings, features, cache)
            answers[what] += processor.decode_answers(generated[:, longest:])
            before = rows if longest == shortest else None  # prompts with padding have no common beginning
    return answers


def _question(cloud: np.ndarray, text: str) -> list[dict[str, Any]]:
    parts = [{"type": "point_cloud", "point_cloud": cloud}, {"type": "text", "text": clean_question(text)}]
    return [{"role": "user", "content": parts}]


def evaluate_stage(model_dir: Path, rows: Dataset, exam: Examination, asked: Sequence[str]) -> dict[str, Right]:
    """Evaluate a stage's model on test shapes.

    Args:
        model_dir: Directory of the model and its processor; the answers are stored beside it.
        rows: Test shapes.
        exam: The questions.
        asked: Which of `ASKED` are asked.

    Returns:
        Lists of right answers (`Right`): `own`, `swapped` (the answers about another cloud), and `language` (the same
        language model with nothing in place of the cloud).
    """
    pipe = pipeline("point-cloud-text-to-text", model=str(model_dir), device="cpu")
    merge_lora(pipe.model)
    clouds = [colored_cloud(row) for row in rows.with_format("numpy")]
    questions = {what: exam.questions(what) for what in asked}
    answers = answers_of(pipe, clouds, questions)
    write_json(model_dir.with_name("answers.json"), answers)
    prompts = {
        text: f"[INST] <PC></PC> {clean_question(text)}  [/INST]" for texts in questions.values() for text in texts
    }
    language = _answers_alone(pipe.model.language_model, pipe.tokenizer, prompts)
    return {
        "own": exam.right(answers),
        "swapped": exam.swapped(answers),
        "language": exam.right({what: [language[text] for text in texts] for what, texts in questions.items()}),
    }


def evaluate_language_model(language: Path, exam: Examination) -> Right:
    """Ask the pretrained language model, before any stage, the same questions by its own chat template."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(language).eval(), AutoTokenizer.from_pretrained(language)
    questions = {what: exam.questions(what) for what in ASKED}
    prompts = {
        text: tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for texts in questions.values()
        for text in texts
    }
    answers = _answers_alone(model, tokenizer, prompts)
    return exam.right({what: [answers[text] for text in texts] for what, texts in questions.items()})


@torch.no_grad()
def _answers_alone(model: Any, tokenizer: Any, prompts: Mapping[str, str]) -> dict[str, str]:
    """Answer each question once, greedily, without a cloud."""
    batch = tokenizer(list(prompts.values()), padding=True, padding_side="left", return_tensors="pt")
    generated = model.generate(**batch, max_new_tokens=TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(generated[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return {question: text.split(END_MARK)[0].strip() for question, text in zip(prompts, texts, strict=True)}
