"""Rows, augmentation, collator and metrics in a stock Trainer."""

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_any3d.data import AugmentedDataset, PointCloudCollator, build_transform, load_point_dataset, validation_split
from hf_any3d.data.transforms import Jitter
from hf_any3d.evaluation.classification import compute_classification_metrics
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.trainer import PointTrainer
from tests.tiny_encoders import tiny_model
from tests.turns import some


class PooledMlp(torch.nn.Module):
    """Minimal model of points: a linear layer, the maximum over points, and a head."""

    accepts_loss_kwargs = False

    def __init__(self, num_classes: int):
        super().__init__()
        self.points = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
        self.head = torch.nn.Linear(64, num_classes)
        self.seen = []

    def forward(self, points, labels=None):
        self.seen.append((self.training, points.detach().clone()))
        logits = self.head(self.points(points).amax(dim=1))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


@pytest.mark.slow
@pytest.mark.parametrize("workers", some([0, 1], left_out=[0]))
def test_stock_trainer_trains_on_augmented_rows_and_evaluates_plain_ones(workers, tmp_path):
    splits = validation_split(load_point_dataset("shapes"), 0.2, seed=0, group_column="group")
    transform = build_transform(["scale", "rotate:limit=0.3", "jitter"])
    torch.manual_seed(0)
    model = PooledMlp(18)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=30,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=1e-2,
        dataloader_num_workers=workers,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        label_names=["labels"],
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=AugmentedDataset(splits["train"], transform),
        eval_dataset=splits["validation"],
        data_collator=PointCloudCollator(num_points=128),
        compute_metrics=compute_classification_metrics,
    )
    untrained = trainer.evaluate()
    trainer.train()
    trained, again = trainer.evaluate(), trainer.evaluate()
    assert trained["eval_accuracy"] > untrained["eval_accuracy"] + 0.1
    assert trained["eval_accuracy"] == again["eval_accuracy"]
    assert 0 < trained["eval_mean_class_accuracy"] < 1
    plain = torch.from_numpy(splits["validation"]["points"][:64][:, :128])
    judged = [points for training, points in model.seen if not training and len(points) == 64]
    assert len(judged) == 3 and all(torch.equal(points, plain) for points in judged)


@pytest.mark.parametrize("rate", [1e-2, 0])
def test_our_trainer_takes_arguments_of_transformers(rate, tmp_path):
    torch.manual_seed(0)
    rows = [{"points": torch.randn(32, 3), "label": number % 3} for number in range(8)]
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    few = {"per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": rate, "save_steps": 2}
    weights = []
    for start in (None, str(tmp_path / "checkpoint-2")):
        model = tiny_model("bert")
        arguments = TrainingArguments(str(tmp_path), label_names=["labels"], **few, **quiet)
        trainer = PointTrainer(model, arguments, PointCloudCollator(), AugmentedDataset(rows, Jitter()), rows)
        trainer.train(resume_from_checkpoint=start)
        assert trainer.evaluate()["eval_loss"] > 0
        weights.append(model.state_dict())
    assert PointTrainingArguments(str(tmp_path), learning_rate=rate, use_cpu=True).learning_rate == rate
    trainer.save_model()
    trainer.create_model_card()
    assert (tmp_path / "README.md").exists()
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
