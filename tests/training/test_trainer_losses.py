"""Losses of training and evaluation: label smoothing, shares of accumulated batches, the best epoch."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer

from hf_any3d.modeling.layers.losses import point_loss
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForPointCloudSegmentation
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.trainer import PointTrainer
from tests.common.models import case_of
from tests.errors import raises
from tests.modeling.minigpt3d.tiny_model import tiny_model as tiny_chat_model
from tests.tiny_autoencoders import tiny_autoencoder
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


def smoothing(folder, **changes):
    settings = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}
    settings |= {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "label_smoothing_factor": 0.5}
    return PointTrainingArguments(folder, **settings | changes)


@pytest.mark.parametrize("kind", [Trainer, PointTrainer])
def test_smoothed_labels_of_a_chat_model_are_those_of_the_next_tokens(kind, tmp_path):
    torch.manual_seed(0)
    model, words = tiny_chat_model(), torch.randint(2, 20, (2, 9))
    labels = words.clone()
    labels[:, :4] = -100
    trainer = kind(model, smoothing(tmp_path))
    with torch.no_grad():
        logits = model(input_ids=words).logits[:, :-1]
        expected = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.5)
        found = trainer.compute_loss(model.eval(), {"input_ids": words, "labels": labels})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_smoothing_that_no_label_gets_is_refused(tmp_path):
    rows = [{"points": cloud} for cloud in clouds(2)]
    trainer = PointTrainer(tiny_autoencoder(None), smoothing(tmp_path), train_dataset=rows)
    with raises(ValueError, naming="--label_smoothing_factor"):
        trainer.train()
    with_lovasz = case_of(PointTransformerV3ForPointCloudSegmentation)
    trainer = PointTrainer(with_lovasz.still(lovasz_weight=1.0), smoothing(tmp_path))
    with raises(ValueError, naming="--label_smoothing_factor"):
        trainer.compute_loss(trainer.model.train(), with_lovasz.labeled())
    with raises(ValueError, naming="--label_smoothing_factor"):
        PointTrainer(tiny_model("bert"), smoothing(tmp_path), compute_loss_func=point_loss)


def test_of_equally_accurate_weights_those_with_the_lower_loss_are_kept(tmp_path):
    rows = [{"points": cloud, "labels": number % 3} for number, cloud in enumerate(clouds(6))]
    arguments = PointTrainingArguments(
        tmp_path,
        num_train_epochs=5,
        per_device_train_batch_size=6,
        save_total_limit=None,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = PointTrainer(tiny_model("bert"), arguments, train_dataset=rows, eval_dataset=rows)
    # Accuracy and loss after each epoch: the best accuracy is reached three times.
    measured = iter([(0.5, 1.0), (0.75, 0.9), (0.75, 0.4), (0.75, 0.6), (0.5, 0.1)])

    def evaluate(*args, **kwargs):
        accuracy, loss = next(measured)
        metrics = {"eval_accuracy": accuracy, "eval_loss": loss}
        trainer.log(metrics)
        return metrics

    trainer.evaluate = evaluate
    trainer.train()
    assert trainer.state.best_global_step == 3 and trainer.state.best_metric == 0.75
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-3")
