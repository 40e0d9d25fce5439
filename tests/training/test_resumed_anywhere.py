"""A run of the stock Trainer that is resumed at any step has the weights of one without a break."""

import random

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features
from torch.utils.data import ConcatDataset, Subset
from transformers import Trainer, TrainingArguments

from hf_any3d.data import AugmentedDataset, PointCloudCollator
from tests.errors import raises
from tests.tiny_encoders import tiny_model
from tests.training.test_trainer_data import PooledMlp
from tests.turns import ALL_PAIRS, by_turns

FEATURES = Features({"points": Array2D((None, 3), "float32"), "label": ClassLabel(num_classes=3)})


def rows(count=8) -> Dataset:
    generator = np.random.default_rng(0)
    clouds = [generator.standard_normal((16 + number, 3)) for number in range(count)]
    return Dataset.from_dict(
        {"points": [cloud.tolist() for cloud in clouds], "label": [number % 3 for number in range(count)]}, FEATURES
    )


def shake(cloud, generator=None):
    """A transform that draws from everything that may be drawn from."""
    drawn = random.random() + np.random.normal(size=3) + torch.randn(3).numpy()
    return (cloud + drawn).astype("float32")


def moved(batch):
    """A transform of a dataset that draws, too."""
    return {**batch, "points": [np.asarray(cloud) + torch.randn(3).numpy() for cloud in batch["points"]]}


class Around(torch.utils.data.Dataset):
    """Rows of a dataset in a class of a user."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]


TRAINED = {
    "rows": lambda: AugmentedDataset(rows(), shake),
    "a subset": lambda: AugmentedDataset(Subset(rows(), range(7)), shake),
    "a list, in a class of a user": lambda: Around(AugmentedDataset(list(rows()), shake)),
    "several": lambda: ConcatDataset([AugmentedDataset(rows(5), shake), AugmentedDataset(rows(3), shake, seed=1)]),
    "rows with a transform": lambda: AugmentedDataset(rows().with_transform(moved), shake),
    "a stream": lambda: AugmentedDataset(rows().to_iterable_dataset(2).shuffle(1, buffer_size=3).repeat(None), shake),
}
SETTINGS = {
    "plain": {},
    "workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    "in order": {"train_sampling_strategy": "sequential", "eval_strategy": "steps", "eval_steps": 1},
    "accumulated": {"gradient_accumulation_steps": 2},
    "evaluated on what it is trained on": {"eval_strategy": "steps", "eval_steps": 1},
}


def run(kind, folder, start=None, **settings):
    """Train five steps of epochs of three; return the weights."""
    torch.manual_seed(0)
    model, dataset = PooledMlp(3), TRAINED[kind]()
    small = {"per_device_train_batch_size": 3, "max_steps": 5, "save_steps": 1, "learning_rate": 0.01}
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    arguments = TrainingArguments(folder, label_names=["labels"], **small, **quiet, **settings)
    evaluated = dataset if "eval_strategy" in settings else None
    trainer = Trainer(model, arguments, PointCloudCollator(num_points=16), dataset, evaluated)
    trainer.train(resume_from_checkpoint=start)
    return model.state_dict()


@pytest.mark.parametrize(("kind", "setting"), by_turns(TRAINED, list(SETTINGS)))
def test_a_resumed_run_is_the_run_without_a_break(kind, setting, tmp_path):
    whole = run(kind, str(tmp_path / "whole"), **SETTINGS[setting])
    # Within an epoch, where Trainer skips batches; all steps are tried where there is time.
    steps = (1, 2, 3, 4) if ALL_PAIRS else (4,)
    for step in steps:
        start = str(tmp_path / "whole" / f"checkpoint-{step}")
        again = run(kind, str(tmp_path / f"again {step}"), start, **SETTINGS[setting])
        assert all(torch.equal(weight, again[name]) for name, weight in whole.items()), step


def test_a_later_pass_of_a_stream_that_ends_is_refused_at_the_first_step(tmp_path):
    few = {"per_device_train_batch_size": 4, "max_steps": 3, "save_steps": 1, "learning_rate": 0.01}
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    for start in (None, f"{tmp_path}/checkpoint-2"):
        arguments = TrainingArguments(str(tmp_path), label_names=["labels"], **few, **quiet)
        dataset = AugmentedDataset(rows(6).to_iterable_dataset(), shake)
        trainer = Trainer(tiny_model(num_labels=3), arguments, PointCloudCollator(num_points=64), dataset)
        if start is None:
            trainer.train()
        else:
            with raises(ValueError, naming="dataset.repeat"):
                trainer.train(resume_from_checkpoint=start)
