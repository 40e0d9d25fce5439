"""The classification program, from its arguments to the pushed repository."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import pipeline
from typer.testing import CliRunner

from examples import run_point_cloud_classification
from hf_any3d import AutoModelForPointCloudClassification, PointCloudProcessor, load_point_dataset
from hf_any3d.cli import app
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.utils.metric_names import metric_value
from tests.examples.act_runs import assert_equal_weights, weights_in
from tests.examples.conftest import SMALL, python_blocks, words_of

FILES = Path(__file__).resolve().parents[1] / "files"
FEW = {**SMALL, "max_train_samples": 32, "max_eval_samples": 16}


@pytest.fixture
def run(tiny_encoder, tmp_path):
    """Run the program with small settings and further ones; returns the report."""

    def start(output_dir="run", **settings):
        settings = {"encoder_name_or_path": tiny_encoder, "output_dir": str(tmp_path / output_dir), **FEW, **settings}
        return run_point_cloud_classification.main(words_of(settings))

    return start


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["guided_adapter", "none"])
def test_pushed_repository_is_small_and_all_entry_points_give_equal_logits(hub, run, tmp_path, monkeypatch, peft):
    name = f"me/script-{peft.replace('_', '-')}"
    report = run(peft=peft, augment=["scale", "rotate:limit=0.5"], push_to_hub=True, hub_model_id=name)
    assert 0 < report.trained_parameters < report.total_parameters
    files = hub.files(name)
    assert sum(files.values()) <= 3 * 4 * report.trained_parameters + 100_000
    assert {"config.json", "preprocessor_config.json", "README.md", "metrics.json"} <= files.keys()
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    stored = {key: tensor.numel() for key, tensor in weights_in(tmp_path / "run").items()}
    parameters = sum(size for key, size in stored.items() if not key.endswith(buffers))
    assert parameters == report.trained_parameters, stored

    points = PointCloudProcessor.from_pretrained(name)(str(FILES / "chair.ply"))["points"]
    remote, local = (AutoModelForPointCloudClassification.from_pretrained(x) for x in (name, tmp_path / "run"))
    with torch.no_grad():
        expected = local(points).logits
        torch.testing.assert_close(remote(points).logits, expected, rtol=0, atol=1e-6)

    # The card's own examples, as a reader would run them beside a file of theirs.
    monkeypatch.chdir(FILES)
    seen = {}
    blocks = python_blocks(hub.content(name, "README.md").decode())
    assert len(blocks) == (2 if peft == "none" else 3)
    for block in blocks:
        exec(block, seen)
    torch.testing.assert_close(seen["logits"], expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(seen["model"](points).logits, expected, rtol=0, atol=1e-6)
    scores = {answer["label"]: answer["score"] for answer in seen["classify"]("chair.ply", top_k=18)}
    probabilities = expected.softmax(-1)[0]
    for number, label in local.config.id2label.items():
        assert scores[label] == pytest.approx(float(probabilities[number]), abs=1e-6)


@pytest.mark.slow
def test_pipeline_reaches_the_reported_test_accuracy(run, tmp_path):
    report = run(num_train_epochs=3, augment=["scale"])
    rows = load_point_dataset("shapes", split="test").select(range(FEW["max_eval_samples"]))
    answers = pipeline("point-cloud-classification", model=str(tmp_path / "run"))(rows["points"], batch_size=5)
    names = rows.features["label"].names
    right = [names[label] == answer[0]["label"] for label, answer in zip(rows["label"], answers, strict=True)]
    assert np.mean(right) == pytest.approx(report.metrics["test"]["accuracy"])
    by_class = report.class_accuracy["test"]
    assert set(by_class) == {names[label] for label in rows["label"]}
    assert np.mean(list(by_class.values())) == pytest.approx(report.metrics["test"]["mean_class_accuracy"])


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_results")
def test_metrics_file_and_card_describe_the_run(run, tmp_path, hub):
    report = run(peft="lora", peft_config={"r": 3}, num_layers=1, num_train_epochs=2)
    assert RunReport.load(tmp_path / "run" / "metrics.json") == report
    results = (tmp_path / "run" / "results.html").read_text(encoding="utf-8")
    assert "Confusion matrix: test" in results
    assert metric_value("accuracy", report.metrics["test"]["accuracy"]) in results
    table = (tmp_path / "run" / "class_scores.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 1 + len({name for split in report.class_accuracy.values() for name in split})
    assert (tmp_path / "run" / "results.png").is_file()
    assert report.adapter["method"] == "lora" and report.adapter["settings"]["r"] == 3
    assert report.encoder["layers"] == 1
    assert report.encoder["revision"] == hub.commits("me/tiny-bert")[-1]
    assert report.data["rows"] == {"train": 32, "validation": 16, "test": 16}
    assert report.training["seed"] == 3 and report.training["steps"] == 8
    assert 0 < report.seconds["training"] < report.seconds["total"]
    assert report.peak_memory["process"] > 100e6
    assert report.selection["step"] in (4, 8)
    assert report.selection["value"] == pytest.approx(report.metrics["validation"]["accuracy"])

    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.library_name == "hf_any3d"
    assert card.data.pipeline_tag == "point-cloud-classification"
    assert card.data.base_model == "me/tiny-bert" and card.data.base_model_relation == "adapter"
    assert "lora" in card.data.tags
    results = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert results["test", "accuracy"] == report.metrics["test"]["accuracy"]
    assert results["validation", "mean_class_accuracy"] == report.metrics["validation"]["mean_class_accuracy"]
    for fact in (
        f"{report.trained_parameters:,}",
        report.encoder["checksum"],
        "seed 3",
        "peak memory",
        "learning rate",
    ):
        assert fact in card.text, fact


@pytest.mark.slow
def test_test_split_selects_nothing(run, tmp_path):
    shapes = load_point_dataset("shapes")
    shapes["train"].select(range(40)).to_parquet(tmp_path / "train.parquet")
    shapes["train"].select(range(40, 70)).to_parquet(tmp_path / "validation.parquet")
    shapes["test"].select(range(10)).to_parquet(tmp_path / "a.parquet")
    shapes["test"].select(range(70, 80)).to_parquet(tmp_path / "b.parquet")
    files = {f"{split}_file": str(tmp_path / f"{split}.parquet") for split in ("train", "validation")}
    one = run("one", **files, test_file=str(tmp_path / "a.parquet"), num_train_epochs=3)
    two = run("two", **files, test_file=str(tmp_path / "b.parquet"), num_train_epochs=3)
    assert one.data["validation"] == "the dataset's own split"
    assert one.metrics["test"] != two.metrics["test"]
    assert one.metrics["validation"] == two.metrics["validation"]
    assert_equal_weights(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (
            {"peft": "prompt_tuning"},
            ValueError,
            "prompt_tuning does not fit .*; expected one of .*lora",
        ),
        ({"peft": "lora", "peft_config": {"rank": 3}}, TypeError, "'rank'"),
        ({"test_file": "x.parquet"}, ValueError, "need --train_file"),
        (
            {"train_file": "x.parquet", "data_dir": "data"},
            ValueError,
            "--data_dir data and --train_file exclude",
        ),
        ({"resume_from_checkpoint": "true"}, FileNotFoundError, "no complete checkpoint to resume from"),
        ({"resume_from_checkpoint": "elsewhere"}, FileNotFoundError, "elsewhere: no such checkpoint"),
        ({"processor_config": {"num_points": 3}}, TypeError, "num_points"),
        ({"select_on_test": True}, ValueError, "--select_on_test needs a test split"),
    ],
)
def test_wrong_arguments_are_named(run, settings, error, text):
    with pytest.raises(error, match=text):
        run(**settings)


@pytest.mark.slow
def test_voting_is_reported_separately_and_reproduced_by_evaluate(run, tmp_path):
    chain = ["scale:low=0.5,high=2,per_axis=True"]
    report = run(voting=3, vote_augment=chain)
    assert set(report.metrics) == {"validation", "test", "test_voting"}
    assert report.metrics["test"] != report.metrics["test_voting"]
    assert set(report.class_accuracy["test_voting"]) == set(report.class_accuracy["test"])
    text = (tmp_path / "run" / "README.md").read_text()
    assert "| test_voting | " in text and "| votes | 3 |" in text and "per_axis=True" in text
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert {result.dataset_split for result in card.data.eval_results} == {"validation", "test"}

    words = ["evaluate", str(tmp_path / "run"), "--dataset", "shapes", "--max-samples", "16", "--cpu", "--json"]
    words += ["--voting", "3", "--vote-augment", *chain, "--seed", "3"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["metrics"].keys() == {"test", "test_voting"}
    for split, metrics in found["metrics"].items():
        assert metrics == pytest.approx(report.metrics[split], rel=1e-4), split
        assert found["class_accuracy"][split] == pytest.approx(report.class_accuracy[split])

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset_name: shapes\nlearning_rate: 1.0\n")
    words = ["evaluate", str(tmp_path / "run"), "--recipe", str(recipe), "--max-samples", "16", "--cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0 and "test_voting" not in result.stdout
    assert f"accuracy {100 * report.metrics['test']['accuracy']:.2f} %" in result.stdout
