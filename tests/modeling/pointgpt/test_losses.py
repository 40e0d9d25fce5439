"""Losses of PointGPT where a Trainer smooths labels, and where a cloud has few points."""

import torch
from transformers import Trainer, TrainingArguments

from hf_any3d.modeling.pointgpt import PointGPTForPointCloudClassification, PointGPTForPreTraining
from tests.modeling.act.reference_case import without_chance
from tests.tiny_act import clouds, tiny_act


def test_smoothed_labels_leave_the_loss_of_generated_patches(tmp_path):
    model = tiny_act(PointGPTForPointCloudClassification, generation_loss_weight=3.0, head_dropout=0.0)
    arguments = TrainingArguments(tmp_path, label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    batch = {"points": clouds(), "labels": torch.tensor([2, 0])}
    without_chance(model)
    expected = model(**batch)
    label_loss = torch.nn.functional.cross_entropy(expected.logits, batch["labels"], label_smoothing=0.1)
    assert expected.auxiliary_loss > 0.1
    loss = Trainer(model, arguments).compute_loss(model, dict(batch))
    torch.testing.assert_close(loss, label_loss + expected.auxiliary_loss, rtol=1e-4, atol=1e-4)


def test_few_distinct_points_give_finite_losses_and_gradients():
    points = clouds(count=6)[:, torch.arange(60) % 6]
    for model_class, more in (
        (PointGPTForPreTraining, {}),
        (PointGPTForPointCloudClassification, {"labels": torch.tensor([2, 0])}),
    ):
        model = tiny_act(model_class, generation_loss_weight=3.0).train()
        loss = model(points=points, **more).loss
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
