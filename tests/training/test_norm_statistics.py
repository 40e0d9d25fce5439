"""Statistics of batch norms measured anew: eval mode then does what training mode does."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import default_data_collator

from hf_any3d.modeling.encoders import freeze
from hf_any3d.training.norm_statistics import refresh_norm_statistics
from tests.tiny_encoders import clouds
from tests.tiny_text_towers import adapted_zero_shot_model


def trainer_of(model, rows, batch_size):
    arguments = SimpleNamespace(train_batch_size=batch_size, device=torch.device("cpu"), seed=0)
    return SimpleNamespace(model=model, train_dataset=rows, args=arguments, data_collator=default_data_collator)


class Scaled(nn.Module):
    """A batch norm over rows."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, rows):
        return self.norm(rows)


def test_statistics_are_those_of_all_rows():
    rows = [{"rows": row} for row in 5 + 3 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0))]
    model = Scaled().eval()
    assert refresh_norm_statistics(trainer_of(model, rows, 16)) == 1
    every = torch.stack([row["rows"] for row in rows])
    torch.testing.assert_close(model.norm.running_mean, every.mean(dim=0))
    torch.testing.assert_close(model.norm.running_var, every.var(dim=0), rtol=0.1, atol=0)
    assert model.norm.momentum == 0.1 and not model.training


def test_eval_mode_of_a_barely_trained_model_follows_its_training_mode():
    model = adapted_zero_shot_model()
    rows = [{"points": cloud} for cloud in clouds(8)]
    batch = default_data_collator(rows)

    def apart():
        with torch.no_grad():
            seen = model.train()(**batch).point_embeds
            return float((model.eval()(**batch).point_embeds - seen).norm(dim=-1).mean())

    before = apart()
    assert refresh_norm_statistics(trainer_of(model, rows, 8)) > 0
    assert apart() < before / 5


def test_norms_of_a_frozen_encoder_stay():
    model = Scaled()
    freeze(model.norm)
    assert refresh_norm_statistics(trainer_of(model, [{"rows": torch.ones(3)}], 1)) == 0
    assert torch.equal(model.norm.running_mean, torch.zeros(3))


@pytest.mark.parametrize("count", [3, 5])
def test_rows_that_fill_no_batch_still_count(count):
    model = Scaled()
    rows = [{"rows": torch.full((3,), float(number))} for number in range(count)]
    refresh_norm_statistics(trainer_of(model, rows, 8))
    torch.testing.assert_close(model.norm.running_mean, torch.full((3,), (count - 1) / 2))
