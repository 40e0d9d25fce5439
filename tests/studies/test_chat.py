"""The study of MiniGPT-3D: every step of a seed, what is stored, and that stored steps are not repeated."""

from dataclasses import replace

import pytest
import torch
import yaml
from datasets import DatasetDict

from hf_any3d.chat import MiniGPT3DProcessor
from hf_any3d.data import load_point_dataset
from hf_any3d.processing.point_clouds import PointCloudProcessor
from studies import chat, chat_encoder, chat_evaluation, chat_language, chat_steps
from studies.shape_facts import all_facts
from studies.tables import read_table
from tests.errors import raises
from tests.examples.conftest import EXAMPLES

ENCODER = {"num_groups": 8, "group_size": 8, "patch_widths": [8, 8, 16], "hidden_size": 16, "num_hidden_layers": 1}
LANGUAGE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
FEW = {"max_steps": 2, "warmup_steps": 1}


@pytest.fixture(scope="module")
def few_shapes():
    splits = load_point_dataset("shapes")
    return DatasetDict(train=splits["train"].select(range(0, 433, 18)), test=splits["test"].select(range(0, 141, 20)))


@pytest.fixture
def tiny(few_shapes, tmp_path, monkeypatch):
    """Parts and recipes of short runs, on a few shapes."""
    brief = {"max_new_tokens": 3}
    monkeypatch.setattr(chat_evaluation, "GREEDY", chat_evaluation.GREEDY | brief)
    caption, published = chat_evaluation.CAPTION, chat_evaluation.PUBLISHED
    shorter = [replace(one, settings={**one.settings, "min_new_tokens": 1, **brief}) for one in published]
    monkeypatch.setattr(chat_evaluation, "PUBLISHED", tuple(shorter))
    monkeypatch.setattr(chat_evaluation, "CAPTION", replace(caption, settings={**caption.settings, **brief}))
    monkeypatch.setattr(chat_encoder, "ENCODER", {**chat_encoder.ENCODER, **ENCODER})
    monkeypatch.setattr(chat_encoder, "TRAINING", {**chat_encoder.TRAINING, "steps": 2, "batch_size": 8})
    monkeypatch.setattr(chat_language, "LANGUAGE", {**chat_language.LANGUAGE, **LANGUAGE})
    monkeypatch.setattr(chat_language, "TRAINING", {**chat_language.TRAINING, "steps": 2, "batch_size": 4})
    for file in (EXAMPLES / "recipes").glob("**/shapes_chat*.yaml"):
        settings = yaml.safe_load(file.read_text())
        if "stage" in settings:
            settings |= FEW | {"batch_sizes": [4] * len(settings["batch_sizes"])}
        (tmp_path / file.relative_to(EXAMPLES / "recipes")).parent.mkdir(exist_ok=True)
        (tmp_path / file.relative_to(EXAMPLES / "recipes")).write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(chat_steps, "RECIPES", tmp_path)
    monkeypatch.setattr(
        chat_steps, "load_point_dataset", lambda name, **rest: few_shapes if name == "shapes" else None
    )
    chat_steps.shapes.cache_clear()
    yield tmp_path / "out"
    chat_steps.shapes.cache_clear()


def test_every_step_of_a_seed_is_run_once_with_table_and_picture(tiny, monkeypatch):
    chat_steps.prepare(tiny)
    runs = chat.run_steps(1, tiny)
    assert [run["step"] for run in runs] == list(chat.STEPS)
    trained = {run["step"]: run["trained_parameters"] for run in runs if "trained_parameters" in run}
    assert trained["stage_1"] < trained["stage_2"] == trained["stage_3"] and trained["stage_4"] > 0
    for stage in chat.STAGES:
        (judged,) = chat.runs_of(runs, f"judge_{stage}")
        assert all(0 <= judged[name] <= 1 for name in chat.JUDGED)
        assert (judged["experts"] is not None) == (stage == 4)
    assert sum(expert["chosen"] for expert in judged["experts"]) == pytest.approx(2)
    chat.finish([1], tiny, clouds=2)
    summary = read_table(tiny / "chat_shapes.parquet")
    assert summary["seeds"] == [1] and len(summary["stages"]) == 4
    assert "| most frequent | no cloud |" in (tiny / "chat_shapes.md").read_text()
    assert (tiny / "chat_answers.png").stat().st_size
    monkeypatch.setattr(chat_steps, "_RUN", {})
    assert chat.run_steps(1, tiny) == runs
    with raises(ValueError, naming="'validation': False"):
        chat_steps.prepare(tiny, validation=True)


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
