"""Voting: mean logits over augmented copies, listed apart from plain figures."""

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features
from torch import nn

from hf_any3d import PointCloudProcessor
from hf_any3d.data import PointCloudCollator
from hf_any3d.evaluation.classification import compute_classification_metrics, evaluate_splits
from hf_any3d.evaluation.voting import evaluate_by_voting, vote_logits
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.rows import evaluation_rows, training_rows
from hf_any3d.training.trainer import PointTrainer

CLASSES = ["flat", "tall"]
CHAIN = ["scale:low=0.3,high=3,per_axis=True"]


class Extent(nn.Module):
    """Logits from the largest x and y of a cloud, which a test can compute without a model."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, points: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = points[..., :2].amax(1)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return loss | {"logits": logits}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    points = np.random.default_rng(0).standard_normal((7, 20, 3)).astype(np.float32)
    features = Features({"points": Array2D((20, 3), "float32"), "label": ClassLabel(names=CLASSES)})
    return Dataset.from_dict({"points": list(points), "label": [0, 1, 0, 1, 0, 0, 1]}, features=features)


@pytest.fixture
def trainer(tmp_path) -> PointTrainer:
    arguments = PointTrainingArguments(
        str(tmp_path),
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        per_device_eval_batch_size=3,
        dataloader_drop_last=True,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = PointCloudCollator()
    return PointTrainer(Extent(), arguments, data_collator=collator, compute_metrics=compute_classification_metrics)


def rows_of(dataset, seed=5):
    return training_rows(dataset, PointCloudProcessor(num_points=20, center=False, scale=None), CHAIN, seed=seed)


def test_votes_are_the_mean_over_the_augmented_copies_of_each_cloud(trainer, dataset):
    rows = rows_of(dataset)
    logits, labels = vote_logits(trainer, rows, 4)
    copies = []
    for rows.epoch in range(4):
        copies.append([row["points"][:, :2].max(axis=0) for row in rows.__getitems__(list(range(7)))])
    np.testing.assert_allclose(logits, np.mean(copies, axis=0), rtol=1e-6)
    assert np.ptp(copies, axis=0).min() > 1e-3
    assert labels.tolist() == [0, 1, 0, 1, 0, 0, 1]


def test_one_vote_without_augmentation_equals_the_plain_prediction(trainer, dataset):
    processor = PointCloudProcessor(num_points=20, center=False, scale=None)
    voters = training_rows(dataset, processor, ["shuffle"], seed=1)
    plain, plain_classes = evaluate_splits(trainer, {"test": evaluation_rows(dataset, processor)}, CLASSES)
    voted, voted_classes = evaluate_by_voting(trainer, {"test": voters}, CLASSES, 1)
    assert set(voted) == {"test_voting"} == set(voted_classes)
    assert voted["test_voting"] == pytest.approx(plain["test"], rel=1e-6)
    assert voted_classes["test_voting"] == plain_classes["test"]


def test_figures_of_votes_are_those_of_the_mean_logits(trainer, dataset):
    logits, labels = vote_logits(trainer, rows_of(dataset), 5)
    voted, by_class = evaluate_by_voting(trainer, {"test": rows_of(dataset)}, CLASSES, 5)
    right = logits.argmax(axis=1) == labels
    assert voted["test_voting"]["accuracy"] == pytest.approx(right.mean())
    assert by_class["test_voting"]["tall"] == pytest.approx(right[labels == 1].mean())
    loss = -np.mean([row[label] - np.log(np.exp(row).sum()) for row, label in zip(logits, labels, strict=True)])
    assert voted["test_voting"]["loss"] == pytest.approx(loss)
