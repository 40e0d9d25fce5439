"""The zero-shot program, from its arguments to the pushed repository."""

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from transformers import pipeline

from examples import run_zero_shot
from hf_any3d import AutoModelForZeroShotPointCloudClassification, load_point_dataset
from hf_any3d.model_card.run_report import RunReport
from tests.examples.conftest import SMALL, python_blocks

FILES = Path(__file__).resolve().parents[1] / "files"
UNSEEN = ["chair", "lamp"]
TASK = "zero-shot-point-cloud-classification"
FEW = SMALL | {"max_train_samples": 60, "max_eval_samples": 24, "per_device_train_batch_size": 16}


@pytest.fixture
def run(sentence_encoder, tmp_path):
    """Run the program with small settings and further ones; returns the report."""

    def start(output_dir="run", **settings):
        settings = {
            "encoder_name_or_path": sentence_encoder,
            "output_dir": str(tmp_path / output_dir),
            "held_out_classes": UNSEEN,
            **FEW,
            **settings,
        }
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(settings))
        return run_zero_shot.main([str(path)])

    return start


@pytest.mark.slow
def test_examples_of_the_pushed_card_run(hub, run, tmp_path, monkeypatch):
    name = "me/zero-shot-script"
    report = run(caption_column="title", augment=["scale"], push_to_hub=True, hub_model_id=name)
    files = hub.files(name)
    assert sum(files.values()) <= 3 * 4 * report.trained_parameters + 100_000
    assert not [file for file in files if "tokenizer" in file]
    card = hub.content(name, "README.md").decode()
    monkeypatch.chdir(FILES)
    seen = {}
    blocks = python_blocks(card)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, seen)
    answers = seen["classify"]("chair.ply", candidate_labels=["chair", "lamp", "car"])
    shares = {answer["label"]: answer["score"] for answer in answers}
    expected = seen["logits"].softmax(dim=-1)[0].tolist()
    assert [shares[label] for label in ("chair", "lamp", "car")] == pytest.approx(expected, abs=1e-5)
    assert "## Limits" in card and "held-out classes | chair, lamp" in card
    assert ModelCard(card).data.pipeline_tag == TASK


@pytest.mark.slow
def test_held_out_classes_are_not_in_training_and_are_evaluated(run, tmp_path):
    report = run(augment=["scale"])
    assert RunReport.load(tmp_path / "run" / "metrics.json") == report
    shapes = load_point_dataset("shapes")
    names = shapes["train"].features["label"].names
    first = [names[label] for label in shapes["train"][: FEW["max_train_samples"]]["label"]]
    away = sum(name in UNSEEN for name in first)
    assert report.data["rows"] == {"train": 60 - away, "test": 24, "held_out": away} and away > 0
    assert set(report.class_accuracy["held_out"]) <= set(UNSEEN)
    assert report.metrics["held_out"]["unseen_chance"] == 1 / 2
    assert {"unseen_accuracy", "unseen_among_all", "seen_accuracy", "harmonic_mean"} <= set(report.metrics["test"])
    model = AutoModelForZeroShotPointCloudClassification.from_pretrained(tmp_path / "run")
    assert not set(UNSEEN) & set(model.config.id2label.values()) and len(model.config.id2label) == 16


@pytest.mark.slow
def test_pipeline_reaches_the_reported_accuracy(run, tmp_path):
    report = run(num_train_epochs=2, hypothesis_templates=["a {}", "the {}"])
    rows = load_point_dataset("shapes", split="test").select(range(FEW["max_eval_samples"]))
    names = rows.features["label"].names
    classify = pipeline(TASK, model=str(tmp_path / "run"), top_k=1)
    truth = [names[label] for label in rows["label"]]
    is_unseen = np.array([name in UNSEEN for name in truth])
    for labels, key in ((names, "among_all"), (None, "accuracy")):
        for kind, chosen in (("unseen", is_unseen), ("seen", ~is_unseen)):
            own = labels or [name for name in names if (name in UNSEEN) == (kind == "unseen")]
            clouds = [rows["points"][int(place)] for place in np.flatnonzero(chosen)]
            answers = classify(clouds, candidate_labels=own, batch_size=5)
            right = [
                one[0]["label"] == truth[place] for one, place in zip(answers, np.flatnonzero(chosen), strict=True)
            ]
            assert np.mean(right) == pytest.approx(report.metrics["test"][f"{kind}_{key}"])
