"""The study of MiniGPT-3D: what its language model learns from."""

import pytest
import torch
from datasets import DatasetDict

from hf_any3d.chat import MiniGPT3DProcessor
from hf_any3d.data import load_point_dataset
from hf_any3d.processing.point_clouds import PointCloudProcessor
from studies import chat_language
from studies.shape_facts import all_facts


@pytest.fixture(scope="module")
def few_shapes():
    splits = load_point_dataset("shapes")
    return DatasetDict(train=splits["train"].select(range(0, 433, 18)), test=splits["test"].select(range(0, 141, 20)))


@pytest.fixture(scope="module")
def texts(few_shapes):
    facts = all_facts(few_shapes["train"])
    tokenizer = chat_language.train_tokenizer(chat_language.texts_for_tokenizer(facts, 0, 50), 500)
    processor = MiniGPT3DProcessor(PointCloudProcessor(), tokenizer, num_query_tokens=1, point_token_id=len(tokenizer))
    return chat_language.WordsForClouds(processor, facts, seed=0)


def test_language_model_learns_answers_and_gets_no_cloud(texts):
    batch = texts.batch(64)
    tokenizer = texts.processor.tokenizer
    assert batch["input_ids"].max() < len(tokenizer)
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        text, answers = tokenizer.decode(ids[mask == 1]), tokenizer.decode(labels[labels >= 0])
        assert "<PC>" in text and "[/INST]" in text
        assert answers.endswith("###") and "[INST]" not in answers
    assert not torch.equal(batch["input_ids"], texts.batch(64)["input_ids"])
