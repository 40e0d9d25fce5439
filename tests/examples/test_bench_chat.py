"""The run of MiniGPT-3D on shapes: every step of a seed, what is stored, and that it goes on where it stopped."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from datasets import DatasetDict

from hf_any3d.chat import MiniGPT3DProcessor
from hf_any3d.data import load_point_dataset
from hf_any3d.processing import PointCloudProcessor
from tests.examples.conftest import EXAMPLES, imported_beside_others

ENCODER = {"num_groups": 8, "group_size": 8, "patch_widths": [8, 8, 16], "hidden_size": 16, "num_hidden_layers": 1}
LANGUAGE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
FEW = {"max_steps": 2, "warmup_steps": 1}


@pytest.fixture(scope="module")
def bench():
    with imported_beside_others("bench_chat") as program:
        yield program


@pytest.fixture(scope="module")
def steps(bench):
    import chat_shapes

    return chat_shapes


@pytest.fixture(scope="module")
def few_shapes():
    splits = load_point_dataset("shapes")
    return DatasetDict(train=splits["train"].select(range(0, 433, 18)), test=splits["test"].select(range(0, 141, 20)))


@pytest.fixture
def tiny(bench, steps, few_shapes, tmp_path, monkeypatch):
    """Parts and recipes for runs of a moment, on a few shapes."""
    import chat_encoder
    import chat_judging
    import chat_language

    brief = {"max_new_tokens": 3}
    monkeypatch.setattr(chat_judging, "GREEDY", chat_judging.GREEDY | brief)
    caption, published = chat_judging.CAPTION, chat_judging.PUBLISHED
    shorter = [replace(one, settings={**one.settings, "min_new_tokens": 1, **brief}) for one in published]
    monkeypatch.setattr(chat_judging, "PUBLISHED", tuple(shorter))
    monkeypatch.setattr(chat_judging, "CAPTION", replace(caption, settings={**caption.settings, **brief}))
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
    monkeypatch.setattr(steps, "RECIPES", tmp_path)
    monkeypatch.setattr(steps, "load_point_dataset", lambda name, **rest: few_shapes if name == "shapes" else None)
    steps.shapes.cache_clear()
    yield tmp_path / "out"
    steps.shapes.cache_clear()


@pytest.mark.slow
def test_every_step_of_a_seed_is_run_tabled_and_drawn_once(bench, steps, tiny, monkeypatch):
    steps.prepare(tiny)
    runs = bench.run_steps(1, tiny)
    assert [run["step"] for run in runs] == list(bench.STEPS)
    trained = {run["step"]: run["trained_parameters"] for run in runs if "trained_parameters" in run}
    assert trained["stage_1"] < trained["stage_2"] == trained["stage_3"] and trained["stage_4"] > 0
    for stage in bench.STAGES:
        (judged,) = bench.of(runs, f"judge_{stage}")
        assert all(0 <= judged[name] <= 1 for name in bench.JUDGED)
        assert (judged["experts"] is not None) == (stage == 4)
    assert sum(judged["experts"]) == pytest.approx(2)
    bench.finish([1], tiny, clouds=2)
    summary = json.loads((tiny / "chat_shapes.json").read_text())
    assert summary["seeds"] == [1] and len(summary["stages"]) == 4
    assert "| most frequent | no cloud |" in (tiny / "chat_shapes.md").read_text()
    assert (tiny / "chat_answers.png").stat().st_size
    monkeypatch.setattr(steps, "_RUN", {})
    assert bench.run_steps(1, tiny) == runs


def test_a_step_depends_on_the_recipes_up_to_it(steps):
    assert set(steps.deciding_settings("encoder")) == {"encoder"}
    assert set(steps.deciding_settings("stage_2")) == {"encoder", "language", "stage_1", "stage_2"}
    assert steps.deciding_settings("judge_3") == steps.deciding_settings("stage_3")


def test_partners_are_of_another_class(bench):
    from chat_judging import partners_of

    labels = np.array([0, 0, 1, 2, 2])
    partners = partners_of(labels, np.random.default_rng(0))
    assert (labels[partners] != labels).all()


@pytest.fixture(scope="module")
def words(bench, few_shapes):
    from chat_language import WordsForClouds, texts_for_tokenizer, train_tokenizer
    from shape_tree import all_facts

    facts = all_facts(few_shapes["train"])
    tokenizer = train_tokenizer(texts_for_tokenizer(facts, 0, 50), 500)
    processor = MiniGPT3DProcessor(PointCloudProcessor(), tokenizer, num_query_tokens=1, point_token_id=len(tokenizer))
    return WordsForClouds(processor, facts, seed=0)


def test_the_language_model_learns_answers_and_sees_no_cloud(words):
    batch = words.batch(64)
    tokenizer = words.processor.tokenizer
    assert batch["input_ids"].max() < len(tokenizer)
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        text, answers = tokenizer.decode(ids[mask == 1]), tokenizer.decode(labels[labels >= 0])
        assert "<PC>" in text and "[/INST]" in text
        assert answers.endswith("###") and "[INST]" not in answers
    assert not torch.equal(batch["input_ids"], words.batch(64)["input_ids"])


def test_the_language_models_shapes_are_put_together_from_training_shapes(bench, few_shapes):
    from random import Random

    from chat_language import mixed_facts
    from shape_tree import all_facts

    facts = all_facts(few_shapes["train"])
    mixed = [mixed_facts(facts, Random(seed)) for seed in range(200)]
    assert {one.label for one in mixed} == {one.label for one in facts}
    assert any(one not in facts for one in mixed)


def test_an_encoder_learns_from_some_of_the_points_in_the_unit_sphere(bench, few_shapes):
    from chat_encoder import augmented, clouds_of

    clouds = clouds_of(few_shapes["test"])
    assert clouds.shape == (len(few_shapes["test"]), 1024, 6)
    shown = augmented(clouds)
    assert 512 <= shown.shape[1] <= 1024
    assert torch.allclose(shown[..., :3].norm(dim=-1).amax(dim=1), torch.ones(len(clouds)), atol=1e-5)
    assert shown[..., 3:].min() >= 0 and shown[..., 3:].max() <= 1
