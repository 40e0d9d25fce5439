"""Model arguments that change with the step, in training and in eval mode."""

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_any3d.training.schedules import ScheduledArguments


class Listener(nn.Module):
    """Model that records its arguments."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.heard: list[tuple[bool, float]] = []

    def forward(self, x: torch.Tensor, heat: float = -1.0) -> dict[str, torch.Tensor]:
        self.heard.append((self.training, heat))
        return {"loss": (self.weight * x).mean(), "logits": x}


def test_each_step_has_its_value_and_evaluation_the_default(tmp_path):
    model, rows = Listener(), [{"x": torch.ones(2)} for _ in range(6)]
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=6,
        num_train_epochs=1,
        eval_strategy="epoch",
        logging_steps=1,
        label_names=["x"],
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    schedule = ScheduledArguments({"heat": lambda step: 10.0 + step})
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[schedule])
    trainer.train()
    # Both accumulation steps have the value of the optimiser step.
    assert model.heard == [(True, heat) for heat in (10, 10, 11, 11, 12, 12)] + [(False, -1)]
    logged = [entry["heat"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [10, 11, 12]
    model.train()
    model(torch.ones(2))
    assert model.heard[-1] == (True, -1)
