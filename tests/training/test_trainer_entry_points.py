"""The stock Trainer pushes models and resumes runs as with any model of transformers."""

import pytest
import torch
from transformers import AutoFeatureExtractor, Trainer, TrainingArguments

from hf_any3d import PointCloudProcessor
from tests.test_entry_points import PROCESSOR, check_entry_points, lora_model
from tests.tiny_encoders import adapted_model, clouds, tiny_model
from tests.turns import some

ROWS = [{"points": cloud, "labels": number % 3} for number, cloud in enumerate(clouds(12))]


def trainer(model, directory, steps, **kwargs):
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **kwargs,
    )
    return Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS[:5], processing_class=PROCESSOR)


@pytest.mark.slow
@pytest.mark.parametrize("make", some([adapted_model, lora_model, tiny_model], left_out=[lora_model]))
def test_pushed_run_opens_through_every_entry_point(make, hub, tmp_path):
    name = f"me/run-{make.__name__.replace('_', '-')}"
    run = trainer(make("bert"), tmp_path, 2, push_to_hub=True, hub_model_id=name, save_strategy="no")
    run.train()
    run.push_to_hub()
    check_entry_points(name, run.model.eval(), lambda: tiny_model("bert"))
    processor = AutoFeatureExtractor.from_pretrained(name)
    assert isinstance(processor, PointCloudProcessor) and processor.to_dict() == PROCESSOR.to_dict()
    assert {"README.md", "preprocessor_config.json", "config.json"} <= set(hub.files(name))


@pytest.mark.slow
@pytest.mark.parametrize("make", some([adapted_model, lora_model, tiny_model], left_out=[adapted_model, tiny_model]))
def test_interrupted_run_resumes_without_warnings_to_the_same_result(make, tmp_path, capfd, recwarn):
    whole = trainer(make("bert"), tmp_path / "whole", 4, save_strategy="no")
    whole.train()
    trainer(make("bert"), tmp_path / "parts", 2, save_steps=2).train()
    capfd.readouterr()
    recwarn.clear()
    resumed = trainer(make("bert"), tmp_path / "parts", 4, save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    output = "".join(capfd.readouterr()) + "".join(str(warning.message) for warning in recwarn)
    for word in ("missing", "unexpected", "MISSING", "mismatch", "not initialized"):
        assert word not in output
    expected = whole.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
