"""Evaluation losses have no label smoothing."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.trainer import PointTrainer
from tests.tiny_encoders import clouds, tiny_model


def test_evaluation_loss_is_plain_and_training_loss_smoothed(tmp_path):
    rows = [{"points": cloud, "labels": number % 3} for number, cloud in enumerate(clouds(6))]
    arguments = PointTrainingArguments(
        tmp_path,
        label_smoothing_factor=0.5,
        per_device_train_batch_size=6,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = tiny_model("bert")
    model.classifier.out.weight.data.mul_(100)  # logits of order one
    trainer = PointTrainer(model, arguments, train_dataset=rows)
    output = trainer.predict(rows)
    logits, labels = torch.from_numpy(output.predictions), torch.from_numpy(output.label_ids)
    plain, smoothed = (float(cross_entropy(logits, labels, label_smoothing=share)) for share in (0.0, 0.5))
    assert abs(plain - smoothed) > 0.01 * plain
    assert output.metrics["test_loss"] == pytest.approx(plain, rel=1e-4)
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(plain, rel=1e-4)
    batch = {"points": clouds(6), "labels": torch.arange(6) % 3}
    trained = float(trainer.compute_loss(trainer.model.eval(), batch))
    assert trained == pytest.approx(smoothed, rel=1e-4)
