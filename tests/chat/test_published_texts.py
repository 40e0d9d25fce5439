"""Every stored text of the released programs, reproduced exactly."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from hf_any3d import PointCloudProcessor
from hf_any3d.chat import (
    RELEASED_POINTS,
    MiniGPT3DProcessor,
    clean_question,
    released_answer,
    released_evaluation_answer,
    training_messages,
)
from hf_any3d.data.catalog.objaverse_captions import BROKEN_COLORS
from hf_any3d.data.catalog.pointllm_annotations import CAPTION_QUESTION, CLASSIFICATION_QUESTIONS, annotation_row
from tests.chat.tiny_tokenizers import BOS, character_tokenizer
from tests.reference.fill import points

TEXTS = json.loads((Path(__file__).parents[1] / "reference" / "minigpt3d_text.json").read_text())
ITEMS = TEXTS["dataset_items (by requested conversation type)"]


@pytest.fixture(scope="module")
def processor():
    return MiniGPT3DProcessor(PointCloudProcessor(**RELEASED_POINTS), character_tokenizer())


def rows_of(kind):
    rows = map(annotation_row, TEXTS["annotations"])
    return [row for row in rows if row["conversation_type"] == kind and row["object_id"] not in BROKEN_COLORS]


@pytest.mark.parametrize("kind", ITEMS)
def test_training_samples(processor, kind):
    rows = rows_of(kind)
    assert [row["object_id"] for row in rows] == [item["PC_id"] for item in ITEMS[kind]]
    for row, item in zip(rows, ITEMS[kind], strict=True):
        mark = item.get("connect_sym", "!@#")
        questions = item.get("conv_q", item.get("instruction_input")).split(mark)
        answers = item.get("conv_a", item.get("answer")).split(mark)
        released = [
            f"{BOS}[INST] {question} [/INST]{answer}###" for question, answer in zip(questions, answers, strict=True)
        ]
        messages = training_messages(row["conversations"])
        assert processor.apply_chat_template(messages, chat_template="training") == "".join(released)


@pytest.mark.parametrize(("text", "cleaned"), TEXTS["cleaner (input, output)"])
def test_cleaner(text, cleaned):
    assert clean_question(text) == cleaned


def test_training_prompts(processor):
    for row, (prompt,) in zip(rows_of("simple_description"), TEXTS["training_prompts"], strict=True):
        question = training_messages(row["conversations"])[:1]
        assert processor.apply_chat_template(question) == BOS + prompt


def test_evaluation_prompts(processor):
    stored = TEXTS["eval_questions_prompts"]
    assert [question for question, _ in stored] == [*CLASSIFICATION_QUESTIONS, CAPTION_QUESTION]
    for question, prompt in stored:
        content = [{"type": "point_cloud"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        assert processor.apply_chat_template(messages, chat_template="evaluation") == prompt


def test_demo_conversation(processor):
    chat = TEXTS["demo_chat"]
    messages = []
    for (question, reply), prompt in zip(chat["turns (user, reply)"], chat["prompt before each reply"], strict=True):
        parts = [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": parts if messages else [{"type": "point_cloud"}, *parts]})
        assert processor.apply_chat_template(messages, chat_template="demo") == prompt
        messages.append({"role": "assistant", "content": reply})


@pytest.mark.parametrize(
    ("decoded", "answer", "judged"), TEXTS["postprocess (decoded, after generate, after eval script)"]
)
def test_clean_up_of_answers(decoded, answer, judged):
    assert released_answer(decoded) == answer
    assert released_evaluation_answer(answer) == judged


def test_clouds(processor):
    cloud = points("minigpt3d_text", 1, 8192, 6)[0] * np.float32([2, 3, 0.5, 1, 1, 1]) + np.float32(
        [1, -2, 0.3, 0, 0, 0]
    )
    (ours,) = processor.read_points([cloud])
    stored = TEXTS["cloud"]
    rows = np.float32(stored["normalised_first_rows"])
    assert_allclose(ours[: len(rows)], rows, atol=1e-6)  # theirs took the mean in single precision
    assert_allclose(np.abs(ours).mean(dtype=np.float64), stored["normalised_mean_abs"], rtol=1e-6)
    assert_allclose(np.linalg.norm(ours[:, :3], axis=1).max(), stored["normalised_max_norm"], rtol=1e-6)
