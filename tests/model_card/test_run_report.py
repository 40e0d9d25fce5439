"""Reports of training runs."""

import time

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters, package_versions, peak_memory
from hf_any3d.model_card.subject import adapter_facts
from hf_any3d.training.checkpoints import checkpoint_to_resume
from hf_any3d.training.program import encoder_facts
from hf_any3d.tuners import encoder_linear_pattern
from tests.forks import results_of
from tests.tiny_encoders import tiny_model


def test_shared_weights_count_once():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    assert count_parameters(model) == (9 + 3, 9 + 3 + 3)


def test_peak_memory_is_in_bytes():
    # In a new process: the peak of the test process is already higher.
    def peaks() -> tuple[int, int]:
        before = peak_memory()["process"]
        held = bytearray(b"x") * 600_000_000
        del held
        return before, peak_memory()["process"]

    ((before, after),) = results_of(peaks)
    assert 500_000_000 < after - before < 700_000_000


def test_stopwatch_sums_the_parts_of_a_name():
    stopwatch = Stopwatch()
    for _ in range(2):
        with stopwatch.part("sleep"):
            time.sleep(0.01)
    with pytest.raises(KeyError), stopwatch.part("failure"):
        raise KeyError
    seconds = stopwatch.stop()
    assert seconds["sleep"] >= 0.02 and seconds["total"] >= seconds["sleep"] and "failure" in seconds


def test_versions_are_those_of_installed_packages():
    versions = package_versions()
    assert versions["torch"] == torch.__version__ and versions["hf-any3d"] and versions["python"][0] == "3"


def test_error_names_a_file_that_is_not_a_report(tmp_path):
    (tmp_path / "metrics.json").write_text('{"accuracy": 1}')
    with pytest.raises(ValueError, match="metrics.json: not a run report"):
        RunReport.load(tmp_path / "metrics.json")


def test_adapter_facts_list_non_default_settings():
    model = tiny_model()
    assert adapter_facts(model) == {}
    pattern = encoder_linear_pattern(model)
    facts = adapter_facts(get_peft_model(model, LoraConfig(r=3, target_modules=pattern, lora_dropout=0.1)))
    assert facts == {"method": "lora", "settings": {"r": 3, "target_modules": pattern, "lora_dropout": 0.1}}


def test_encoder_facts_list_tower_and_layers():
    facts = encoder_facts(tiny_model("clip", tower="vision", num_layers=1).config)
    assert (facts["tower"], facts["layers"], facts["model_type"]) == ("vision", 1, "clip_vision_model")
    assert facts["checksum"].startswith("tensors-sha256:") and facts["name"].endswith("clip")


def test_last_checkpoint_is_found_unless_another_is_requested(tmp_path):
    assert checkpoint_to_resume(tmp_path / "absent") is None
    assert checkpoint_to_resume(tmp_path) is None
    for step in (5, 20, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
            (tmp_path / f"checkpoint-{step}" / name).write_text("{}")
    last, first = str(tmp_path / "checkpoint-100"), str(tmp_path / "checkpoint-5")
    assert checkpoint_to_resume(tmp_path) == last
    assert checkpoint_to_resume(tmp_path, True) == checkpoint_to_resume(tmp_path, "True") == last
    assert checkpoint_to_resume(tmp_path, "false") is None
    assert checkpoint_to_resume(tmp_path, first) == first
