"""ACT's second stage, and all three stages in order."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import pipeline

from examples import run_act_autoencoder, run_act_pretraining, run_point_cloud_classification
from hf_any3d import ActForPointCloudClassification, ActForPreTraining
from hf_any3d.model_card.run_report import RunReport
from tests.examples.act_runs import AUTOENCODER, SHORT, STUDENT
from tests.examples.conftest import EXAMPLES, python_blocks, words_of


@pytest.fixture(scope="module")
def autoencoder(tiny_encoder, tmp_path_factory) -> str:
    """Directory of the first stage's model."""
    folder = tmp_path_factory.mktemp("stages") / "autoencoder"
    words = words_of(AUTOENCODER | {"teacher": tiny_encoder, "output_dir": str(folder), "max_steps": 4})
    run_act_autoencoder.main(words)
    return str(folder)


@pytest.fixture
def run(autoencoder, tmp_path):
    """Run the program with small settings and further ones; returns the report."""

    def start(output_dir="run", **settings):
        own = {"autoencoder": autoencoder, "output_dir": str(tmp_path / output_dir)}
        return run_act_pretraining.main(words_of(STUDENT | own | settings))

    return start


@pytest.mark.slow
def test_all_three_stages_run_in_order(run, tmp_path, autoencoder, tiny_encoder):
    report = run(probe_every=1)
    folder = tmp_path / "run"
    assert RunReport.load(folder / "metrics.json") == report
    assert {split: set(found) for split, found in report.metrics.items()} == {
        split: {"loss", "probe_accuracy"} for split in ("validation", "test")
    }
    assert report.encoder["name"] == tiny_encoder and report.start == {"autoencoder": autoencoder}
    history = json.loads((folder / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    # The checkpoint of the last step was written before the second epoch was looked at.
    assert [entry["epoch"] for entry in history if "eval_probe_accuracy" in entry] == [1]
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "point-cloud-feature-extraction" and "linear SVM" in card.text

    student = ActForPreTraining.from_pretrained(folder)
    tuned = tmp_path / "tuned"
    settings = {k: v for k, v in SHORT.items() if "save" not in k and "eval" not in k and "max" not in k}
    settings |= {"model_name_or_path": str(folder), "output_dir": str(tuned), "max_steps": 2, "max_train_samples": 32}
    report = run_point_cloud_classification.main(
        words_of(
            settings
            | {"tuning": "linear", "max_eval_samples": 12, "save_strategy": "no"}
            | {"eval_strategy": "no", "load_best_model_at_end": False}
        )
    )
    assert report.start == {"model": str(folder), "tuning": "linear"} and report.encoder == {}
    model = ActForPointCloudClassification.from_pretrained(tuned)
    features = 2 * model.config.hidden_size
    classes = model.config.num_labels
    assert report.trained_parameters == features * classes + classes + 2 * model.config.hidden_size
    # Frozen parts are what they were, statistics of their batch norms included.
    before, after = student.act.state_dict(), model.act.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after if not name.startswith("class_token"))
    assert pipeline("point-cloud-classification", model=str(tuned))(torch.randn(200, 3).numpy(), top_k=1)
    assert "started from" in (tuned / "README.md").read_text()


@pytest.mark.slow
def test_all_stages_run_from_the_hub(hub, run, autoencoder, tmp_path, monkeypatch, tiny_encoder):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(EXAMPLES / "data" / "chair.ply", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = AUTOENCODER | {"teacher": tiny_encoder, "max_steps": 1, "push_to_hub": True}
    words |= {"hub_model_id": "me/act-autoencoder", "output_dir": str(tmp_path / "autoencoder")}
    run_act_autoencoder.main(words_of(words))
    run(autoencoder="me/act-autoencoder", max_steps=1, push_to_hub=True, hub_model_id="me/act-pretrained")
    for repository, name in (("me/act-autoencoder", "reconstructions.html"), ("me/act-pretrained", "metrics.json")):
        files = hub.files(repository)
        assert {"config.json", "preprocessor_config.json", "README.md", "model.safetensors", name} <= files.keys()
        blocks = python_blocks(hub.content(repository, "README.md").decode())
        assert len(blocks) == 2
        for block in blocks:
            exec(block, {})
    # The teacher's weights stay in their own repository.
    held = load_file(tmp_path / "autoencoder" / "model.safetensors")
    assert not any(tensor.startswith("encoder.") for tensor in held)
