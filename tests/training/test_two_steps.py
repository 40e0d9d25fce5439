"""Two optimizer steps with one gradient, as ACT's segmentation programs take them."""

import pytest
import torch
from torch import nn

from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.trainer import PointTrainer
from tests.errors import raises


class Slope(nn.Module):
    """A loss with the constant gradient (3, 4), of length 5."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * x).sum(dim=1).mean()}


def weight_after(tmp_path, steps: int = 1, pieces: int = 1, **settings) -> torch.Tensor:
    arguments = PointTrainingArguments(
        tmp_path,
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=pieces,
        optim="sgd",
        learning_rate=1.0,
        weight_decay=0.0,
        warmup_steps=0,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    model, rows = Slope(), [{"x": torch.tensor([3.0, 4.0])} for _ in range(8)]
    PointTrainer(model, arguments, train_dataset=rows).train()
    return model.weight.detach()


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 2])
def test_the_first_step_is_unclipped_and_the_second_clipped(tmp_path, pieces):
    once = weight_after(tmp_path, pieces=pieces)
    torch.testing.assert_close(once, torch.tensor([-0.6, -0.8]), atol=1e-5, rtol=0)
    twice = weight_after(tmp_path, pieces=pieces, two_steps_per_batch=True)
    torch.testing.assert_close(twice, torch.tensor([-3.6, -4.8]), atol=1e-5, rtol=0)
    again = weight_after(tmp_path, steps=2, pieces=pieces, two_steps_per_batch=True)
    torch.testing.assert_close(again, 2 * twice, atol=1e-5, rtol=0)


def test_half_precision_with_scaled_gradients_is_refused(tmp_path):
    with raises(ValueError, naming="--two_steps_per_batch"):
        PointTrainingArguments(tmp_path, two_steps_per_batch=True, fp16=True)
