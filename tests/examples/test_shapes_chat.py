"""The study of MiniGPT-3D: how answers are judged, and what a model gets to read."""

import numpy as np
import pytest

from examples.shapes_chat import evaluation as chat_evaluation
from examples.shapes_chat.facts import Part, ShapeFacts, all_facts
from examples.shapes_chat.steps import colored_shapes
from studies.generated_shapes import CLASSES
from tests.chat.tiny_chat_model import cloud, tiny_chat_pipeline


def shape(label: str, upper: str, lower: str) -> ShapeFacts:
    parts = tuple(Part(color, 0.5) for color in dict.fromkeys((upper, lower)))
    return ShapeFacts(label, parts, upper=upper, middle=lower, lower=lower, proportion="tall")


@pytest.fixture
def exam():
    shapes = [shape("chair", "red", "red"), shape("desk lamp", "red", "red"), shape("chair", "blue", "black")]
    return chat_evaluation.Examination(shapes, ["chair", "desk lamp"])


def test_answers_are_judged_by_class_color_and_thirds(exam):
    answers = {
        "class": ["A red chair.", "This is a lamp in red.", "A desk lamp."],
        "upper": ["The upper part is red.", "Red and blue.", "It is."],
        "where": ["The upper, the middle and the lower part are red.", "The upper part is red.", "No part is."],
    }
    assert exam.right(answers) == {"class": "100", "upper": "110", "where": "100"}
    # Swapped is the answer about a shape of another class, for "where" one that is asked for the same color.
    assert exam.others[0] == (1, 1) and exam.others[1] in {(0, 0), (2, 0)} and exam.others[2] == (1, 1)
    assert exam.main_color() == {"largest": "111", "upper": "111", "upper, new words": "111", "lower": "110"}
    assert exam.swapped(answers)["upper"][::2] == "10" and exam.swapped(answers)["where"] == "010"


def test_blind_guesses_come_from_the_training_shapes_by_question(exam):
    training = [shape("desk lamp", "black", "black"), shape("desk lamp", "blue", "red"), shape("chair", "blue", "red")]
    blind = exam.blind(training)
    assert blind["class"] == "010" and blind["upper"] == "001" and blind["proportion"] == "111"
    assert blind["where"][:2] == "00"  # red is below in both training shapes, and everywhere in these


def test_questions_with_a_common_beginning_are_answered_like_each_alone():
    pipe, clouds = tiny_chat_pipeline(), [cloud(1), cloud(2)]
    questions = {"a": ["What is this?"] * 2, "b": ["Which part is red?"] * 2, "c": ["Why?", "Which one is blue?"]}
    answers = chat_evaluation.answers_of(pipe, clouds, questions)
    for what, texts in questions.items():
        alone = [
            pipe(one, text=text.lower(), max_new_tokens=chat_evaluation.TOKENS, do_sample=False)[0]["generated_text"]
            for one, text in zip(clouds, texts, strict=True)
        ]
        assert answers[what] == alone


def test_generated_shapes_have_parts_of_different_colors():
    rows = colored_shapes("test", per_class=1)
    facts = all_facts(rows)[-len(CLASSES) :]
    assert {one.label for one in facts} == {name.replace("_", " ") for name in CLASSES}
    assert np.mean([len(one.parts) > 1 for one in facts]) > 0.7
    assert np.mean([one.upper != one.lower for one in facts]) > 0.5
