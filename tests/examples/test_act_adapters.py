"""PEFT methods on a pretrained point transformer: the pushed repository, its card and its entry points."""

import json
import shutil

import pytest
import torch

from examples import run_point_cloud_classification
from hf_any3d import ActModel, AutoModelForPointCloudClassification, PointCloudProcessor
from tests.examples.act_runs import SHORT
from tests.examples.conftest import EXAMPLES, python_blocks, words_of
from tests.tiny_act import tiny_act

SETTINGS = {k: v for k, v in SHORT.items() if "save" not in k and "eval_s" not in k} | {
    "max_steps": 2,
    "eval_strategy": "no",
    "save_strategy": "no",
    "validation_fraction": 0,
}


@pytest.mark.slow
def test_adapted_student_pushes_a_small_repository_whose_card_runs(hub, tmp_path, monkeypatch):
    tiny_act(ActModel).push_to_hub("me/student")
    words = {"model_name_or_path": "me/student", "peft": "guided_adapter", "output_dir": str(tmp_path / "run")}
    words |= {"push_to_hub": True, "hub_model_id": "me/adapted-student", "license": "mit"}
    report = run_point_cloud_classification.main(words_of(SETTINGS | words))
    assert (
        report.start == {"model": "me/student", "tuning": "adapter"} and report.adapter["method"] == "guided_adapter"
    )
    assert 0 < report.trained_parameters < report.total_parameters
    files = hub.files("me/adapted-student")
    assert {"adapter_model.safetensors", "config.json", "README.md", "preprocessor_config.json"} <= files.keys()
    assert not {"model.safetensors", "base/model.safetensors"} & files.keys()
    config = json.loads(hub.content("me/adapted-student", "config.json"))
    base = config["parts"]["base"]
    assert (base["name_or_path"], base["revision"]) == ("me/student", hub.commits("me/student")[-1])
    card = hub.content("me/adapted-student", "README.md").decode()
    assert "license: mit" in card and "base_model: me/student" in card

    shutil.copy(EXAMPLES / "data" / "chair.ply", tmp_path)
    monkeypatch.chdir(tmp_path)
    points = PointCloudProcessor.from_pretrained("me/adapted-student")("chair.ply")["points"]
    with torch.no_grad():
        expected = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "run")(points).logits
    seen = {}
    blocks = python_blocks(card)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, seen)
    torch.testing.assert_close(seen["logits"], expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(seen["model"](points).logits, expected, rtol=0, atol=1e-6)
