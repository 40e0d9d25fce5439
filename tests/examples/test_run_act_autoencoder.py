"""ACT's first stage: what it trains, logs, resumes and saves."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard

from examples import run_act_autoencoder
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.modeling.act import ActAutoencoder
from hf_any3d.processing.point_clouds import PointCloudProcessor
from tests.examples.act_runs import AUTOENCODER, assert_equal_weights, losses_of
from tests.examples.conftest import words_of


@pytest.fixture
def run(tiny_encoder, tmp_path):
    """Run the program with small settings and further ones; returns the report."""

    def start(output_dir="run", **settings):
        own = {"teacher": tiny_encoder, "output_dir": str(tmp_path / output_dir)}
        return run_act_autoencoder.main(words_of(AUTOENCODER | own | settings))

    return start


@pytest.mark.slow
def test_run_saves_a_model_a_card_and_a_report(run, tmp_path, tiny_encoder):
    report = run()
    assert set(report.metrics) == {"validation", "test"}
    for found in report.metrics.values():
        names = {"chamfer_l1", "chamfer_l2", "f_score", "loss", "codes_used", "code_perplexity"}
        assert set(found) == names and found["chamfer_l1"] > 0
        assert 1 <= found["code_perplexity"] <= found["codes_used"] <= 16
    assert report.selection["metric"] == "chamfer_l1"
    assert report.encoder["name"] == tiny_encoder and report.trained_parameters < report.total_parameters
    assert report.seconds["training"] > 0 and report.peak_memory["process"] > 0
    assert RunReport.load(tmp_path / "run" / "metrics.json") == report
    # The chosen weights are those of the step with the lowest distance, not of the last step.
    history = json.loads(next((tmp_path / "run").glob("checkpoint-*/trainer_state.json")).read_text())["log_history"]
    distances = [entry["eval_chamfer_l1"] for entry in history if "eval_chamfer_l1" in entry]
    assert report.metrics["validation"]["chamfer_l1"] <= min(distances) + 1e-6
    assert all("eval_code_perplexity" in entry for entry in history if "eval_chamfer_l1" in entry)

    model = ActAutoencoder.from_pretrained(tmp_path / "run").eval()
    processor = PointCloudProcessor.from_pretrained(tmp_path / "run")
    points = torch.randn(2, processor.num_points, 3)
    assert model(points).whole_fine.shape == (2, 8 * 8, 3)
    page = (tmp_path / "run" / "reconstructions.html").read_text()
    assert all(name in page for name in ("fine: CD-L1", "coarse: 16 points"))
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.pipeline_tag == "point-cloud-reconstruction" and card.data.base_model == tiny_encoder
    assert "first stage" in card.text and "CD-L1 × 1000" in card.text and "Classes:" not in card.text


@pytest.mark.slow
def test_resumed_run_has_the_losses_of_an_uninterrupted_one(run, tmp_path):
    step = 3  # amid an epoch
    # Codes that restart and are moving averages: their state and random numbers have to come back too.
    codes = {"code_scores": "distance", "quantizer": "nearest", "code_ema_decay": 0.9, "code_restart_share": 0.4}
    settings = {"save_steps": step, "eval_steps": step, "augment": ["scale"], "temperature_steps": 8}
    settings["model_config"] = AUTOENCODER["model_config"] | codes
    full = run("full", **settings)
    shutil.copytree(tmp_path / "full" / f"checkpoint-{step}", tmp_path / "resumed" / f"checkpoint-{step}")
    resumed = run("resumed", **settings)
    assert resumed.training["resumed_from"].endswith(f"checkpoint-{step}") and resumed.metrics == full.metrics
    last = f"checkpoint-{8 // step * step}"
    assert losses_of(tmp_path / "resumed" / last) == losses_of(tmp_path / "full" / last)
    assert_equal_weights(tmp_path / "resumed" / last, tmp_path / "full" / last)
    assert_equal_weights(tmp_path / "resumed", tmp_path / "full")


@pytest.mark.slow
def test_plain_and_random_teachers_are_stored_with_the_model(run, tmp_path):
    plain = run("plain", teacher="none", max_steps=1)
    assert plain.encoder == {} and ActAutoencoder.from_pretrained(tmp_path / "plain").encoder is None
    drawn = run("drawn", random_teacher=True, max_steps=1)
    assert drawn.encoder["name"] is None and drawn.encoder["model_type"] == "bert"
    model = ActAutoencoder.from_pretrained(tmp_path / "drawn")
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert "with random weights" in (tmp_path / "drawn" / "README.md").read_text()
